"""This machine's GPUs by ``nvidia-smi``, without a CUDA context."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from oncofed.errors import FederationError

VISIBLE_VARIABLE = "CUDA_VISIBLE_DEVICES"
_QUERY = ("index", "uuid", "name", "driver_version", "memory.total", "memory.free", "utilization.gpu")
# With eight GPUs and a driver that unloads when idle, it takes more than ten.
_SECONDS = 30.0
# Files of an installed driver, below the root directory.
_ROOT = Path("/")
_TRACES = (
    "dev/nvidia[0-9]*",
    "usr/lib/*-linux-gnu/libcuda.so.1",
    "usr/lib64/libcuda.so.1",
    "usr/lib/wsl/lib/libcuda.so.1",
)
_OF_GPU, _OF_SLICE = r"GPU (\d+):", r"\s+MIG (\S+)\s+Device\s+\d+: \(UUID: (MIG-[^)]+)\)"  # lines of nvidia-smi -L
# cuda.h, CUresult: not initialised, or initialised without a GPU.
_NOT_INITIALIZED, _NO_DEVICE = 3, 100


def cuda_is_initialised() -> bool:
    """Return whether CUDA is initialised in this process.

    Its forks could not use a GPU then.

    This neither loads the driver's library nor initialises it.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1", mode=os.RTLD_NOLOAD)
    except (OSError, AttributeError):
        return False
    return driver.cuDeviceGetCount(ctypes.byref(ctypes.c_int())) not in (_NOT_INITIALIZED, _NO_DEVICE)


@dataclass(frozen=True)
class GPU:
    """A GPU, or a MIG slice of one.

    CUDA treats both alike.

    Attributes:
        number: nvidia-smi's index; a slice has that of its GPU.
        name: of the product.
        driver: version.
        total_gib: memory.
        free_gib: unused memory; for a slice all of it, as nvidia-smi does not report it.
        busy_percent: recent utilisation; None if the driver does not report it.
        uuid: identifies it in every process.
        is_slice: whether it is a MIG slice.
    """

    number: int
    name: str
    driver: str
    total_gib: float
    free_gib: float
    busy_percent: int | None
    uuid: str = ""
    is_slice: bool = False

    @property
    def device(self) -> int | str:
        """Its name in ``CUDA_VISIBLE_DEVICES``.

        GPUs are counted in bus order, as in nvidia-smi.
        """
        return self.uuid if self.is_slice else self.number

    @property
    def is_taken(self) -> bool:
        """Whether other programs use most of its memory."""
        return self.free_gib < self.total_gib / 2


def read_gpus(environment: Mapping[str, str] = os.environ) -> list[GPU]:
    """Return the GPUs visible to a process's environment.

    None without an NVIDIA driver.

    Slurm and containers choose them, and their order, by ``CUDA_VISIBLE_DEVICES``; nvidia-smi lists all.

    Raises:
        FederationError: the driver does not work or answer, or the variable names no GPU of this machine.
    """
    printed = _ask(f"--query-gpu={','.join(_QUERY)}", "--format=csv,noheader,nounits")
    if printed is None:
        return []
    rows = [[part.strip() for part in line.split(",")] for line in printed.splitlines()]
    try:
        gpus = [_gpu(*row) for row in rows]
    except (TypeError, ValueError):
        gpus = []
    if not gpus:
        raise FederationError(f"nvidia-smi says: {printed.strip().splitlines()[0] if printed.strip() else 'nothing'}")
    named = environment.get(VISIBLE_VARIABLE)
    # The driver does not report how busy a GPU with slices is.
    if "MIG-" in (named or "") or any(gpu.busy_percent is None for gpu in gpus):
        gpus = _with_slices(gpus, _ask("-L") or "")
    return gpus if named is None else _visible(gpus, named)


def _ask(*arguments: str) -> str | None:
    """Return nvidia-smi's output; None without a driver."""
    try:
        done = subprocess.run(["nvidia-smi", *arguments], capture_output=True, text=True, timeout=_SECONDS, check=False)
    except FileNotFoundError:
        found = next((path for trace in _TRACES for path in sorted(_ROOT.glob(trace))), None)
        if found is None:
            return None
        raise FederationError(
            f"{found} is there, of a driver, and nvidia-smi is not in PATH. Put it there; in a container: "
            "NVIDIA_DRIVER_CAPABILITIES=compute,utility"
        ) from None
    except subprocess.TimeoutExpired:
        raise FederationError(
            f"nvidia-smi does not answer within {_SECONDS:.0f} s. Run nvidia-smi -pm 1, or restart the machine"
        ) from None
    except OSError as error:
        raise FederationError(f"nvidia-smi: {error.strerror or error}") from None
    if done.returncode:
        lines = (done.stdout + done.stderr).strip().splitlines()
        raise FederationError(f"nvidia-smi says: {lines[0] if lines else 'nothing'}")
    return done.stdout


def _gpu(number: str, uuid: str, name: str, driver: str, total: str, free: str, busy: str) -> GPU:
    percent = int(busy) if busy.isdigit() else None
    return GPU(int(number), name, driver, int(total) / 1024, int(free) / 1024, percent, uuid)


def _with_slices(gpus: Sequence[GPU], listed: str) -> list[GPU]:
    """Replace each GPU that has MIG slices by its slices."""
    by_number = {gpu.number: gpu for gpu in gpus}
    slices: dict[int, list[GPU]] = {}
    parent: GPU | None = None
    for line in listed.splitlines():
        if match := re.match(_OF_GPU, line):
            parent = by_number.get(int(match[1]))
        elif parent and (match := re.match(_OF_SLICE, line)):
            memory = re.search(r"(\d+)gb", match[1])
            gib = float(memory[1]) if memory else 0.0
            part = GPU(
                parent.number, f"{parent.name} {match[1]}", parent.driver, gib, gib, None, match[2], is_slice=True
            )
            slices.setdefault(parent.number, []).append(part)
    return [part for gpu in gpus for part in slices.get(gpu.number, [gpu])]


def _visible(gpus: Sequence[GPU], named: str) -> list[GPU]:
    """Return the GPUs in ``CUDA_VISIBLE_DEVICES``.

    Up to the first unknown name, as CUDA does.
    """
    names = [name.strip() for name in named.split(",")]
    chosen: list[GPU] = []
    for name in names:
        gpu = next((gpu for gpu in gpus if _is_called(gpu, name) and gpu not in chosen), None)
        if gpu is None:
            break
        chosen.append(gpu)
    if not chosen and (names[0].isdigit() or names[0].startswith(("GPU-", "MIG-"))):
        what = names[0] if names[0].isdigit() else "one by its id"
        raise FederationError(
            f"{VISIBLE_VARIABLE} names {what}, and nvidia-smi lists {', '.join(str(gpu.number) for gpu in gpus)}. "
            "Start with one that nvidia-smi -L lists, or without the variable"
        )
    return chosen


def _is_called(gpu: GPU, name: str) -> bool:
    if name.isdigit():
        return gpu.number == int(name)
    return name.startswith(("GPU-", "MIG-")) and gpu.uuid.startswith(name)
