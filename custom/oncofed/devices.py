"""The device and precision to compute with."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.nn import functional

from oncofed.errors import TrainingError

_VISIBLE = "CUDA_VISIBLE_DEVICES"
# Values by which containers and launchers hide all GPUs, apart from an empty one.
_NONE_NAMED = frozenset({"", "-1", "none", "void", "nodevfiles"})
_BUILDS = "https://pytorch.org/get-started"
_DEV = Path("/dev")
_FULL = ("CUDA error: out of memory", "CUDNN_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_ALLOC_FAILED")
_LOG = logging.getLogger(__name__)
# cuBLAS results are bit-reproducible only with a fixed workspace (CUDA Toolkit, cuBLAS, Results reproducibility). It
# reads this once, at a process's first product. The size is torch's default on current GPUs.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def training_device(wanted: str | None = None) -> torch.device:
    """Return a CUDA GPU if available, else the CPU.

    ``CUDA_VISIBLE_DEVICES`` may name a GPU, which then has to work; an empty value hides all GPUs.

    Args:
        wanted: "cuda" or "cpu"; None: what the machine has.

    Raises:
        TrainingError: a GPU is wanted, named or found, but unusable; states why and what to do.
    """
    if wanted == "cpu":
        return torch.device("cpu")
    if wanted is None and not _named() and not torch.cuda.is_available():
        if _VISIBLE not in os.environ and any(_DEV.glob("nvidia[0-9]*")) and (reason := why_unusable()):
            _LOG.warning("this machine has a GPU, which is left alone: %s", reason)
        return torch.device("cpu")
    if reason := why_unusable():
        raise TrainingError(f"the GPU cannot be used: {reason}")
    return torch.device("cuda")


def require_named_gpu() -> None:
    """Require that a GPU in ``CUDA_VISIBLE_DEVICES`` exists.

    CUDA is not initialised.

    Raises:
        TrainingError: states why and what to do.
    """
    built = torch.backends.cuda.is_built()  # type: ignore[no-untyped-call]
    if _named() and not (built and torch.cuda.device_count()):
        raise TrainingError(f"the GPU cannot be used: {why_unusable() or 'torch finds none'}")


def why_unusable() -> str | None:
    """Return why the GPU cannot compute, and what to do.

    One line; None if it can.

    Initialises CUDA, and checks the values of a convolution and a matrix product in each dtype in use. No backward
    pass: its threads would outlive the call.
    """
    if not torch.backends.cuda.is_built():  # type: ignore[no-untyped-call]
        return (
            f"torch {torch.__version__} is built without CUDA. Install the build that fits the driver ({_BUILDS}), or "
            f"lend no GPU: gpus: [] in site.yaml, {_VISIBLE}= elsewhere"
        )
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
        if without := _without_kernels():
            return without
        _compute(torch.device("cuda"))
    except (RuntimeError, AssertionError, torch.cuda.DeferredCudaCallError) as error:
        return _explained(str(error))
    return None


def inference_type(device: torch.device) -> torch.dtype:
    """Return a device's half precision for inference.

    bfloat16 if the hardware supports it (compute capability 8.0), and on the CPU; else float16. Older GPUs emulate
    bfloat16, for which cuDNN has no convolutions.
    """
    supports_bfloat16 = device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if supports_bfloat16 else torch.float16


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means a full GPU memory.

    Torch and NVIDIA's libraries report it in different ways.
    """
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _FULL)


def free_memory() -> None:
    """Release unused GPU memory.

    Delete the out-of-memory error first, as it holds tensors.
    """
    gc.collect()
    torch.cuda.empty_cache()


@contextlib.contextmanager
def fitting(what: str) -> Iterator[None]:
    """Turn an out-of-memory error into one clear line.

    Args:
        what: has to fit into GPU memory.

    Raises:
        TrainingError: the GPU's memory is full.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(
            f"{what} does not fit into what is free of the GPU's memory. nvidia-smi shows what else uses it; otherwise "
            "choose a smaller model"
        ) from None


def _named() -> str:
    named = os.environ.get(_VISIBLE, "").strip()
    return "" if named.split(",")[0].lower() in _NONE_NAMED else named


def _without_kernels() -> str | None:
    """Describe a GPU for which torch lacks kernels."""
    major, minor = torch.cuda.get_device_capability()
    built = torch.cuda.get_arch_list()
    if not built or any(_runs_on(arch, (major, minor)) for arch in built):
        return None
    return (
        f"torch {torch.__version__} has no kernels for {torch.cuda.get_device_name()} (sm_{major}{minor}), but for "
        f"{', '.join(built)}. Install a build that has them ({_BUILDS}), or lend another GPU"
    )


def _runs_on(arch: str, capability: tuple[int, int]) -> bool:
    """Return whether code for an architecture runs on a GPU.

    ``sm_XY`` or ``compute_XY`` (CUDA C++ Programming Guide, Compatibility).
    """
    kind, _, number = arch.partition("_")
    digits = number.rstrip("af")
    if not digits.isdigit():
        return False
    target = divmod(int(digits), 10)
    if number.endswith("a"):  # for this GPU only
        return target == capability
    if kind == "compute" and digits == number:  # compiled by the driver, for all later ones
        return target <= capability
    return target[0] == capability[0] and target[1] <= capability[1]


@torch.no_grad()
def _compute(device: torch.device) -> None:
    for dtype in (torch.float32, inference_type(device)):
        image, kernel = torch.ones(1, 8, 16, 16, device=device, dtype=dtype), torch.ones(8, 8, 3, 3).to(device, dtype)
        convolved = float(functional.conv2d(image, kernel)[0, 0, 7, 7])
        product = float((image[0, 0] @ image[0, 1])[7, 7])
        if (convolved, product) != (72.0, 16.0):
            raise RuntimeError(f"it computes {convolved} and {product} in {dtype}, expected 72 and 16")


def _explained(message: str) -> str:
    """Explain torch's error about a GPU in one line."""
    text = message.lower()
    first = (message.strip().splitlines() or ["nothing"])[0]
    # The driver creates this file when the first program on the host uses it.
    if any(_DEV.glob("nvidia[0-9]*")) and not (_DEV / "nvidia-uvm").exists():
        return (
            "/dev/nvidia-uvm is missing. On the host run nvidia-modprobe -u -c=0, and start the container with "
            f"--gpus all (torch says: {first})"
        )
    if "no cuda gpus are available" in text:
        return _not_found()
    for fragments, found, advice in _KNOWN:
        if any(fragment in text for fragment in fragments):
            return f"{found}. {advice} (torch says: {first})"
    return f"torch says: {first}. See nvidia-smi and oncofed site doctor"


def _not_found() -> str:
    named = _named()
    if not named:
        return "CUDA finds none. See nvidia-smi; in Docker start the container with --gpus all"
    numbers = named.replace(",", "").replace(" ", "").isdigit()
    return (
        f"{_VISIBLE} names {named if numbers else 'one by its id'}, and CUDA finds none of that name. nvidia-smi -L "
        "lists GPUs and MIG slices; in MIG mode a GPU without slices cannot be used"
    )


# Fragments of torch's and the driver's errors, their meaning, and what to do.
_KNOWN = (
    (
        ("system is too old", "driver version is insufficient"),
        f"the NVIDIA driver is too old for CUDA {torch.version.cuda}",
        f"Update it, or install the build of torch for it: {_BUILDS}",
    ),
    (
        ("no nvidia driver",),
        "there is no NVIDIA driver",
        "Install it; in Docker start the container with --gpus all",
    ),
    (
        ("in forked subprocess", "initialization failed", "initialization error"),
        "CUDA could not be initialised, as after a fork of a process that had used it",
        "Start the program anew; if that does not help, nvidia-smi has to work first",
    ),
    (
        ("unknown error",),
        "CUDA could not be initialised",
        "Load the driver anew (nvidia-modprobe -u) or restart the machine",
    ),
    (
        ("out of memory",),
        "too little of its memory is free to begin",
        "nvidia-smi shows which program holds it: end that one, or lend another GPU",
    ),
    (
        ("busy or unavailable",),
        "another program has it alone, or it is in MIG mode without slices",
        "See nvidia-smi: end that program, or set compute mode Default",
    ),
    (
        ("no kernel image",),
        f"torch {torch.__version__} has no kernels for it",
        f"Install a build that has them ({_BUILDS}), or lend another GPU",
    ),
    (
        ("not yet initialized",),
        "its links are not set up",
        "Start NVIDIA's Fabric Manager: systemctl start nvidia-fabricmanager",
    ),
    (
        ("unsupported display driver", "library version mismatch"),
        "the driver's library and its kernel module have different versions",
        "Restart the machine, and in a container give it the host's libraries (--gpus all)",
    ),
    (
        ("os call failed", "operation not permitted"),
        "the system denies the driver what it needs to begin",
        "Allow /dev/nvidia* and /proc/self/task to this process",
    ),
)
