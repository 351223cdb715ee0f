"""This machine: versions, processor, GPU, memory."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch

from oncofed.errors import FederationError
from oncofed.gpus import read_gpus

_PACKAGES = ("oncofed", "nvflare", "monai", "torch", "numpy")


def environment() -> dict[str, str]:
    """Return versions and device, as a result records them."""
    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else _processor()
    return {"python": platform.python_version(), "device": device, **{name: version(name) for name in _PACKAGES}}


def fingerprint() -> dict[str, Any]:
    """Return what a benchmark depends on besides the code.

    Includes a short digest of the hardware.

    Figures of two runs may be compared if ``machine`` is the same: processor, cores, memory in GiB, GPUs and their
    driver. Library versions are listed but are not part of it: comparisons show the effect of changing them.
    """
    machine: dict[str, Any] = {
        "processor": f"{_processor()} ({_generation()})",
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "gpus": [],
        "driver": None,
    }
    with contextlib.suppress(FederationError):
        gpus = read_gpus()
        machine["gpus"] = [f"{gpu.name}, {gpu.total_gib:.0f} GiB" for gpu in gpus]
        machine["driver"] = gpus[0].driver if gpus else None
    digest = hashlib.sha256(repr(sorted(machine.items())).encode()).hexdigest()[:8]
    cudnn = torch.backends.cudnn.version() if torch.cuda.is_available() else None  # type: ignore[no-untyped-call]
    return {
        "machine": digest,
        **machine,
        "cuda": torch.version.cuda,
        "cudnn": cudnn,
        "system": f"{platform.system()} {platform.release()}",
        **environment(),
    }


def _processor() -> str:
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def _generation() -> str:
    """Return a processor's family, model and stepping.

    A virtual machine may hide its exact name.
    """
    known = _cpuinfo()
    return ", ".join(f"{name} {known[name]}" for name in ("cpu family", "model", "stepping") if name in known)


def _cpuinfo() -> dict[str, str]:
    with contextlib.suppress(OSError):
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0]
        pairs = (line.partition(":") for line in first.splitlines())
        return {name.strip(): value.strip() for name, _, value in pairs}
    return {}
