"""The C library's heap in a job's process, which passes on models in chunks on many threads.

glibc gives each thread a heap of its own, and keeps on each what was freed: several models' worth in the end. Having it
map every chunk anew instead (a low ``M_MMAP_THRESHOLD``) keeps memory low too, but the system then spends more time on
clearing pages than the exchange takes. So there is one heap, and what is free on it is given back now and then.
Elsewhere than on Linux with glibc the functions for the heap do nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc

# mallopt(3): M_ARENA_MAX, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD. The second is the most that glibc takes; it would begin
# low and rise, and the third with it, at twice as much. Once one is set the other stays at 128 KiB: each step of a
# training would give its memory back, and have the system clear pages for it anew.
_ONE_HEAP = (-8, 1)
_LARGEST_ON_HEAP = (-3, 32 << 20)
_KEPT_ON_TOP = (-1, 64 << 20)


def share_one_heap() -> None:
    """Have all threads use one heap. To be called before there are others."""
    with contextlib.suppress(OSError, AttributeError):
        for setting in (_ONE_HEAP, _LARGEST_ON_HEAP, _KEPT_ON_TOP):
            ctypes.CDLL(None).mallopt(*setting)


def forget_what_stays() -> None:
    """Have Python look for no garbage among what a job's process keeps to its end; it would look during an exchange."""
    gc.collect()
    gc.freeze()


def trim_heap() -> None:
    """Give pages that are free back to the system, wherever on the heap they are (malloc_trim(3))."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
