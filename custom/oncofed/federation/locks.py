"""Files that one process at a time may hold."""

from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Callable
from typing import IO

_SECONDS_BETWEEN_TRIES = 0.05


def wait_for_lock(file: IO[str], give_up: Callable[[], bool]) -> bool:
    """Wait until this process alone holds a file; the system lets go of it with the process, also when that is killed.

    Returns:
        Whether it holds it; false where ``give_up``, asked twenty times a second, said so before.
    """
    while True:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        if give_up():
            return False
        time.sleep(_SECONDS_BETWEEN_TRIES)
