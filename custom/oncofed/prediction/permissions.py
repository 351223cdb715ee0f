"""Folders that only their owner can enter.

For private files see ``oncofed.private_files``.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

_OWNER_ONLY = 0o700
_FILES_OWNER_ONLY = 0o600


def make_private(folder: Path) -> None:
    """Create a folder and its parents for the owner only.

    Existing folders keep their mode.

    Raises:
        OSError: it cannot be created.
    """
    for path in (*reversed(folder.parents), folder):
        if not path.is_dir():
            path.mkdir(_OWNER_ONLY, exist_ok=True)


def enforce_private(folder: Path) -> None:
    """Create a private folder, or make an existing one private.

    Raises:
        OSError: it cannot be created.
    """
    make_private(folder)
    with contextlib.suppress(OSError):  # owned by another user, or a drive without permissions
        folder.chmod(_OWNER_ONLY)


def make_files_private(folder: Path) -> None:
    """Give all files of a folder to their owner only, whichever library wrote them."""
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            with contextlib.suppress(OSError):  # a drive without permissions
                path.chmod(_FILES_OWNER_ONLY)
