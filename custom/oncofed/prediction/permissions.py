"""Permissions that keep patient data private to their owner."""

from __future__ import annotations

import contextlib
from pathlib import Path

OWNER_ONLY_FOLDER = 0o700
OWNER_ONLY_FILE = 0o600


def make_private(folder: Path) -> None:
    """Create a folder and its parents for the owner only.

    Existing folders keep their mode.

    Raises:
        OSError: it cannot be created.
    """
    for path in (*reversed(folder.parents), folder):
        if not path.is_dir():
            path.mkdir(OWNER_ONLY_FOLDER, exist_ok=True)


def enforce_private(folder: Path) -> None:
    """Create a private folder, or make an existing one private.

    Raises:
        OSError: it cannot be created.
    """
    make_private(folder)
    with contextlib.suppress(OSError):  # owned by another user, or a drive without permissions
        folder.chmod(OWNER_ONLY_FOLDER)
