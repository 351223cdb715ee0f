"""One machine for several sites: they take turns at its GPU, or in a simulation at its cores."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from nvflare.apis.signal import Signal

from oncofed.federation.locks import wait_for_lock, wait_in_line
from oncofed.processes import AT_ONCE_VARIABLE, TURN_VARIABLE

# Who is next looks often for a place, as cores are idle until it does. The others stand in line behind it.
_SECONDS_OF_THE_NEXT = 0.01


@contextlib.contextmanager
def machine_turn(abort_signal: Signal) -> Iterator[None]:
    """Hold a share of the machine while the block runs, where sites of this machine were told to share it.

    One at a time holds the GPU. On the CPU as many hold cores as whoever started the sites says, or all: those that
    compute at the same time on the same cores push each other's data out of the caches.

    The locks are the system's: they go with the process that holds them, also when that is killed. FLARE's own resource
    manager gives a GPU to one job at a time; the sites of one job would all be given it at once.
    """
    name = os.environ.get(TURN_VARIABLE)
    at_once = 1 if torch.cuda.is_available() else int(os.environ.get(AT_ONCE_VARIABLE, "0"))
    if not name or not at_once:
        yield
        return

    def give_up() -> bool:
        return bool(abort_signal.triggered)

    with contextlib.ExitStack() as files:
        places = [files.enter_context(Path(f"{name}.{number}").open("w")) for number in range(at_once)]
        with Path(f"{name}.next").open("w") as following:
            if wait_in_line(following, places, give_up) is following:
                wait_for_lock(places, give_up, _SECONDS_OF_THE_NEXT)
        yield
