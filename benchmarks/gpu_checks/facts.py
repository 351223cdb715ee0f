"""Facts of the machine and its GPU in a fork."""

from __future__ import annotations

import os
import shutil
import sysconfig
from pathlib import Path

import torch
from torch import nn

from gpu_checks import support
from gpu_checks.context import GIB, Context
from gpu_checks.data import BRAIN, cases_of, plan_of, trainer_of
from oncofed import sandbox
from oncofed.errors import FederationError
from oncofed.gpus import read_gpus
from oncofed.training import Trainer

# The first compute capability whose convolutions are in bfloat16; older GPUs emulate them, far slower.
_BFLOAT16_SINCE = (8, 0)
# The doctor's checks that GPUs need.
_OF_GPUS = ("gpu", "cuda", "compiler")


def check(context: Context) -> None:
    """Examine the machine, the fork, and oncofed's choices."""
    driver = support.driver_status()  # before torch asks it anything
    _machine(context)
    if context.cuda:
        _fork(context, driver)
        _tools(context)
        _limits(context)
    else:
        _no_gpu(context)
    _precision(context)


def _machine(context: Context) -> None:
    context.report.figure(
        "the machine",
        torch=torch.__version__,
        cuda=torch.version.cuda,
        python=sysconfig.get_python_version(),
        kernel=os.uname().release,
        cores=len(os.sched_getaffinity(0)),
        c_compiler=shutil.which("cc") or shutil.which("gcc"),
        python_headers=(Path(sysconfig.get_path("include")) / "Python.h").is_file(),
        no_confinement=sandbox.what_is_missing(),
        not_installed=support.import_as_jobs_do(),
        devices=sorted(path.name for path in Path("/dev").glob("nvidia*")),
        visible=os.environ.get("CUDA_VISIBLE_DEVICES"),
    )


def _fork(context: Context, driver: int | None) -> None:
    untouched = driver == support.NOT_INITIALIZED
    context.report.claim("fork", untouched, "nothing asked the driver before the fork", cuDeviceGetCount=driver)
    with context.report.attempt("fork", "a fork computes a convolution, forward and backward"):
        convolution = nn.Conv3d(4, 8, 3, device="cuda")
        convolution(torch.ones(1, 4, 16, 16, 16, device="cuda")).sum().backward()
        finite = bool(torch.isfinite(convolution.weight.grad).all())  # type: ignore[arg-type]
        context.report.claim("fork", finite, "a fork computes a convolution, forward and backward")
    free, total = torch.cuda.mem_get_info()
    context.report.figure(
        "the GPU",
        name=torch.cuda.get_device_name(),
        capability=torch.cuda.get_device_capability(),
        kernels=torch.cuda.get_arch_list(),
        cudnn=torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        nccl=torch.distributed.is_nccl_available(),
        processors=torch.cuda.get_device_properties(0).multi_processor_count,
        free_gib=free / GIB,
        total_gib=total / GIB,
    )


def _tools(context: Context) -> None:
    try:
        gpus = [vars(gpu) for gpu in read_gpus()]
    except FederationError as error:
        context.report.claim("found", False, "nvidia-smi is understood", error=str(error))
    else:
        context.report.claim("found", bool(gpus), "nvidia-smi is understood", gpus=gpus)
    _doctor(context)
    with context.report.attempt("first", "a trainer that is told no device"):
        device = Trainer(plan_of(context, BRAIN), cases_of(context, BRAIN), "here").device
        holds = device.type == "cuda" and device.index in {None, 0}
        context.report.claim("first", holds, "a trainer that is told no device", device=str(device))


def _doctor(context: Context) -> None:
    try:
        from oncofed.site.doctor import examine
    except ImportError as error:  # a bundle has not all that a site needs
        context.report.figure("the doctor is not there", error=str(error))
        return
    said = [vars(look) for look in examine(None) if look.name in _OF_GPUS]
    context.report.claim("found", all(look["state"] != "fail" for look in said), "the doctor finds no fault", said=said)


def _no_gpu(context: Context) -> None:
    for claim in ("fork", "found", "first"):
        context.report.skip(claim, "it needs a GPU")


def _precision(context: Context) -> None:
    with context.report.attempt("precision", "training.precision: auto"):
        found = support.precision_of(trainer_of(context, BRAIN))
        wanted = torch.float32
        if context.cuda:
            newer = torch.cuda.get_device_capability() >= _BFLOAT16_SINCE
            wanted = torch.bfloat16 if newer else torch.float16
        context.report.claim("precision", found is wanted, found=str(found), expected=str(wanted))


def _limits(context: Context) -> None:
    """Measure the GPU's limits: matrix product and copy."""
    side, times = 8192, 10
    one, two = (torch.randn(side, side, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    from_, to = (torch.ones(1 << 28, device="cuda") for _ in range(2))
    one @ two
    to.copy_(from_)
    product = context.median_seconds(lambda: [one @ two for _ in range(times)])
    copy = context.median_seconds(lambda: [to.copy_(from_) for _ in range(times)])
    context.report.figure(
        "limits",
        bfloat16_tflops=2 * side**3 * times / product / 1e12,
        copy_tb_s=2 * from_.nbytes * times / copy / 1e12,
    )
