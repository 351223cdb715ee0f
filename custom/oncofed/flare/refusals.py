"""Reasons of failed tasks, as reported to the server.

None names a case, a path or a patient.
"""

from __future__ import annotations

from oncofed.errors import (
    AuditError,
    DataError,
    OncofedError,
    PolicyError,
    StateError,
    TrainingError,
    UnreadableError,
)
from oncofed.messages.results import Refusal

# By class, subclasses first. None: the error's own text, which is written for the server.
_REASONS: tuple[tuple[type[OncofedError], str | None, bool], ...] = (
    (StateError, "its kept state cannot be used; the site's own log says more", False),
    (TrainingError, None, False),
    (UnreadableError, "it cannot read a file that it could read before; the site's own log names it", True),
    (DataError, "its data did not pass the checks; the site's own log names the cases", False),
    (PolicyError, None, False),
    (AuditError, "it cannot write its audit log, and runs nothing unrecorded", True),
)


def refusal_of(error: Exception, task: str) -> Refusal:
    """Return the refusal for an error.

    Args:
        error: raised by the task.
        task: its name.
    """
    for kind, reason, may_pass in _REASONS:
        if isinstance(error, kind):
            return Refusal(str(error) if reason is None else reason, may_pass)
    if isinstance(error, OncofedError):
        return Refusal(f"{type(error).__name__}; the site's own log says more")
    reason = f"{type(error).__name__} during {task}; the site's own log says more"
    return Refusal(reason, may_pass=isinstance(error, OSError))
