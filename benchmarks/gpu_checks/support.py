"""All access of checks to private names of oncofed."""

from __future__ import annotations

import ctypes
import importlib
from pathlib import Path

import torch

from oncofed import sandbox
from oncofed.client import sandboxed_process
from oncofed.flare.runtime import preload
from oncofed.training import Trainer
from oncofed.training.compiling import Form

NOT_INITIALIZED = 3  # CUDA_ERROR_NOT_INITIALIZED, cuda.h


def import_as_jobs_do() -> list[str]:
    """Import the modules of a template process; return absent ones."""
    try:
        preload.import_all()
    except ImportError:
        return [name for name in preload.MODULES if not _imported(name)]
    return []


def _imported(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


def driver_status() -> int | None:
    """Return the NVIDIA driver's answer for its GPUs.

    None without a driver. Nothing is initialised by that: ``NOT_INITIALIZED`` says that nothing was before either.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    return int(driver.cuDeviceGetCount(ctypes.byref(ctypes.c_int())))


def precision_of(trainer: Trainer) -> torch.dtype:
    """Return a trainer's compute dtype."""
    return trainer._gradients.precision


def is_compiled(trainer: Trainer) -> bool:
    """Return whether a trainer's network is compiled."""
    return form_of(trainer) != "eager"


def form_of(trainer: Trainer) -> Form:
    """Return the form of a trainer's steps.

    After a fallback if one failed.
    """
    return trainer._gradients.compiling.form


def take_steps(trainer: Trainer, form: Form) -> None:
    """Set the form of a trainer's steps."""
    trainer._gradients.compiling.form = form
    trainer._gradients.use(form)


def samples_at_once(trainer: Trainer) -> int:
    """Return the number of samples in one pass."""
    return trainer._gradients.micro_batch


def confine_files(data: Path, state: Path) -> None:
    """Restrict this process to a pack's files."""
    sandbox.restrict_files(*sandboxed_process.accessible_paths(data, state))
