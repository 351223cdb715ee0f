"""The server's record of a run: one JSON object a line, from which the live view, TensorBoard and the result follow."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

EVENTS_FILE = "events.jsonl"
MODELS_FOLDER = "models"
# Under which the server tells them, where FLARE collects statistics of a job.
TOLD_GROUP = "oncofed"
# Events that a look from afar gets at most; the record holds all.
_MOST_TOLD = 500
BEST_MODEL = "best.safetensors"


class EventLog:
    """Appends events to a file; safe to call from several threads.

    What a full disk does not take is kept, and written with a later event. Half a line that a killed process left goes.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab", buffering=0)
        written = path.read_bytes()
        self._file.truncate(written.rfind(b"\n") + 1)
        self._pending = b""
        # For ``told``, which reads on from where it was: a record of weeks is long.
        self._told_lock = threading.Lock()
        self._told_from = EventReader(path)
        self._first: deque[dict[str, Any]] = deque(maxlen=_MOST_TOLD)
        self._last: deque[dict[str, Any]] = deque(maxlen=_MOST_TOLD)
        self._now: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()

    def write(self, kind: str, **values: Any) -> None:
        """Append one event with the time of day in seconds."""
        line = json.dumps({"time": time.time(), "kind": kind, **values}).encode() + b"\n"
        with self._lock:
            if self._file.closed:
                return
            self._pending += line
            with contextlib.suppress(OSError):
                while self._pending:
                    self._pending = self._pending[self._file.write(self._pending) :]

    def told(self) -> list[dict[str, Any]]:
        """Return what somebody who looks at the run from afar needs to know: no more than some hundred events."""
        with self._told_lock:
            for event in self._told_from.read():
                if event["kind"] in ("started", "joined", "ready"):
                    self._first.append(event)
                elif event["kind"] in ("progress", "answer"):
                    self._now[event["site"]] = event
                elif event["kind"] != "task":
                    self._last.append(event)
            return sorted([*self._first, *self._last, *self._now.values()], key=lambda event: float(event["time"]))

    def close(self) -> None:
        """Close the file; later events are dropped."""
        with self._lock:
            self._file.close()


class EventReader:
    """Reads the events that were added since the last call, also while the file is being written or not yet there."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def read(self) -> Iterator[dict[str, Any]]:
        """Yield the new whole lines."""
        if not self._path.is_file():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._offset += len(line)
                yield json.loads(line)
