"""One GPU for several sites: they take turns."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from nvflare.apis.signal import Signal

_LOOK_SECONDS = 0.05
# Processes that name the same file here take turns; ``oncofed job run`` names one for all sites of a machine.
TURN_VARIABLE = "ONCOFED_GPU_TURN"


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
    path = Path(name) if os.sep in name else Path(tempfile.gettempdir()) / name
    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if abort_signal.triggered:
                    break
                time.sleep(_LOOK_SECONDS)
        yield
