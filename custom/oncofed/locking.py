"""Whether files in a folder can be locked.

Some network drives do not allow it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from oncofed.errors import FederationError

# A byte that no program locks; SQLite locks beyond the first GiB.
_UNUSED_BYTE = 1 << 20
_HELD = (errno.EAGAIN, errno.EACCES)  # by another process


def why_not_lockable(folder: Path) -> str:
    """Return why files in a folder cannot be locked (``flock``).

    In the system's words; empty if they can.

    Raises:
        OSError: no file can be created there.
    """
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return error.strerror or str(error)
    return ""


def has_record_locks(file: Path) -> bool:
    """Return whether byte ranges of a file can be locked.

    By ``fcntl``, as SQLite does. Creates a missing file.

    Call it before this process locks the file: closing any descriptor of it releases all locks of the process.

    Raises:
        OSError: the file is not writable.
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
    """Require that a folder's files can be locked.

    Without locks processes would overwrite each other's files.

    Args:
        folder: existing.
        instead: what to do, as a sentence.

    Raises:
        FederationError: names the folder.
    """
    why = why_not_lockable(folder)
    if why:
        raise lock_error(folder, why, instead)


@contextlib.contextmanager
def sole_process(file: Path, busy: Exception) -> Iterator[None]:
    """Keep other processes from what a lock file stands for, where the drive has locks.

    Without them the person sees to it.

    Args:
        file: is created where it is missing.
        busy: raised where another process holds it.
    """
    with file.open("w") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise busy from None
        except OSError:  # a network drive without locks
            pass
        yield


def lock_error(path: Path | str, why: str, instead: str) -> FederationError:
    """Return the error for a path that cannot be locked."""
    return FederationError(
        f"{path} cannot be locked ({why}): some network drives are mounted without locks, which a run needs. {instead}"
    )
