"""Keep the memory of a job's process low.

Such a process passes on models in chunks on many threads. glibc gives each thread a separate heap, and keeps what was
freed on each: several models' worth in the end. Mapping every chunk separately instead (a low ``M_MMAP_THRESHOLD``)
keeps memory low too, but then the system takes longer to clear pages than the exchange takes. So all threads share one
heap, and its free pages are returned now and then. Without glibc the functions for the heap do nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc

# mallopt(3): M_ARENA_MAX, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD. The second is the largest that glibc allows. By default
# it starts low and rises, and the third with it, at twice its value. Once one is set the other stays at 128 KiB: each
# training step would return its memory, and wait for the system to clear new pages.
_ONE_HEAP = (-8, 1)
_LARGEST_ON_HEAP = (-3, 32 << 20)
_KEPT_ON_TOP = (-1, 64 << 20)


def share_one_heap() -> None:
    """Share one heap among threads; call it before starting any."""
    with contextlib.suppress(OSError, AttributeError):
        for setting in (_ONE_HEAP, _LARGEST_ON_HEAP, _KEPT_ON_TOP):
            ctypes.CDLL(None).mallopt(*setting)


def forget_what_stays() -> None:
    """Exempt all present objects from garbage collection.

    A job's process keeps them to its end, and Python would scan them during an exchange.
    """
    gc.collect()
    gc.freeze()


def trim_heap() -> None:
    """Return the heap's free pages to the system (malloc_trim(3))."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
