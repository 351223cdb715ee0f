"""Files readable by their owner alone.

Keys, salts, kits, a site's local figures.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from oncofed.atomic import create_whole, write_whole

_OWNER_ONLY = 0o600
_SECRET_BYTES = 32


def open_private(path: str | Path, flags: int) -> int:
    """Open a file that only its owner can read.

    An ``opener`` for ``open``: a file that it creates has these permissions from its first moment.
    """
    return os.open(path, flags, _OWNER_ONLY)


def write_private(path: Path, content: bytes) -> None:
    """Replace a private file atomically, creating its folder.

    Args:
        path: of the file; a folder that is created can be entered by its owner alone.
        content: all of it.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_whole(path, content, _OWNER_ONLY)


def random_secret(path: Path) -> bytes:
    """Return a file's random secret, created at first use.

    Processes that create it at the same moment agree on one, and one that is killed leaves none.

    Args:
        path: of the file, which then holds 32 random bytes; its folder must exist.
    """
    if not path.exists():
        create_whole(path, secrets.token_bytes(_SECRET_BYTES))
    return path.read_bytes()
