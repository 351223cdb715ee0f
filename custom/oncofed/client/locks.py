"""Exclusive locks on files."""

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
    """Wait until this process has locked one of several files.

    The system releases a lock with the process, also when that is killed.

    Args:
        files: candidates.
        give_up: polled before each further try; true ends the wait.
        seconds_between: tries.

    Returns:
        The file that is locked; None after ``give_up``.

    Raises:
        FederationError: files cannot be locked there.
    """
    while True:
        held = first_free(files)
        if held or give_up():
            return held
        time.sleep(seconds_between)


def wait_in_line(file: IO[str], others: Sequence[IO[str]], give_up: Callable[[], bool]) -> IO[str] | None:
    """Wait in line for a file's lock.

    Ends early if another file is free.

    Waiting takes no processor time, and the lock is handed on at once. The other files are polled every two seconds:
    the process that holds the first may hang.

    Args:
        file: to wait for. Close it if it is not returned: the system may still lock it for this process later.
        others: alternative files.
        give_up: polled every two seconds; true ends the wait.

    Returns:
        The file that is locked; None after ``give_up``.

    Raises:
        FederationError: files cannot be locked there.
    """
    held = first_free([file, *others])
    if held:
        return held
    arrived, failed = threading.Event(), list[OSError]()
    # The lock lasts until every descriptor of the file is closed, this thread's and the caller's.
    descriptor = os.dup(file.fileno())

    def wait() -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            failed.append(error)
        finally:
            os.close(descriptor)
        arrived.set()

    threading.Thread(target=wait, name="in-line", daemon=True).start()
    while not arrived.wait(_SECONDS_IN_LINE):
        held = first_free(others)
        if held or give_up():
            return held
    if failed:
        raise _not_lockable(file, failed[0])
    return file


def first_free(files: Sequence[IO[str]]) -> IO[str] | None:
    """Lock and return the first free file, if any.

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
