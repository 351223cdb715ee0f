"""The base of a run's events."""

from __future__ import annotations

import enum
import time
from dataclasses import dataclass, field
from typing import Any, ClassVar


class InDigest(enum.Enum):
    """Which events of a class a digest holds."""

    START = enum.auto()  # all, even if many others followed
    NEWEST = enum.auto()
    NEWEST_OF_SITE = enum.auto()
    NONE = enum.auto()


@dataclass(frozen=True, kw_only=True)
class Event:
    """Base class of events.

    Attributes:
        kind: name of the class in the record.
        in_digest: which events of the class a digest holds.
        sparse: whether fields that are None are left out of the line.
        time: when it happened, in seconds since 1970 by the server's clock.
    """

    kind: ClassVar[str]
    in_digest: ClassVar[InDigest] = InDigest.NEWEST
    sparse: ClassVar[bool] = False

    time: float = field(default_factory=time.time)

    def record(self) -> dict[str, Any]:
        """Return the event as its line holds it."""
        values = {name: value for name, value in vars(self).items() if not (self.sparse and value is None)}
        return {"time": values.pop("time"), "kind": self.kind, **values}


@dataclass(frozen=True, kw_only=True)
class Incident(Event):
    """Base class of events that users should see.

    Attributes:
        message: sentence about it, with names of fields in braces.
    """

    message: ClassVar[str]

    def __str__(self) -> str:
        return self.message.format_map(vars(self))


@dataclass(frozen=True, kw_only=True)
class Unknown(Event):
    """A line that this version of oncofed cannot read.

    Attributes:
        name: kind of the event.
    """

    kind = "unknown"

    name: str

    def __str__(self) -> str:
        return f"the server reports {self.name!r}, which this version of oncofed does not know: skipped"
