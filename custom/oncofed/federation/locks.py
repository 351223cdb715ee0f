"""Files that one process at a time may hold."""

from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Callable, Sequence
from typing import IO

_SECONDS_BETWEEN_TRIES = 0.05


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
    """
    while True:
        for file in files:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return file
        if give_up():
            return None
        time.sleep(seconds_between)
