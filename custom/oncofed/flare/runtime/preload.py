"""Import what jobs need, without touching a GPU."""

from __future__ import annotations

import contextlib
import gc
import importlib
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from oncofed.gpus import cuda_is_initialised

# What the first round of any job needs; the rest takes milliseconds.
MODULES = (
    "oncofed.flare.controller",
    "oncofed.flare.executor",
    "nvflare.private.fed.app.client.worker_process",
    "nvflare.private.fed.app.server.runner_process",
    "nvflare.private.fed.app.simulator.simulator_worker",
    "torch._dynamo",  # the first optimizer imports it
)
# MONAI imports these if they are installed: libraries for plots and tables, which no job uses and which take a fifth of
# the time, and a DICOM reader that no job uses, whose nvJPEG initialises CUDA on import: no fork could use a GPU.
_NOT_NEEDED = ("matplotlib", "pandas", "sklearn", "nvidia.nvimgcodec")
_SUSPECT = re.compile(r"nvjpeg|nvimgcodec|nvtiff|cupy|cucim")


def import_all() -> str:
    """Import everything.

    Returns:
        A warning if that initialised CUDA, else an empty text.
    """
    warning = ""
    # The garbage collector would take a fifth of the time, and find nothing among imported modules.
    gc.disable()
    with _hidden(_NOT_NEEDED):
        for name in MODULES:
            importlib.import_module(name)
            if not warning and cuda_is_initialised():
                warning = _cuda_warning(name)
    # FLARE registers the decomposers of tensors with the job's classes, after it has connected: an update that a site
    # sends within that second, as after a restart, would end the job's process.
    from oncofed.flare.patches.own_loopback import simulate_over_own_loopback  # noqa: PLC0415 - imports much, too
    from oncofed.flare.patches.parent_watch import watch_parent  # noqa: PLC0415
    from oncofed.flare.wire import register_tensors  # noqa: PLC0415

    register_tensors()
    watch_parent()
    simulate_over_own_loopback()
    if not warning and cuda_is_initialised():
        warning = _cuda_warning("oncofed.flare.wire")
    gc.freeze()
    gc.enable()
    return warning


def _cuda_warning(module: str) -> str:
    maps = Path("/proc/self/maps").read_text(encoding="utf-8")
    suspects = sorted({Path(path).name for path in re.findall(r"/\S+\.so\S*", maps) if _SUSPECT.search(path)})
    return (
        f"CUDA was initialised as {module} was imported, before there is a job: no fork of this process could use the "
        "GPU. So each job starts Python anew, which takes some seconds. Uninstall what does that; loaded here: "
        f"{', '.join(suspects) or 'no library that is known for it'}"
    )


@contextlib.contextmanager
def _hidden(names: Sequence[str]) -> Iterator[None]:
    """Hide modules from import, unless already imported."""
    absent = [name for name in names if name not in sys.modules]
    # None means that there is no such module (language reference, 5.3.1).
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]
