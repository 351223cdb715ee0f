"""What NVIDIA's driver says of this machine's GPUs. It is asked by command: no CUDA context is made for a question."""

from __future__ import annotations

import ctypes
import os
import subprocess
from dataclasses import dataclass

from oncofed.errors import FederationError

_QUERY = ("index", "name", "driver_version", "memory.total", "memory.free", "utilization.gpu")
_SECONDS = 8.0
# cuda.h, CUresult: what the driver answers before anybody has initialised it, and where that found no GPU.
_NOT_INITIALIZED, _NO_DEVICE = 3, 100


def cuda_is_initialised() -> bool:
    """Return whether something initialised CUDA in this process: none of its forks could use a GPU.

    A driver's library that nothing has loaded is not loaded for the question, which initialises nothing either.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1", mode=os.RTLD_NOLOAD)
    except (OSError, AttributeError):
        return False
    return driver.cuDeviceGetCount(ctypes.byref(ctypes.c_int())) not in (_NOT_INITIALIZED, _NO_DEVICE)


@dataclass(frozen=True)
class GPU:
    """A GPU.

    Attributes:
        number: as nvidia-smi counts.
        name: of the product.
        driver: its version.
        total_gib: memory.
        free_gib: memory that nothing uses.
        busy_percent: of the last moments in which something ran on it; None where the driver does not say.
    """

    number: int
    name: str
    driver: str
    total_gib: float
    free_gib: float
    busy_percent: int | None


def read_gpus() -> list[GPU]:
    """Return this machine's GPUs; none where there is no NVIDIA driver.

    Raises:
        FederationError: there is a driver, which does not work.
    """
    command = ["nvidia-smi", f"--query-gpu={','.join(_QUERY)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except FileNotFoundError:
        return []
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FederationError(f"nvidia-smi: {error}") from None
    rows = [[part.strip() for part in line.split(",")] for line in done.stdout.splitlines()]
    try:
        gpus = [_gpu(*row) for row in rows]
    except (TypeError, ValueError):
        gpus = []
    if done.returncode or not gpus:
        said = (done.stdout + done.stderr).strip().splitlines()
        raise FederationError(f"nvidia-smi says: {said[0] if said else 'nothing'}")
    return gpus


def _gpu(number: str, name: str, driver: str, total: str, free: str, busy: str) -> GPU:
    percent = int(busy) if busy.isdigit() else None
    return GPU(int(number), name, driver, int(total) / 1024, int(free) / 1024, percent)
