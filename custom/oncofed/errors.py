"""The errors that a user may see. Each message says what was found, what was expected and what to do next."""


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


def one_line(text: str, longest: int) -> str:
    """Return what somebody else wrote, which may be anything, as one short line that a terminal can show."""
    return "".join(c if c.isprintable() else " " for c in text[:longest])
