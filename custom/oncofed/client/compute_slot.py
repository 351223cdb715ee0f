"""One machine for several sites: they take turns at its GPU, or in a simulation at its cores."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

import torch

from oncofed.client.locks import first_free, wait_for_lock, wait_in_line
from oncofed.processes import AT_ONCE_VARIABLE, TURN_VARIABLE, sharing_processes

# Who is next looks often for a place, as cores are idle until it does. The others stand in line behind it.
_SECONDS_OF_THE_NEXT = 0.01


def give_gpu_memory_back() -> None:
    """Leave to the others that share this machine the GPU memory that PyTorch keeps for its next use; tensors stay.

    Where nobody shares it, or this process uses no GPU, nothing is done.
    """
    if sharing_processes() > 1 and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()


class ComputeSlot:
    """A site's turn at the machine, where sites of this machine were told to share it.

    One at a time holds the GPU. On the CPU as many hold cores as whoever started the sites says, or all: those that
    compute at the same time on the same cores push each other's data out of the caches.

    Only who holds a place, and the one that is next, asks for its task: those in line behind it would hold a model each
    meanwhile, as would the server for each of them, and one that is older than what the server has when they begin.

    The locks are the system's: they go with the process that holds them, also when that is killed. FLARE's own resource
    manager gives a GPU to one job at a time; the sites of one job would all be given it at once.
    """

    def __init__(self) -> None:
        self._files = contextlib.ExitStack()
        self._places: Sequence[IO[str]] = ()
        self._next: IO[str] | None = None  # while this one is next

    def line_up(self, give_up: Callable[[], bool]) -> None:
        """Wait until this site has a place or is next.

        Args:
            give_up: asked every other second.
        """
        self.leave()
        name = os.environ.get(TURN_VARIABLE)
        if not name:
            return
        at_once = 1 if torch.cuda.is_available() else int(os.environ.get(AT_ONCE_VARIABLE, "0"))
        if not at_once:
            return
        with contextlib.ExitStack() as files:
            places = [files.enter_context(Path(f"{name}.{number}").open("w")) for number in range(at_once)]
            following = files.enter_context(Path(f"{name}.next").open("w"))
            if wait_in_line(following, places, give_up) is following and not first_free(places):
                self._next = following
            else:
                following.close()
            self._places, self._files = places, files.pop_all()

    @contextlib.contextmanager
    def hold(self, give_up: Callable[[], bool]) -> Iterator[None]:
        """Hold a place while the block runs; who did not line up does so first.

        Args:
            give_up: asked while it waits; once it says so the block runs without a place.
        """
        if not self._places:
            self.line_up(give_up)
        if self._next:
            wait_for_lock(self._places, give_up, _SECONDS_OF_THE_NEXT)
            self._next.close()
        try:
            yield
        finally:
            self.leave()

    def leave(self) -> None:
        """Let others have what this site holds."""
        if self._places:
            give_gpu_memory_back()
        self._files.close()
        self._places, self._next = (), None
