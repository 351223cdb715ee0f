"""Folders of patients' images and of what was found on them: nobody but their owner looks into them."""

from __future__ import annotations

import contextlib
from pathlib import Path

OWNER_ALONE = 0o700
FILE_OF_OWNER = 0o600


def make_private(folder: Path) -> None:
    """Make a folder, and each that it lies in and that is not there, for its owner alone; one that is there stays so.

    Raises:
        OSError: it cannot be made.
    """
    for path in (*reversed(folder.parents), folder):
        if not path.is_dir():
            path.mkdir(OWNER_ALONE, exist_ok=True)


def keep_private(folder: Path) -> None:
    """Make a folder that is the program's own, for its owner alone also where it was there.

    Raises:
        OSError: it cannot be made.
    """
    make_private(folder)
    with contextlib.suppress(OSError):  # of another user, or on a drive without permissions
        folder.chmod(OWNER_ALONE)
