"""A job's current phase, for the site's admin only."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import Any

from oncofed.private_files import open_private

RUN_FOLDER = "run"
# Phases in which a job loses nothing when its processes are stopped.
WAITING, ENDED = "waiting for the other sites", "ended"
_NOW_FILE = "job.json"


class StatusFile:
    """Writes the file; a job continues if that fails.

    Args:
        root: the site's folder.
        job: the job's id.
    """

    def __init__(self, root: Path, job: str) -> None:
        self._folder = root / RUN_FOLDER
        self._job = job

    def now(self, **values: Any) -> None:
        """Write the job's current phase."""
        self._write(_NOW_FILE, json.dumps({"job": self._job, "at": time.time(), **values}))

    def _write(self, name: str, text: str) -> None:
        with contextlib.suppress(OSError):
            self._folder.mkdir(exist_ok=True, mode=0o700)
            unfinished = (self._folder / name).with_suffix(".unfinished")
            with open(unfinished, "w", encoding="utf-8", opener=open_private) as file:
                file.write(text)
            unfinished.replace(self._folder / name)


def read_report(root: Path) -> dict[str, Any]:
    """Return the last job's last status; empty if none.

    Args:
        root: the site's folder.
    """
    with contextlib.suppress(OSError, ValueError):
        return dict(json.loads((root / RUN_FOLDER / _NOW_FILE).read_text(encoding="utf-8")))
    return {}
