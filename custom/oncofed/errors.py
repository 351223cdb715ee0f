"""The errors that a user may see. Each message says what was found, what was expected and what to do next.

OncofedError
├── SpecError                    a file of settings, or a command's arguments
├── DataError                    a site's data
│   └── UnreadableError          a file that may be readable again later
├── PolicyError                  forbidden by a policy
├── AuditError                   cannot be recorded
├── TrainingError                training cannot go on
│   └── StateError               what an earlier process left cannot be used
└── FederationError              server, sites, or what connects them
    ├── AllianceError            a kit, a certificate or an alliance's folder
    ├── UpdateRejectedError      one site's answer; the run goes on without it
    ├── NotEnoughSitesError      the run is over: its quorum cannot be met
    └── TransferError            a link or a server that is down
"""


class OncofedError(Exception):
    """Root of all errors that end in one clear message; ``exit_code`` is the command's exit status."""

    exit_code = 1


class SpecError(OncofedError):
    """A ``job.yaml`` or a command's arguments cannot be used."""

    exit_code = 2


class DataError(OncofedError):
    """A site's data does not pass the checks."""

    exit_code = 3


class UnreadableError(DataError):
    """A file that could be read before cannot be now, which may pass: a network drive that is away for a while."""


class PolicyError(OncofedError):
    """A policy forbids what was asked for."""

    exit_code = 3


class AuditError(OncofedError):
    """What happens cannot be recorded, or what was recorded cannot be read; it must not happen."""

    exit_code = 3


class TrainingError(OncofedError):
    """Training cannot go on, for example because the loss is not finite."""


class StateError(TrainingError):
    """What an earlier process left to go on from cannot be used."""


class FederationError(OncofedError):
    """The server, a site or the connection between them failed."""


class AllianceError(FederationError):
    """A startup kit, a certificate or an alliance's folder cannot be used."""


class UpdateRejectedError(FederationError):
    """One site's answer cannot be used; the run goes on without it."""


class NotEnoughSitesError(FederationError):
    """Too few sites are left for a round, and none comes back in time: the run is over."""


class TransferError(FederationError):
    """A link or a server is down, or what came over it is incomplete."""


def one_line(text: str, longest: int) -> str:
    """Return what somebody else wrote, which may be anything, as one short line that a terminal can show."""
    return "".join(c if c.isprintable() else " " for c in text[:longest])
