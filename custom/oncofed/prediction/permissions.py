"""Folders of patients' images and of what was found on them: nobody but their owner looks into them."""

from __future__ import annotations

import contextlib
from pathlib import Path

OWNER_ONLY_FOLDER = 0o700
OWNER_ONLY_FILE = 0o600


def make_private(folder: Path) -> None:
    """Make a folder, and each that it lies in and that is not there, for its owner alone; one that is there stays so.

    Raises:
        OSError: it cannot be made.
    """
    for path in (*reversed(folder.parents), folder):
        if not path.is_dir():
            path.mkdir(OWNER_ONLY_FOLDER, exist_ok=True)


def enforce_private(folder: Path) -> None:
    """Make a folder that is the program's own, for its owner alone also where it was there.

    Raises:
        OSError: it cannot be made.
    """
    make_private(folder)
    with contextlib.suppress(OSError):  # of another user, or on a drive without permissions
        folder.chmod(OWNER_ONLY_FOLDER)
