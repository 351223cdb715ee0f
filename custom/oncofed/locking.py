"""Whether files can be locked in a folder: network drives may be mounted without that."""

from __future__ import annotations

import errno
import fcntl
import os
import tempfile
from pathlib import Path

from oncofed.errors import FederationError

# Where a byte is asked for that no program locks: SQLite's own lie beyond the first GiB.
_UNUSED_BYTE = 1 << 20
_HELD = (errno.EAGAIN, errno.EACCES)  # by another process


def why_not_lockable(folder: Path) -> str:
    """Return why no file in a folder can be locked (``flock``), in the system's words; empty where one can.

    Raises:
        OSError: no file can be made there.
    """
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return error.strerror or str(error)
    return ""


def has_record_locks(file: Path) -> bool:
    """Return whether parts of a file can be locked (``fcntl``), as SQLite does; the file is made where it is missing.

    Only before this process has locked anything of the file: its own locks go where any descriptor of it is closed.

    Raises:
        OSError: it cannot be written to.
    """
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _UNUSED_BYTE)
    except OSError as error:
        return error.errno in _HELD
    finally:
        os.close(descriptor)
    return True


def require_locks(folder: Path, instead: str) -> None:
    """Refuse a folder in which no file can be locked: what runs there would wait for others, or overwrite theirs.

    Args:
        folder: that is there.
        instead: what to do, as a sentence.

    Raises:
        FederationError: names the folder.
    """
    why = why_not_lockable(folder)
    if why:
        raise not_lockable(folder, why, instead)


def not_lockable(path: Path | str, why: str, instead: str) -> FederationError:
    """Return the error for a file or folder that cannot be locked."""
    return FederationError(
        f"{path} cannot be locked ({why}): some network drives are mounted without locks, which a run needs. {instead}"
    )
