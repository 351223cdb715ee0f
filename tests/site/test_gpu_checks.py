"""The doctor's checks of GPUs.

The process that computes is real, with a build of torch without CUDA.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from fake_smi import install, row
from oncofed import gpus
from oncofed.site import gpu_checks
from oncofed.site.check import Check
from oncofed.site.gpu_checks import check_gpus
from oncofed.training import compiling


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine with three GPUs.

    GPU 0 computes, another program uses 1, and torch has no kernels for 2.
    """
    monkeypatch.setattr(gpus, "_ROOT", tmp_path / "root")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    install(tmp_path / "bin", monkeypatch, [row(0), row(1, free=1000), row(2, "Tesla V100")])
    says = {0: "", 1: "", 2: "torch has no kernels for Tesla V100. Install a build that has them, or lend another GPU"}
    monkeypatch.setattr(gpu_checks, "_try", lambda gpu: says[gpu.number])
    return monkeypatch


def _of_gpus(checks: list[Check]) -> list[tuple[str, str, str]]:
    return [(check.state, check.found, check.advice) for check in checks if check.name == "gpu"]


def test_each_offered_gpu_computes(machine: pytest.MonkeyPatch) -> None:
    first, second, third = _of_gpus(list(check_gpus()))
    assert first[0] == "ok"
    assert first[1].endswith("driver 580.82, 39 of 40 GiB free, computes")
    assert (second[0], "1 of 40 GiB free" in second[1]) == ("warn", True)
    assert third[0] == "fail"
    assert third[1].endswith("it cannot be used: torch has no kernels for Tesla V100")
    assert third[2] == "Install a build that has them, or lend another GPU"
    *others, absent = _of_gpus(list(check_gpus((0, 5))))
    assert [state for state, _, _ in others] == ["ok", "warn", "ok"]
    assert others[2][1].endswith(", not lent")
    assert absent[:2] == ("warn", "site.yaml lends GPU 5, which is not here")


def test_a_named_gpu_without_driver_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_checks, "read_gpus", list)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    (check,) = check_gpus()
    assert (check.state, check.found) == ("fail", "CUDA_VISIBLE_DEVICES names 7, and there is no NVIDIA driver")


def test_a_gpu_slice_is_described(machine: pytest.MonkeyPatch, tmp_path: Path) -> None:
    listed = "GPU 0: A100 (UUID: GPU-0aaa)\n  MIG 1g.5gb      Device  0: (UUID: MIG-15bb)\n"
    install(tmp_path / "bin", machine, [row(0, busy="[N/A]")], listed)
    ((state, found, advice),) = _of_gpus(list(check_gpus()))
    assert (state, "1g.5gb" in found, "jobs of one GPU" in advice) == ("warn", True, True)


def test_unusable_gpus_are_reported_with_a_reason(machine: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine.setenv("CUDA_VISIBLE_DEVICES", "")
    assert _of_gpus(list(check_gpus()))[0][1] == "CUDA_VISIBLE_DEVICES names none: jobs train on the CPU"
    machine.setenv("CUDA_VISIBLE_DEVICES", "7")
    ((state, found, advice),) = _of_gpus(list(check_gpus()))
    assert (state, advice) == ("fail", "Start with one that nvidia-smi -L lists, or without the variable")
    assert found == "CUDA_VISIBLE_DEVICES names 7, and nvidia-smi lists 0, 1, 2"
    machine.delenv("CUDA_VISIBLE_DEVICES")
    install(tmp_path / "bin", machine, ["Failed to initialize NVML: Driver/library version mismatch"], status=18)
    ((state, found, advice),) = _of_gpus(list(check_gpus()))
    assert (state, "version mismatch" in found, advice) == ("fail", True, "repair the NVIDIA driver")
    machine.setenv("PATH", str(tmp_path / "nothing"))
    assert _of_gpus(list(check_gpus()))[0][:2] == ("warn", "no NVIDIA driver: jobs train on the CPU")


@pytest.mark.skipif(torch.backends.cuda.is_built(), reason="needs a build of torch without CUDA")
def test_a_separate_process_tries_the_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "_ROOT", tmp_path / "root")
    install(tmp_path / "bin", monkeypatch, [row(0)])
    ((state, found, advice),) = _of_gpus(list(check_gpus()))
    assert state == "fail"
    assert found.endswith(f"it cannot be used: torch {torch.__version__} is built without CUDA")
    assert advice.startswith("Install the build that fits the driver")


@pytest.mark.parametrize(
    ("program", "told"),
    [
        ("import time; time.sleep(60)", "a convolution does not end within 1 s"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "ended with status -11 (nothing)"),
        ("raise RuntimeError('it broke')", "ended with status 1 (RuntimeError: it broke)"),
        ("print('a library says something'); print('oncofed says: ')", ""),
        ("import os; print('oncofed says: ' + os.environ['CUDA_VISIBLE_DEVICES'])", "MIG-15bb"),
    ],
)
def test_any_outcome_of_the_process_is_one_line(
    program: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_checks, "_TRIAL", program)
    monkeypatch.setattr(gpu_checks, "_SECONDS", 1.0 if "sleep" in program else 60.0)
    said = gpu_checks._try(gpus.GPU(0, "A100 1g.5gb", "580", 5.0, 5.0, None, "MIG-15bb", is_slice=True))
    assert told in said
    assert bool(said) == bool(told)


def test_the_compilers_requirements_are_checked(machine: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine.delenv("CC", raising=False)
    machine.setattr(compiling.shutil, "which", lambda name: None)
    *_, check = check_gpus()
    assert (check.state, check.found, check.advice) == (
        "warn",
        "there is no C compiler; networks are not compiled, and train slower",
        "install gcc",
    )
    machine.setattr(compiling.shutil, "which", lambda name: sys.executable)
    machine.setattr(compiling.sysconfig, "get_path", lambda name: str(tmp_path))
    *_, check = check_gpus()
    assert "Python.h" in check.found
    assert "python3-dev" in check.advice
    (tmp_path / "Python.h").touch()
    *_, check = check_gpus()
    assert (check.name, check.state) == ("compiler", "ok")
