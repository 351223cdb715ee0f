"""Folders that only their owner can enter.

For private files see ``oncofed.private_files``.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

_OWNER_ONLY = 0o700


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
