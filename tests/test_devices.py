from __future__ import annotations

import types
from pathlib import Path

import pytest
import torch

from oncofed import devices
from oncofed.devices import inference_type, require_named_gpu, training_device, why_unusable
from oncofed.errors import TrainingError
from oncofed.training.batch_gradients import training_precision
from oncofed.training.settings import TrainingSpec

_CUDA = torch.device("cuda")
_WHEEL = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """A machine with one working GPU, as torch sees it.

    Simulated in its Python code.
    """
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "GPU")
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: _WHEEL)
    monkeypatch.setattr(devices, "_DEV", tmp_path)
    compute = devices._compute
    monkeypatch.setattr(devices, "_compute", lambda device: compute(torch.device("cpu")))
    _has_capability(monkeypatch, 9, 0)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return monkeypatch


def _has_capability(monkeypatch: pytest.MonkeyPatch, major: int, minor: int) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (major, minor))
    found = types.SimpleNamespace(major=major, minor=minor)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device=0: found)
    # Every GPU can make a tensor of it, which torch takes for support unless it is asked for the hardware's own.
    monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda device: True)


def _says(monkeypatch: pytest.MonkeyPatch, message: str) -> None:
    def init() -> None:
        raise RuntimeError(message)

    monkeypatch.setattr(torch.cuda, "init", init)


def test_a_gpu_that_works_is_used(cuda: pytest.MonkeyPatch) -> None:
    assert why_unusable() is None
    assert training_device() == training_device("cuda") == _CUDA
    assert training_device("cpu") == torch.device("cpu")


def test_a_named_gpu_is_checked_before_a_run_without_starting_cuda(
    cuda: pytest.MonkeyPatch,
) -> None:
    cuda.setattr(torch.cuda, "init", lambda: pytest.fail("CUDA was begun"))
    cuda.setattr(torch.cuda, "device_count", lambda: 1)
    require_named_gpu()
    cuda.setenv("CUDA_VISIBLE_DEVICES", "0")
    require_named_gpu()
    cuda.setattr(torch.cuda, "device_count", lambda: 0)
    _says(cuda, "No CUDA GPUs are available")
    with pytest.raises(TrainingError, match="the GPU cannot be used"):
        require_named_gpu()
    cuda.setenv("CUDA_VISIBLE_DEVICES", "")
    require_named_gpu()


@pytest.mark.parametrize("named", ["", "-1", "none", "NoDevFiles"])
def test_without_a_gpu_the_cpu_trains(monkeypatch: pytest.MonkeyPatch, named: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert training_device() == torch.device("cpu")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert training_device() == torch.device("cpu")


@pytest.mark.skipif(torch.backends.cuda.is_built(), reason="needs a build of torch without CUDA")
def test_an_assigned_gpu_is_never_silently_replaced_by_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(TrainingError, match=r"the GPU cannot be used: torch .* is built without CUDA\. Install"):
        training_device()
    with pytest.raises(TrainingError, match="cannot be used"):
        training_device("cuda")


def test_a_broken_unassigned_gpu_is_reported(
    cuda: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("nvidia0", "nvidia-uvm"):
        (tmp_path / name).touch()
    cuda.setattr(torch.cuda, "is_available", lambda: False)
    _says(cuda, "The NVIDIA driver on your system is too old (found version 12020). Please update your GPU driver")
    assert training_device() == torch.device("cpu")
    assert "left alone: the NVIDIA driver is too old" in caplog.text


@pytest.mark.parametrize(
    ("message", "found", "advice"),
    [
        ("The NVIDIA driver on your system is too old (found version 12020). Please", "too old for CUDA", "Update it"),
        ("Found no NVIDIA driver on your system. Please check that you", "no NVIDIA driver", "--gpus all"),
        ("No CUDA GPUs are available", "CUDA finds none", "nvidia-smi"),
        ("Cannot re-initialize CUDA in forked subprocess. To use CUDA with", "after a fork", "anew"),
        ("CUDA driver initialization failed, you might not have a CUDA gpu.", "after a fork", "anew"),
        ("CUDA unknown error - this may be due to an incorrectly set up", "not be initialised", "nvidia-modprobe"),
        ("Unexpected error from cudaGetDeviceCount(). Error 304: OS call failed", "system denies", "Allow"),
        (
            "Unexpected error from cudaGetDeviceCount(). Error 802: system not yet initialized",
            "links",
            "Fabric Manager",
        ),
        ("Unexpected error from cudaGetDeviceCount(). Error 803: unsupported display driver", "versions", "Restart"),
        ("CUDA error: CUDA-capable device(s) is/are busy or unavailable", "MIG mode", "nvidia-smi"),
        ("CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA`", "little of its memory", "lend another"),
        ("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED\nmore", "CUDNN_STATUS_NOT_INITIALIZED", "doctor"),
    ],
)
def test_torchs_gpu_errors_become_one_line_with_advice(
    cuda: pytest.MonkeyPatch, message: str, found: str, advice: str
) -> None:
    _says(cuda, message)
    reason = why_unusable()
    assert reason
    assert found in reason
    assert advice in reason
    assert "\n" not in reason
    with pytest.raises(TrainingError, match="the GPU cannot be used"):
        training_device()


@pytest.mark.parametrize(
    ("named", "told"),
    [("3", "CUDA_VISIBLE_DEVICES names 3, and CUDA"), ("MIG-5c1a2f", "names one by its id"), ("0,1", "names 0,1")],
)
def test_a_named_gpu_that_is_missing(cuda: pytest.MonkeyPatch, named: str, told: str) -> None:
    cuda.setenv("CUDA_VISIBLE_DEVICES", named)
    cuda.setattr(torch.cuda, "is_available", lambda: False)
    _says(cuda, "No CUDA GPUs are available")
    with pytest.raises(TrainingError, match=told) as raised:
        training_device()
    assert "5c1a2f" not in str(raised.value)
    assert "MIG slices" in str(raised.value)


def test_a_container_without_the_drivers_memory_device(cuda: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "nvidia0").touch()
    _says(cuda, "CUDA unknown error - this may be due to an incorrectly set up environment")
    assert "/dev/nvidia-uvm is missing" in (why_unusable() or "")
    (tmp_path / "nvidia-uvm").touch()
    assert "/dev/nvidia-uvm is missing" not in (why_unusable() or "")


def test_memory_that_another_program_holds(cuda: pytest.MonkeyPatch) -> None:
    def full(device: torch.device) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    cuda.setattr(devices, "_compute", full)
    assert "too little of its memory is free" in (why_unusable() or "")


@pytest.mark.parametrize(
    ("capability", "built", "usable"),
    [
        ((7, 0), _WHEEL, False),  # V100
        ((7, 5), _WHEEL, True),
        ((8, 9), _WHEEL, True),
        ((12, 1), _WHEEL, True),
        ((11, 0), _WHEEL, False),
        ((13, 0), [*_WHEEL, "compute_120"], True),  # the driver compiles for what came later
        ((7, 0), ["sm_75", "compute_75"], False),
        ((9, 0), ["sm_90a"], True),
        ((9, 1), ["sm_90a"], False),
        ((10, 3), ["sm_100f"], True),
        ((12, 0), ["sm_100f"], False),
        ((7, 0), [], True),  # it does not say
    ],
)
def test_whether_a_build_has_kernels(
    cuda: pytest.MonkeyPatch, capability: tuple[int, int], built: list[str], usable: bool
) -> None:
    cuda.setattr(torch.cuda, "get_arch_list", lambda: built)
    _has_capability(cuda, *capability)
    reason = why_unusable()
    assert (reason is None) == usable
    if reason:
        assert f"no kernels for GPU (sm_{capability[0]}{capability[1]})" in reason


def test_a_gpu_that_computes_wrongly_is_not_used(cuda: pytest.MonkeyPatch) -> None:
    cuda.setattr(devices.functional, "conv2d", lambda image, kernel: torch.zeros(1, 8, 14, 14))
    assert "it computes 0.0 and 16.0" in (why_unusable() or "")


def test_checking_runs_no_backward_pass_and_draws_no_random_numbers(cuda: pytest.MonkeyPatch) -> None:
    def backward(*arguments: object, **names: object) -> None:
        raise AssertionError("a backward pass")

    cuda.setattr(torch.autograd, "backward", backward)
    before = torch.get_rng_state()
    assert why_unusable() is None
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("capability", "wanted"),
    [((7, 0), torch.float16), ((7, 5), torch.float16), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)],
)
def test_bfloat16_only_where_the_hardware_has_it(
    cuda: pytest.MonkeyPatch, capability: tuple[int, int], wanted: torch.dtype
) -> None:
    _has_capability(cuda, *capability)
    assert inference_type(_CUDA) is wanted
    assert training_precision(TrainingSpec(), _CUDA) is wanted
    assert inference_type(torch.device("cpu")) is torch.bfloat16
    assert training_precision(TrainingSpec(), torch.device("cpu")) is torch.float32
