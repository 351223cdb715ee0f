"""Context and measuring tools of checks."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from gpu_checks.results import Report

GIB = 2**30


@dataclass(frozen=True)
class Context:
    """Context of a check.

    Attributes:
        device: to check on; on a CPU everything is as small as can be.
        folder: for all files. Other checks reuse what one check generated there.
        report: takes what it finds.
    """

    device: torch.device
    folder: Path
    report: Report

    @property
    def cuda(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"

    def synchronize(self) -> None:
        """Wait for the GPU."""
        if self.cuda:
            torch.cuda.synchronize()

    def seconds(self, program: Callable[[], object]) -> float:
        """Return a program's seconds, with its work on the GPU."""
        self.synchronize()
        begun = time.perf_counter()
        program()
        self.synchronize()
        return time.perf_counter() - begun

    def median_seconds(self, program: Callable[[], object], times: int = 3) -> float:
        """Return the median of several times.

        On a CPU the time of one call.
        """
        return statistics.median(self.seconds(program) for _ in range(times if self.cuda else 1))

    def forget_peak(self) -> None:
        """Release cached memory, and reset the peak."""
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak_gib(self) -> float:
        """Return peak tensor memory since the reset.

        In GiB; 0 on a CPU.
        """
        return torch.cuda.max_memory_allocated() / GIB if self.cuda else 0.0

    def peak_reserved_gib(self) -> float:
        """Return peak reserved GPU memory, with caches.

        In GiB; 0 on a CPU.
        """
        return torch.cuda.max_memory_reserved() / GIB if self.cuda else 0.0
