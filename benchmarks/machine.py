"""On what a benchmark ran."""

from __future__ import annotations

import psutil

from oncofed.job.outcome import environment


def machine() -> dict[str, str | int | None]:
    """Return versions, device, cores and memory of this machine, as baselines record them."""
    return {**environment(), "cores": psutil.cpu_count(), "memory_gib": psutil.virtual_memory().total >> 30}
