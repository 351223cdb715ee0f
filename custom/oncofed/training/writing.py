"""Checkpoints written while training continues."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from oncofed.training.checkpoint import Tensors, write_checkpoint

_ALIGNMENT = 64


class CheckpointWriter:
    """Writes checkpoints one after the other.

    Each begins when the previous one is on disk.

    From a GPU all tensors are copied at once, into pinned memory; a thread waits for the copy and writes, so the next
    step does not change the checkpoint. That memory is kept for the next one. On the CPU the copy alone would take
    longer than writing, which is done synchronously.

    A thread lives from ``write`` to ``wait`` at most, and the process waits for its end.

    Args:
        path: of the file; see ``write_checkpoint``.
        beside: whether a thread writes.
    """

    def __init__(self, path: Path, beside: bool) -> None:
        self._path = path
        self._beside = beside
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._thread: threading.Thread | None = None
        self._failed: BaseException | None = None

    @property
    def writing(self) -> bool:
        """Whether a checkpoint is still being written."""
        return self._thread is not None

    def write(self, tensors: Tensors, facts: dict[str, Any]) -> None:
        """Write a snapshot of tensors, and facts.

        If a thread writes, ``wait`` reports errors.

        Raises:
            OSError: it, or the previous one, could not be written; the last one on disk stays.
        """
        self.wait()
        if not self._beside:
            write_checkpoint(self._path, tensors, facts)
            return
        copies = self._copied(tensors)
        events = [_now_on(device) for device in {value.device for value in tensors.values()} if device.type == "cuda"]
        self._thread = threading.Thread(target=self._run, args=(copies, facts, events), name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Return when the last one is on disk.

        Raises:
            OSError: it could not be written; the previous one stays.
        """
        if self._thread:
            self._thread.join()
        self._thread, failed, self._failed = None, self._failed, None
        if failed:
            raise failed

    def _run(self, tensors: Tensors, facts: dict[str, Any], events: list[torch.cuda.Event]) -> None:
        try:
            for event in events:
                event.synchronize()
            write_checkpoint(self._path, tensors, facts)
        except BaseException as error:  # noqa: BLE001 - ``wait`` raises it
            self._failed = error

    def _copied(self, tensors: Tensors) -> Tensors:
        """Return copies in one piece of memory.

        Those of a GPU's tensors are complete once its stream reaches this point.
        """
        sizes = [-(-value.nbytes // _ALIGNMENT) * _ALIGNMENT for value in tensors.values()]
        if sum(sizes) > len(self._memory):
            self._memory = _memory(sum(sizes), any(value.is_cuda for value in tensors.values()))
        copies, begin = {}, 0
        for (name, value), size in zip(tensors.items(), sizes, strict=True):
            room = self._memory[begin : begin + value.nbytes]
            copies[name] = room.view(value.dtype).view(value.shape).copy_(value.detach(), non_blocking=True)
            begin += size
        return copies


def _memory(size: int, pinned: bool) -> Tensor:
    try:
        return torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
    except RuntimeError:  # the limit of pinned memory is reached: a copy then takes longer
        return torch.empty(size, dtype=torch.uint8)


def _now_on(device: torch.device) -> torch.cuda.Event:
    """Record an event after all work queued on a device."""
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))
    return event
