"""What a check is given, and how it measures."""

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
    """What a check is given.

    Attributes:
        device: to check on; on a CPU everything is as small as can be.
        folder: for whatever it writes. What one check generated there others find.
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
        """Wait until the GPU has done what it was given."""
        if self.cuda:
            torch.cuda.synchronize()

    def seconds(self, program: Callable[[], object]) -> float:
        """Return how long a program takes, until the GPU has done what it was given."""
        self.synchronize()
        begun = time.perf_counter()
        program()
        self.synchronize()
        return time.perf_counter() - begun

    def median_seconds(self, program: Callable[[], object], times: int = 3) -> float:
        """Return the median of several times, the same on a CPU in one."""
        return statistics.median(self.seconds(program) for _ in range(times if self.cuda else 1))

    def forget_peak(self) -> None:
        """Give cached memory back, and count the peak anew."""
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak_gib(self) -> float:
        """Return the most memory in GiB that tensors took since the peak was forgotten; 0 on a CPU."""
        return torch.cuda.max_memory_allocated() / GIB if self.cuda else 0.0

    def peak_reserved_gib(self) -> float:
        """Return the most memory in GiB that was taken from the GPU, caches included; 0 on a CPU."""
        return torch.cuda.max_memory_reserved() / GIB if self.cuda else 0.0
