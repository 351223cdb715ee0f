"""What checks know of oncofed's inside: every access to a name that is not public is here, and nowhere else."""

from __future__ import annotations

import ctypes
import importlib
import os
from pathlib import Path

import torch

from oncofed import sandbox
from oncofed.federation import confined, job_process
from oncofed.federation.turns import Place
from oncofed.training import Trainer

NOT_INITIALIZED = 3  # CUDA_ERROR_NOT_INITIALIZED, cuda.h


def import_as_jobs_do() -> list[str]:
    """Import what the process imports that jobs are forks of; return what is not there, as in a bundle."""
    try:
        job_process._import_all()
    except ImportError:
        return [name for name in job_process.MODULES if not _imported(name)]
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


def why_no_gpu() -> str:
    """Return why torch cannot use a GPU here; empty where one computes."""
    if not torch.cuda.is_available():
        build = f"torch {torch.__version__} finds no CUDA GPU"
        return f"{build} (no NVIDIA driver)" if driver_status() is None else build
    try:
        torch.ones(1, device="cuda").add_(1).item()
    except RuntimeError as error:
        return f"the GPU does not compute: {str(error).partition(chr(10))[0]}"
    return ""


def precision_of(trainer: Trainer) -> torch.dtype:
    """Return in which type a trainer computes."""
    return trainer._precision


def is_compiled(trainer: Trainer) -> bool:
    """Return whether a trainer's network is compiled."""
    return trainer._compiled


def samples_at_once(trainer: Trainer) -> int:
    """Return how many samples go through the network at once."""
    return trainer._micro


def confine_partly(data: Path, state: Path, files: bool, calls: bool) -> None:
    """Confine this process as a pack's, or only its files, or only its system calls: which of them ends CUDA?"""
    read, write = confined._what_it_may_touch(Place("here", data, state, None))
    ctypes.CDLL(None).prctl(sandbox._NO_NEW_PRIVS, 1, 0, 0, 0)
    if files:
        sandbox._restrict_files(read, write)
    if calls:
        sandbox._restrict_calls(sandbox._MACHINES[os.uname().machine])
