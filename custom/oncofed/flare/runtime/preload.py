"""Import what jobs need, without touching a GPU."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

from oncofed.gpus import cuda_is_initialised
from oncofed.lean_imports import lean_imports

# What the first round of any job needs; the rest takes milliseconds.
MODULES = (
    "oncofed.flare.controller",
    "oncofed.flare.executor",
    "nvflare.private.fed.app.client.worker_process",
    "nvflare.private.fed.app.server.runner_process",
    "nvflare.private.fed.app.simulator.simulator_worker",
)
_SUSPECT = re.compile(r"nvjpeg|nvimgcodec|nvtiff|cupy|cucim")


def import_all() -> str:
    """Import everything.

    Returns:
        A warning if that initialised CUDA, else an empty text.
    """
    warning = ""
    with lean_imports():
        for name in MODULES:
            importlib.import_module(name)
            if not warning and cuda_is_initialised():
                warning = _cuda_warning(name)
        # FLARE registers the decomposers of tensors with the job's classes, after it has connected: an update that a
        # site sends within that second, as after a restart, would end the job's process.
        from oncofed.flare.patches.own_loopback import simulate_over_own_loopback  # noqa: PLC0415 - imports much, too
        from oncofed.flare.patches.parent_watch import watch_parent  # noqa: PLC0415
        from oncofed.flare.wire import register_tensors  # noqa: PLC0415

        register_tensors()
        watch_parent()
        simulate_over_own_loopback()
    if not warning and cuda_is_initialised():
        warning = _cuda_warning("oncofed.flare.wire")
    return warning


def _cuda_warning(module: str) -> str:
    maps = Path("/proc/self/maps").read_text(encoding="utf-8")
    suspects = sorted({Path(path).name for path in re.findall(r"/\S+\.so\S*", maps) if _SUSPECT.search(path)})
    return (
        f"CUDA was initialised as {module} was imported, before there is a job: no fork of this process could use the "
        "GPU. So each job starts Python anew, which takes some seconds. Uninstall what does that; loaded here: "
        f"{', '.join(suspects) or 'no library that is known for it'}"
    )
