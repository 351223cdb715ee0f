"""Compute slots, shared by the sites of one machine."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

import torch

from oncofed.client.locks import first_free, wait_for_lock, wait_in_line
from oncofed.processes import AT_ONCE_VARIABLE, TURN_VARIABLE, sharing_processes

# The next site in line polls often for a slot, as cores are idle until it gets one. The others wait behind it.
_SECONDS_BETWEEN_POLLS = 0.01


def give_gpu_memory_back() -> None:
    """Release cached GPU memory, if other processes share this machine.

    Tensors stay.
    """
    if sharing_processes() > 1 and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()


class ComputeSlot:
    """A site's compute slot.

    It is used where the environment names the machine's lock files.

    One site at a time holds the GPU. On the CPU, the environment gives the number of slots: sites that compute on the
    same cores evict each other's data from the caches.

    Only sites with a slot, and the one that is next, fetch their task. Each of the others would hold a model while it
    waits, as would the server for each of them, and that model may be outdated when they start.

    The system releases a lock with the process that holds it, also when that is killed. FLARE's own resource manager
    gives a GPU to one job at a time, and so to all sites of a job at once.
    """

    def __init__(self) -> None:
        self._files = contextlib.ExitStack()
        self._slots: Sequence[IO[str]] = ()
        self._next: IO[str] | None = None  # while this site is next

    def line_up(self, give_up: Callable[[], bool]) -> None:
        """Wait until this site has a slot or is next.

        Args:
            give_up: polled every two seconds; true ends the wait.
        """
        self.leave()
        name = os.environ.get(TURN_VARIABLE)
        if not name:
            return
        at_once = 1 if torch.cuda.is_available() else int(os.environ.get(AT_ONCE_VARIABLE, "0"))
        if not at_once:
            return
        with contextlib.ExitStack() as files:
            slots = [files.enter_context(Path(f"{name}.{number}").open("w")) for number in range(at_once)]
            following = files.enter_context(Path(f"{name}.next").open("w"))
            if wait_in_line(following, slots, give_up) is following and not first_free(slots):
                self._next = following
            else:
                following.close()
            self._slots, self._files = slots, files.pop_all()

    @contextlib.contextmanager
    def hold(self, give_up: Callable[[], bool]) -> Iterator[None]:
        """Hold a slot for the block; line up if needed.

        Args:
            give_up: polled while it waits; once true, the block runs without a slot.
        """
        if not self._slots:
            self.line_up(give_up)
        if self._next:
            wait_for_lock(self._slots, give_up, _SECONDS_BETWEEN_POLLS)
            self._next.close()
        try:
            yield
        finally:
            self.leave()

    def leave(self) -> None:
        """Release the slot."""
        if self._slots:
            give_gpu_memory_back()
        self._files.close()
        self._slots, self._next = (), None
