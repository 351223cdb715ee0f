"""Checks of GPUs: each computes in a separate process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from oncofed.errors import FederationError
from oncofed.gpus import GPU, VISIBLE_VARIABLE, read_gpus
from oncofed.site.check import Check

_SECONDS = 120.0
_AT_ONCE = 4
_MARKER = "oncofed says: "  # libraries print too
_TRIAL = f"from oncofed.devices import why_unusable; print({_MARKER!r} + (why_unusable() or ''))"


def check_gpus(lent: tuple[int, ...] | None = None) -> Iterator[Check]:
    """Check each GPU; compute on those for jobs.

    Args:
        lent: numbers of the GPUs that jobs may use; None: all.
    """
    try:
        gpus = read_gpus()
    except FederationError as error:
        found, _, advice = str(error).partition(". ")
        yield Check("gpu", "fail", found, advice or "repair the NVIDIA driver")
        return
    if not gpus:
        named = os.environ.get(VISIBLE_VARIABLE)
        if named:
            found = f"{VISIBLE_VARIABLE} names {named}, and there is no NVIDIA driver"
            yield Check("gpu", "fail", found, "install the NVIDIA driver, or start without the variable")
            return
        if named is not None:
            yield Check("gpu", "warn", f"{VISIBLE_VARIABLE} names none: jobs train on the CPU", "start without it")
            return
        found = "no NVIDIA driver: jobs train on the CPU"
        yield Check("gpu", "warn", found, "install the NVIDIA driver where there is a GPU")
        return
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        trials = {gpu.device: pool.submit(_try, gpu) for gpu in gpus if lent is None or gpu.number in lent}
        for gpu in gpus:
            trial = trials.get(gpu.device)
            yield from _result(gpu, trial.result() if trial else None)
    if lent and (absent := sorted(set(lent) - {gpu.number for gpu in gpus})):
        found = f"site.yaml lends GPU {', '.join(map(str, absent))}, which is not here"
        yield Check("gpu", "warn", found, "correct gpus in site.yaml; nvidia-smi -L lists them")
    if trials:
        yield _compiler()


def _result(gpu: GPU, reason: str | None) -> Iterator[Check]:
    """Return a GPU's check.

    Args:
        gpu: checked.
        reason: why it cannot compute; empty if it can, None if it was not tried.
    """
    found = f"{gpu.number}: {gpu.name}, driver {gpu.driver}, {gpu.free_gib:.0f} of {gpu.total_gib:.0f} GiB free"
    found += {None: ", not lent", "": ", computes"}.get(reason, "")
    if reason:
        what, _, advice = reason.partition(". ")
        yield Check("gpu", "fail", f"{found}; it cannot be used: {what}", advice or "nvidia-smi")
    elif gpu.is_taken:
        yield Check("gpu", "warn", found, "something else uses its memory: nvidia-smi shows what; end it")
    elif gpu.is_slice:
        yield Check("gpu", "warn", found, "a slice is lent to jobs of one GPU; for others: nvidia-smi -mig 0")
    else:
        yield Check("gpu", "ok", found)


def _try(gpu: GPU) -> str:
    """Return why a GPU cannot compute, and what to do.

    Empty if it can. A separate process tries it.
    """
    named = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", VISIBLE_VARIABLE: str(gpu.device)}
    try:
        done = subprocess.run(
            [sys.executable, "-c", _TRIAL],
            env={**os.environ, **named},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"a convolution does not end within {_SECONDS:.0f} s. See nvidia-smi, or restart the machine"
    reasons = [line.removeprefix(_MARKER) for line in done.stdout.splitlines() if line.startswith(_MARKER)]
    if reasons:
        return reasons[-1].strip()
    last = (done.stderr.strip().splitlines() or ["nothing"])[-1]
    return f"a process that computes there ended with status {done.returncode} ({last[:200]}). See nvidia-smi"


def _compiler() -> Check:
    """Check what torch.compile needs to build GPU kernels.

    Without it training is slower.
    """
    from oncofed.training.compiling import can_compile  # noqa: PLC0415 - two seconds, only where there is a GPU

    if why := can_compile():
        what, _, advice = why.partition(": ")
        return Check("compiler", "warn", f"{what}; networks are not compiled, and train slower", advice)
    return Check("compiler", "ok", "a C compiler and Python.h are here")
