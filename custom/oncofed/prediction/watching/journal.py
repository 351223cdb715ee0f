"""Append-only log of each input's progress, for restarts.

Each step is one JSON line, flushed to disk before the step counts. A truncated last line is removed.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from oncofed.errors import SpecError, StateError

BEGUN, PUT_BACK, DONE, FAILED, SENT, NOT_SENT = "begun", "put back", "done", "failed", "sent", "not sent"
_OPENED = "opened"  # the first line, with the model
_OVER = {DONE, FAILED}


@dataclass
class Record:
    """Progress of one version of an input.

    Attributes:
        fingerprint: of the input's files.
        tries: number of attempts so far.
        step: latest step.
        reason: why it failed.
        to_send: files not yet acknowledged, relative to the output folder.
    """

    fingerprint: str
    tries: int = 0
    step: str = ""
    reason: str = ""
    to_send: list[str] = field(default_factory=list)

    @property
    def is_over(self) -> bool:
        """Whether the input is done or failed."""
        return self.step in _OVER


class Journal:
    """Progress of all inputs, backed by the log file.

    Args:
        path: created if missing.
        model: digest of the model that made the results; None: any.

    Raises:
        StateError: the file is not a journal.
        SpecError: it belongs to another model.
    """

    def __init__(self, path: Path, model: str | None = None) -> None:
        self.records: dict[str, Record] = {}
        self._model: str | None = None
        path.touch(0o600)
        text = path.read_bytes()
        complete = text[: text.rfind(b"\n") + 1]
        if len(complete) < len(text):
            os.truncate(path, len(complete))
        for number, line in enumerate(complete.splitlines(), start=1):
            self._take(_step(line, f"{path}, line {number}"))
        self._path = path
        if not complete and model:
            self._write("", _OPENED, model=model)
        if model and self._model != model:
            raise SpecError(
                f"{path.parent}: holds results of another model ({str(self._model)[:12]}…; this one is {model[:12]}…). "
                "Name another --out"
            )

    def record(self, name: str, fingerprint: str) -> Record:
        """Return the record for these files, new if they changed."""
        known = self.records.get(name)
        return known if known and known.fingerprint == fingerprint else Record(fingerprint)

    def begin(self, name: str, fingerprint: str) -> None:
        """Log the start of work; unfinished starts count as crashes."""
        self._write(name, BEGUN, fingerprint=fingerprint)

    def requeue(self, name: str, fingerprint: str) -> None:
        """Log that work stopped for a reason outside the input."""
        self._write(name, PUT_BACK, fingerprint=fingerprint)

    def finish(self, name: str, fingerprint: str, to_send: Sequence[str] = ()) -> None:
        """Log that the input is done.

        Args:
            name: of the input.
            fingerprint: of its files.
            to_send: result files to send, relative to the output folder.
        """
        self._write(name, DONE, fingerprint=fingerprint, to_send=list(to_send))

    def fail(self, name: str, fingerprint: str, reason: str) -> None:
        """Log that the input is set aside, and why."""
        self._write(name, FAILED, fingerprint=fingerprint, reason=reason)

    def sent(self, name: str, file: str) -> None:
        """Log that the receiver acknowledged a file."""
        self._write(name, SENT, file=file)

    def abandon(self, name: str, file: str, reason: str) -> None:
        """Log that a file will not be sent, and why."""
        self._write(name, NOT_SENT, file=file, reason=reason)

    def _write(self, name: str, step: str, **more: Any) -> None:
        values = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "name": name, "step": step, **more}
        line = json.dumps(values) + "\n"
        before = self._path.stat().st_size
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            # Later steps must not be appended to half a line.
            os.truncate(self._path, before)
            raise
        self._take(values)

    def _take(self, values: dict[str, Any]) -> None:
        name, step = str(values["name"]), values["step"]
        if step == _OPENED:
            self._model = str(values.get("model"))
            return
        if step in {SENT, NOT_SENT}:
            sending = self.records.get(name, Record("")).to_send
            sending[:] = [file for file in sending if file != values["file"]]
            return
        record = self.record(name, values.get("fingerprint", ""))
        record.step, record.reason = step, values.get("reason", "")
        record.tries += {BEGUN: 1, PUT_BACK: -1}.get(step, 0)
        if step == DONE:
            record.to_send = list(values.get("to_send", ()))
        self.records[name] = record


def _step(line: bytes, where: str) -> dict[str, Any]:
    try:
        values = json.loads(line)
        if {"name", "step"} <= set(values):
            return dict(values)
    except (ValueError, TypeError):
        pass
    raise StateError(f"{where}: no step of this journal. Move the file away to begin anew") from None
