"""Processes that a run starts: their environment, and that none outlives it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Iterable
from pathlib import Path

import psutil

_STOP_SECONDS = 5.0
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def process_environment(temporary: Path, processes: int) -> dict[str, str]:
    """Return the environment of a process that shares this machine with ``processes`` others.

    Its ``python3`` is this one, its temporary files stay in ``temporary``, and its share of the cores is its own.
    """
    temporary.mkdir(parents=True, exist_ok=True)
    threads = str(max(1, (os.cpu_count() or 1) // max(processes, 1)))
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "TMPDIR": str(temporary.resolve()),
        "MPLCONFIGDIR": str(temporary.resolve()),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads),
        "PYTHONWARNINGS": "ignore",
    }


def end_with_parent() -> None:
    """Have this process end when the one that started it ends, even by SIGKILL. Linux only; elsewhere it does nothing.

    For use in a child before it runs its program (``preexec_fn``) or as its first act.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def stop_processes(pids: Iterable[int]) -> None:
    """End processes and all their descendants: politely first, then by force."""
    family: dict[int, psutil.Process] = {}
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            for member in (process, *process.children(recursive=True)):
                family[member.pid] = member
    for step in (signal.SIGTERM, signal.SIGKILL):
        for member in family.values():
            with contextlib.suppress(psutil.NoSuchProcess):
                member.send_signal(step)
        _, alive = psutil.wait_procs(list(family.values()), timeout=_STOP_SECONDS)
        if not alive:
            return
