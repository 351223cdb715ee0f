"""Files that one process at a time may hold."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import IO

from oncofed.errors import FederationError
from oncofed.locking import lock_error

_SECONDS_BETWEEN_TRIES = 0.05
_SECONDS_IN_LINE = 2.0


def wait_for_lock(
    files: Sequence[IO[str]], give_up: Callable[[], bool], seconds_between: float = _SECONDS_BETWEEN_TRIES
) -> IO[str] | None:
    """Wait until this process alone holds one of the files.

    The system lets go of it with the process, also when that is killed.

    Args:
        files: of which one is enough.
        give_up: asked before each further try.
        seconds_between: two tries.

    Returns:
        The one that it holds; None where ``give_up`` said so before.

    Raises:
        FederationError: files cannot be locked there.
    """
    while True:
        held = first_free(files)
        if held or give_up():
            return held
        time.sleep(seconds_between)


def wait_in_line(file: IO[str], others: Sequence[IO[str]], give_up: Callable[[], bool]) -> IO[str] | None:
    """Wait until this process alone holds a file, in the system's line of those that do, or else another.

    Waiting takes no time of the processor, and the file is handed on at once. Every other second it is seen whether
    another file is free: who holds the first may hang.

    Args:
        file: is waited for. To be closed where another one is returned, or none: it may be this process's turn later.
        others: of which one serves as well.
        give_up: asked every other second.

    Returns:
        The one that it holds; None where ``give_up`` said so before.

    Raises:
        FederationError: files cannot be locked there.
    """
    held = first_free([file, *others])
    if held:
        return held
    arrived, failed = threading.Event(), list[OSError]()
    # What is held is held until every descriptor of the file is closed, this thread's and the caller's.
    descriptor = os.dup(file.fileno())

    def stand() -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            failed.append(error)
        finally:
            os.close(descriptor)
        arrived.set()

    threading.Thread(target=stand, name="in-line", daemon=True).start()
    while not arrived.wait(_SECONDS_IN_LINE):
        held = first_free(others)
        if held or give_up():
            return held
    if failed:
        raise _not_lockable(file, failed[0])
    return file


def first_free(files: Sequence[IO[str]]) -> IO[str] | None:
    """Take and return the first file that nobody holds; None where there is none.

    Raises:
        FederationError: files cannot be locked there.
    """
    for file in files:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        except OSError as error:
            raise _not_lockable(file, error) from None
        return file
    return None


def _not_lockable(file: IO[str], error: OSError) -> FederationError:
    return lock_error(file.name, error.strerror or str(error), "Run on a disk of this machine.")
