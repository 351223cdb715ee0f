"""Reading many files in several processes, with flat memory and a clean end."""

from __future__ import annotations

import multiprocessing
import os
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from types import TracebackType
from typing import TypeVar

from oncofed.errors import DataError
from oncofed.processes import deaf_to_interrupts, end_with_parent

T = TypeVar("T")
R = TypeVar("R")

# Starting processes costs about as long as reading this many small images.
_FEWEST_FOR_PROCESSES = 64
_WAITING_PER_WORKER = 4


class Workers:
    """Processes that are started when there is enough to do, and kept for what comes next; use it as a context manager.

    Args:
        count: of processes; None: one a core.
    """

    def __init__(self, count: int | None = None) -> None:
        self._count = count or os.cpu_count() or 1
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is None:
            return
        if error is not None:
            for process in list(self._pool._processes.values()):
                process.kill()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def map(self, function: Callable[[T], R], items: Sequence[T], fewest: int = _FEWEST_FOR_PROCESSES) -> Iterator[R]:
        """Yield ``function(item)`` for each item, in the order in which they are done.

        Args:
            function: of a module's top level.
            items: to work on.
            fewest: items for which processes are started; fewer are worked on in this one.

        Raises:
            DataError: a process ended abruptly.
        """
        if self._count == 1 or (self._pool is None and len(items) < fewest) or len(items) < 2:
            yield from map(function, items)
            return
        try:
            yield from self._sliding(function, items)
        except BrokenProcessPool:
            raise DataError(
                "a process that read images ended abruptly, perhaps for want of memory. What was read is kept: "
                "run the command again, with fewer processes if need be: --workers 1"
            ) from None

    def _sliding(self, function: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self._count, context, initializer=_start)
        iterator = iter(items)
        with deaf_to_interrupts():
            first = islice(iterator, self._count * _WAITING_PER_WORKER)
            pending: set[Future[R]] = {self._pool.submit(function, item) for item in first}
        while pending:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
            pending |= {self._pool.submit(function, item) for item in islice(iterator, len(done))}


def _start() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    warnings.filterwarnings("ignore")
