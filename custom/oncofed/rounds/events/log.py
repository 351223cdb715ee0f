"""The record's file: one event a line, appended and followed."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from oncofed.rounds.events.base import Event, InDigest, Unknown
from oncofed.rounds.events.run import (
    CrossSite,
    EarlyStop,
    Failed,
    Finished,
    Harmonized,
    IntensitiesNotAgreed,
    NotKept,
    NotStandardised,
    ProfileFinished,
    ProfileStarted,
    Ready,
    Resumed,
    RoundEnded,
    Standardised,
    Started,
    StepsSpent,
    Stopped,
    SumFailed,
    Summed,
    TemplateNotAgreed,
    Validated,
)
from oncofed.rounds.events.sites import (
    Answered,
    Dropped,
    EncoderUnknown,
    Excluded,
    Joined,
    Late,
    Lost,
    Refused,
    Returned,
    SiteNotKept,
    SiteProgress,
    TaskSent,
)

EVENTS_FILE = "events.jsonl"
# Bounds a digest; the record has every event.
_MOST_IN_DIGEST = 500

TRAINING_EVENTS: tuple[type[Event], ...] = (
    Started,
    Resumed,
    Joined,
    Excluded,
    EncoderUnknown,
    Ready,
    Standardised,
    NotStandardised,
    TemplateNotAgreed,
    IntensitiesNotAgreed,
    Harmonized,
    TaskSent,
    SiteProgress,
    Answered,
    Late,
    Dropped,
    Refused,
    Lost,
    Returned,
    NotKept,
    SiteNotKept,
    Validated,
    RoundEnded,
    Summed,
    SumFailed,
    EarlyStop,
    StepsSpent,
    CrossSite,
    Finished,
    Stopped,
    Failed,
)
PROFILE_EVENTS: tuple[type[Event], ...] = (ProfileStarted, ProfileFinished, Failed)


def read_event(record: Mapping[str, Any], events: Sequence[type[Event]] = TRAINING_EVENTS) -> Event:
    """Return the event that a line holds.

    Args:
        record: the line.
        events: classes of the events that the record may have.

    Returns:
        ``Unknown`` for a line of another version that has a kind, or lacks a field, of these classes.
    """
    known = {event.kind: event for event in events}.get(str(record.get("kind")))
    if known is not None:
        names = {f.name for f in dataclasses.fields(known)}
        with contextlib.suppress(TypeError):
            return known(**{name: value for name, value in record.items() if name in names})
    return Unknown(time=float(record.get("time", 0.0)), name=str(record.get("kind")))


class EventLog:
    """Appends events to a file, from any thread.

    Lines that a full disk does not take are kept, and written with a later event. A partial line of a killed process is
    removed.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab", buffering=0)
        written = path.read_bytes()
        self._file.truncate(written.rfind(b"\n") + 1)
        self._pending = b""
        self._lock = threading.Lock()
        # The digest continues from its last position: a record of weeks is long.
        self._digest_lock = threading.Lock()
        self._reader = EventReader(path)
        self._first: deque[Event] = deque(maxlen=_MOST_IN_DIGEST)
        self._last: deque[Event] = deque(maxlen=_MOST_IN_DIGEST)
        self._latest: dict[str, Event] = {}

    def write(self, event: Event) -> None:
        """Append one event."""
        line = json.dumps(event.record()).encode() + b"\n"
        with self._lock:
            if self._file.closed:
                return
            self._pending += line
            with contextlib.suppress(OSError):
                while self._pending:
                    self._pending = self._pending[self._file.write(self._pending) :]

    def digest(self) -> list[dict[str, Any]]:
        """Return the lines that a remote view needs.

        At most a thousand, and one for each site.
        """
        with self._digest_lock:
            for event in self._reader.read():
                if event.in_digest is InDigest.START:
                    self._first.append(event)
                elif event.in_digest is InDigest.NEWEST:
                    self._last.append(event)
                elif isinstance(event, (SiteProgress, Answered)):
                    self._latest[event.site] = event
            events = sorted([*self._first, *self._last, *self._latest.values()], key=lambda event: event.time)
            return [event.record() for event in events]

    def close(self) -> None:
        """Close the file; later events are dropped."""
        with self._lock:
            self._file.close()


class EventReader:
    """Reads the events that were added since the last call.

    The file may still be missing, or in the middle of a write.

    Args:
        path: of the record.
        events: classes of the events that it may have.
    """

    def __init__(self, path: Path, events: Sequence[type[Event]] = TRAINING_EVENTS) -> None:
        self._path = path
        self._events = events
        self._offset = 0

    def read(self) -> Iterator[Event]:
        """Yield the new complete lines."""
        if not self._path.is_file():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._offset += len(line)
                yield read_event(json.loads(line), self._events)
