"""The server's job process: FLARE's own, which can read tensors from its first message on, and gives memory back.

FLARE's learns of tensors with its job's classes, after it is connected. A site that sends its update in that second,
as happens when the process was started anew, would end it.
"""

from __future__ import annotations

import contextlib
import ctypes
import runpy

from oncofed.federation.exchange import register_tensors

# mallopt(3): M_ARENA_MAX, M_MMAP_THRESHOLD.
_MOST_ARENAS = (-8, 2)
_LARGEST_ON_HEAP = (-3, 1 << 20)


def give_memory_back() -> None:
    """Have the C library return large blocks to the system when they are freed.

    glibc keeps blocks of up to 32 MiB on heaps of its own, one for each of many threads: a server that passes a model
    on in chunks would hold several models' worth of free memory. Elsewhere this does nothing.
    """
    with contextlib.suppress(OSError, AttributeError):
        for setting in (_MOST_ARENAS, _LARGEST_ON_HEAP):
            ctypes.CDLL(None).mallopt(*setting)


if __name__ == "__main__":
    give_memory_back()
    register_tensors()
    runpy.run_module("nvflare.private.fed.app.server.runner_process", run_name="__main__", alter_sys=True)
