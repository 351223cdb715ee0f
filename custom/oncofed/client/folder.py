"""Files and lock of a job's folder at a site."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from oncofed.client.locks import wait_for_lock
from oncofed.errors import StateError

# For the site's own use: figures of single cases and of models that it compared, labels to look at, and the model.
CASES_FILE = "test_cases.csv"
CANDIDATES_FILE = "candidates.csv"
DOUBTS_FILE = "label_doubts.csv"
OWN_MODEL = "model"
OWNER_FILE = ".owner"
_LONGEST_WAIT_SECONDS = 60.0


@contextlib.contextmanager
def sole_owner(folder: Path) -> Iterator[None]:
    """Lock a job's folder while the block runs.

    A process whose parent died runs on for seconds, while its successor starts.

    Raises:
        StateError: another process held it for a minute.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / OWNER_FILE).open("w") as file:
        deadline = time.monotonic() + _LONGEST_WAIT_SECONDS
        if not wait_for_lock([file], lambda: time.monotonic() > deadline):
            raise StateError(f"{folder}: another process works on this job; end it first")
        yield
