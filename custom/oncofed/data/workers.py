"""A pool of processes that read files in constant memory."""

from __future__ import annotations

import os
import signal
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import NoReturn, TypeVar

from oncofed.errors import DataError
from oncofed.lean_imports import import_monai_leanly
from oncofed.processes import block_interrupts, end_with_starter, ready_context

T = TypeVar("T")
R = TypeVar("R")

# Starting processes takes about as long as reading this many small images.
_FEWEST_FOR_PROCESSES = 64
_WAITING_PER_WORKER = 4
# Reason for leaving out a file that ended a process abruptly.
BROKE_ITS_READER = (
    "the process that read it ended abruptly: it needs more memory than there is, or is malformed. Copy it again, or "
    "run the command with --workers 1"
)


class Workers:
    """A pool of reading processes; a context manager.

    It starts when the work is worth it, and stays for later work.

    Args:
        count: of processes; None: one per core.
    """

    def __init__(self, count: int | None = None) -> None:
        self._count = count or os.cpu_count() or 1
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave(kill=error is not None)

    def map(
        self,
        function: Callable[[T], R],
        items: Sequence[T],
        fewest: int = _FEWEST_FOR_PROCESSES,
        broken: Callable[[T], R] | None = None,
    ) -> Iterator[R]:
        """Yield ``function(item)`` of each item, as completed.

        Args:
            function: at a module's top level.
            items: to work on.
            fewest: items from which processes are started; fewer are handled in this process.
            broken: returns a substitute for an item that ended a process abruptly; None: it is an error.

        Raises:
            DataError: a process ended abruptly, or cannot be started.
        """
        if self._count == 1 or (self._pool is None and len(items) < fewest) or len(items) < 2:
            yield from map(function, items)
            return
        waiting, pending = deque(items), dict[Future[R], T]()
        while waiting or pending:
            try:
                while waiting and len(pending) < self._count * _WAITING_PER_WORKER:
                    pending[self._submit(function, waiting[0])] = waiting[0]
                    waiting.popleft()
                done, _ = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    result = future.result()
                    del pending[future]
                    yield result
            except BrokenProcessPool:  # noqa: PERF203 - several files may break a process
                self._leave(kill=True)
                # If even this fails, no file is to blame.
                self._alone(abs, 0, _not_started)
                if broken is None:
                    raise DataError(
                        "a process that read images ended abruptly, perhaps for want of memory. What was read is kept: "
                        "run the command again, with fewer processes if need be: --workers 1"
                    ) from None
                # One of these broke the process; the others only ran with it.
                for item in pending.values():
                    yield self._alone(function, item, broken)
                pending.clear()

    def _alone(self, function: Callable[[T], R], item: T, broken: Callable[[T], R]) -> R:
        try:
            return self._submit(function, item).result()
        except BrokenProcessPool:
            self._leave(kill=True)
            return broken(item)

    def _submit(self, function: Callable[[T], R], item: T) -> Future[R]:
        if self._pool is None:
            self._pool = ProcessPoolExecutor(self._count, ready_context(), initializer=_start)
        with block_interrupts():
            return self._pool.submit(function, item)

    def _leave(self, kill: bool) -> None:
        """End the processes; busy ones finish unless killed."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        if kill:
            for process in list((pool._processes or {}).values()):
                process.kill()
        pool.shutdown(wait=True, cancel_futures=True)


def _not_started(item: int) -> NoReturn:
    del item
    raise DataError(
        "the processes that read images do not start. Put what a script of your own does below "
        '`if __name__ == "__main__":`, or they would do it too; with one worker no other process is needed'
    ) from None


def _start() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_starter()
    import_monai_leanly()
    warnings.filterwarnings("ignore")
