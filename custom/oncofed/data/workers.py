"""Reading many files in several processes, with flat memory and a clean end."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import TypeVar

from oncofed.errors import DataError
from oncofed.processes import deaf_to_interrupts, end_with_parent

T = TypeVar("T")
R = TypeVar("R")

# Starting processes costs about as long as reading this many small files.
_FEWEST_FOR_PROCESSES = 48
_WAITING_PER_WORKER = 4


def in_processes(
    function: Callable[[T], R], items: Sequence[T], workers: int | None = None, fewest: int = _FEWEST_FOR_PROCESSES
) -> Iterator[R]:
    """Yield ``function(item)`` for each item, in the order in which they are done.

    Args:
        function: of a module's top level.
        items: to work on.
        workers: processes; None: one a core.
        fewest: items for which processes are started; fewer are worked on in this one.

    Raises:
        DataError: a process ended abruptly.
    """
    workers = workers or os.cpu_count() or 1
    if workers == 1 or len(items) < fewest:
        yield from map(function, items)
        return
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_start)
    try:
        yield from _sliding(pool, function, iter(items), workers * _WAITING_PER_WORKER)
    except BrokenProcessPool:
        raise DataError(
            "a process that read images ended abruptly, perhaps for want of memory. What was read is kept: "
            "run the command again, with fewer processes if need be: --workers 1"
        ) from None
    except BaseException:
        for process in list(pool._processes.values()):
            process.kill()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _sliding(pool: ProcessPoolExecutor, function: Callable[[T], R], items: Iterable[T], window: int) -> Iterator[R]:
    iterator = iter(items)
    # Signals are set in the main thread alone; elsewhere nobody sends Ctrl-C to the workers.
    main = threading.current_thread() is threading.main_thread()
    with deaf_to_interrupts() if main else contextlib.nullcontext():
        pending: set[Future[R]] = {pool.submit(function, item) for item in islice(iterator, window)}
    while pending:
        done, pending = wait(pending, return_when=FIRST_COMPLETED)
        for future in done:
            yield future.result()
        pending |= {pool.submit(function, item) for item in islice(iterator, len(done))}


def _start() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    warnings.filterwarnings("ignore")
