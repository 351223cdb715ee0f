"""Errors that a user may see.

Each message says what was found, what was expected and what to do next.

OncofedError
├── SpecError                    a file of settings, or a command's arguments
├── DataError                    a site's data
│   └── UnreadableError          a file that may be readable again later
├── PolicyError                  forbidden by a policy
├── AuditError                   cannot be recorded
├── TrainingError                training cannot continue
│   └── StateError               what an earlier process left cannot be used
└── FederationError              server, sites, or what connects them
    ├── AllianceError            a kit, a certificate or an alliance's folder
    ├── UpdateRejectedError      one site's answer; the run goes on without it
    ├── NotEnoughSitesError      the run is over: its quorum cannot be met
    └── TransferError            a link or a server that is down
"""


class OncofedError(Exception):
    """Base of all errors with a clear message.

    ``exit_code`` is the command's exit status.
    """

    exit_code = 1


class SpecError(OncofedError):
    """A ``job.yaml`` or a command's arguments cannot be used."""

    exit_code = 2


class DataError(OncofedError):
    """A site's data does not pass the checks."""

    exit_code = 3


class UnreadableError(DataError):
    """A file became unreadable, perhaps temporarily.

    For example on a network drive that is away.
    """


class PolicyError(OncofedError):
    """A policy forbids the request."""

    exit_code = 3


class AuditError(OncofedError):
    """An event cannot be recorded, or the log not read.

    What cannot be recorded must not happen.
    """

    exit_code = 3


class TrainingError(OncofedError):
    """Training cannot continue, as with a non-finite loss."""


class StateError(TrainingError):
    """An earlier process's state cannot be used."""


class FederationError(OncofedError):
    """The server, a site or the connection between them failed."""


class AllianceError(FederationError):
    """A kit, certificate or alliance folder cannot be used."""


class UpdateRejectedError(FederationError):
    """One site's answer is rejected; the run goes on."""


class EncodersDifferError(FederationError):
    """Sites bring features of different encoders."""


class NotEnoughSitesError(FederationError):
    """Too few sites for a round: the run is over."""


class StepsSpentError(FederationError):
    """The steps that a job's privacy was planned for are taken."""


class TransferError(FederationError):
    """A connection failed, or a transfer is incomplete."""


def one_line(text: str, longest: int) -> str:
    """Return untrusted text as one short printable line."""
    return "".join(c if c.isprintable() else " " for c in text[:longest])
