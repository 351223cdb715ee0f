"""One GPU for several sites: they take turns."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from nvflare.apis.signal import Signal

from oncofed.federation.locks import wait_for_lock
from oncofed.processes import TURN_VARIABLE


@contextlib.contextmanager
def gpu_turn(abort_signal: Signal) -> Iterator[None]:
    """Hold the machine's GPU while the block runs, where sites of this machine were told to share one.

    The lock is the system's: it goes with the process that holds it, also when that is killed. FLARE's own resource
    manager gives a GPU to one job at a time; the sites of one job would all be given it at once.
    """
    name = os.environ.get(TURN_VARIABLE)
    if not name or not torch.cuda.is_available():
        yield
        return
    with Path(name).open("w") as file:
        wait_for_lock(file, lambda: bool(abort_signal.triggered))
        yield
