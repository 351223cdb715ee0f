"""What a site's own admin can see of a job: what it does now, and what left. It stays in the site's folder."""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

RUN_FOLDER = "run"
# Phases of a job in which nothing is lost when its processes are stopped.
WAITING, ENDED = "waiting for the other sites", "ended"
_NOW_FILE = "job.json"
_LEFT_FILE = "left.jsonl"


class SiteReport:
    """Writes it. What cannot be written does not stop a job.

    Args:
        root: the site's folder.
        job: the job's id.
    """

    def __init__(self, root: Path, job: str) -> None:
        self._folder = root / RUN_FOLDER
        self._job = job

    def now(self, **values: Any) -> None:
        """Note what the job does now."""
        self._write(_NOW_FILE, json.dumps({"job": self._job, "at": time.time(), **values}), "w")

    def left(self, task: str, number: int, size: int, to: str = "server") -> None:
        """Note that an answer leaves.

        Args:
            task: that it answers.
            number: of the round.
            size: bytes of tensors and numbers.
            to: the server, or another site.
        """
        at = datetime.now(timezone.utc).isoformat(timespec="seconds")
        line = {"at": at, "job": self._job, "task": task, "round": number, "bytes": size, "to": to}
        self._write(_LEFT_FILE, json.dumps(line) + "\n", "a")

    def _write(self, name: str, text: str, mode: str) -> None:
        with contextlib.suppress(OSError):
            self._folder.mkdir(exist_ok=True, mode=0o700)
            path = self._folder / name
            if mode == "a":
                with open(path, "a", encoding="utf-8", opener=_private) as file:
                    file.write(text)
                return
            unfinished = path.with_suffix(".unfinished")
            with open(unfinished, "w", encoding="utf-8", opener=_private) as file:
                file.write(text)
            unfinished.replace(path)


@dataclass
class Reported:
    """What was written.

    Attributes:
        now: what the last job did last; empty where none ran.
        bytes_by_job: what left on one day.
    """

    now: dict[str, Any] = field(default_factory=dict)
    bytes_by_job: dict[str, int] = field(default_factory=dict)


def read_report(root: Path, day: str) -> Reported:
    """Return what a site's jobs wrote.

    Args:
        root: the site's folder.
        day: of what left, in UTC: ``2026-11-25``.
    """
    reported = Reported()
    with contextlib.suppress(OSError, ValueError):
        reported.now = json.loads((root / RUN_FOLDER / _NOW_FILE).read_text(encoding="utf-8"))
    with contextlib.suppress(OSError), (root / RUN_FOLDER / _LEFT_FILE).open(encoding="utf-8") as file:
        for line in file:
            with contextlib.suppress(ValueError, KeyError, TypeError):
                entry = json.loads(line)
                if str(entry["at"]).startswith(day):
                    job = str(entry["job"])
                    reported.bytes_by_job[job] = reported.bytes_by_job.get(job, 0) + int(entry["bytes"])
    return reported


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
