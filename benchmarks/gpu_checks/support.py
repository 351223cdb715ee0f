"""What checks know of oncofed's inside: every access to a name that is not public is here, and nowhere else."""

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
    """Import what the process imports that jobs are forks of; return what is not there, as in a bundle."""
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
    """Return what NVIDIA's driver answers a question for its GPUs; None where there is no driver.

    Nothing is initialised by that: ``NOT_INITIALIZED`` says that nothing was before either.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    return int(driver.cuDeviceGetCount(ctypes.byref(ctypes.c_int())))


def precision_of(trainer: Trainer) -> torch.dtype:
    """Return in which type a trainer computes."""
    return trainer._precision


def is_compiled(trainer: Trainer) -> bool:
    """Return whether a trainer's network is compiled."""
    return form_of(trainer) != "eager"


def form_of(trainer: Trainer) -> Form:
    """Return in which form a trainer takes its steps; not the one that it was to take where that failed."""
    return trainer._compiling.form


def take_steps(trainer: Trainer, form: Form) -> None:
    """Have a trainer take its steps in a form from now on, whatever would save time."""
    trainer._compiling.form = form
    trainer._use(form)


def samples_at_once(trainer: Trainer) -> int:
    """Return how many samples go through the network at once."""
    return trainer._micro


def confine_files(data: Path, state: Path) -> None:
    """Confine this process to the files that a pack's process has."""
    place = {"data": str(data), "state": str(state), "initial": None}
    sandbox.restrict_files(*sandboxed_process._what_it_may_touch(place))
