"""What became of each thing that arrived, so that a process that is killed goes on where it was.

One line of JSON a step, appended and safe from a power cut before the step counts. A last line that is cut off did not
count, and is removed.
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
    """What is known of one thing in one state of its files.

    Attributes:
        fingerprint: of the files.
        tries: how often it was begun.
        step: the last one of its own.
        reason: why it failed.
        to_send: files that are to be sent and were not acknowledged, relative to the output folder.
    """

    fingerprint: str
    tries: int = 0
    step: str = ""
    reason: str = ""
    to_send: list[str] = field(default_factory=list)

    @property
    def is_over(self) -> bool:
        """Whether it was worked off."""
        return self.step in _OVER


class Journal:
    """The file and what it says.

    Args:
        path: made where it is missing.
        model: digest of the model whose results it tells of; None: whatever it is.

    Raises:
        StateError: it is no journal.
        SpecError: it tells of another model.
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
        """Return what is known of a thing as its files are now."""
        known = self.records.get(name)
        return known if known and known.fingerprint == fingerprint else Record(fingerprint)

    def begin(self, name: str, fingerprint: str) -> None:
        """Note that work on it begins; one that never gets further ended the process."""
        self._write(name, BEGUN, fingerprint=fingerprint)

    def requeue(self, name: str, fingerprint: str) -> None:
        """Note that work on it was left through no fault of its own."""
        self._write(name, PUT_BACK, fingerprint=fingerprint)

    def finish(self, name: str, fingerprint: str, to_send: Sequence[str] = ()) -> None:
        """Note that it is done.

        Args:
            name: of it.
            fingerprint: of its files.
            to_send: files of its result that are to be sent, relative to the output folder.
        """
        self._write(name, DONE, fingerprint=fingerprint, to_send=list(to_send))

    def fail(self, name: str, fingerprint: str, reason: str) -> None:
        """Note that it is set aside, and why."""
        self._write(name, FAILED, fingerprint=fingerprint, reason=reason)

    def sent(self, name: str, file: str) -> None:
        """Note that a file of its result was acknowledged."""
        self._write(name, SENT, file=file)

    def abandon(self, name: str, file: str, reason: str) -> None:
        """Note that a file of its result cannot be sent, and why."""
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
            # What comes later must not be appended to half a line.
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
