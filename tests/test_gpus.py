from __future__ import annotations

from pathlib import Path

import pytest

from fake_smi import A100, install, row
from oncofed import gpus
from oncofed.errors import FederationError
from oncofed.gpus import GPU, read_gpus

_LIST = f"""\
GPU 0: {A100} (UUID: GPU-0aaa)
  MIG 3g.20gb     Device  0: (UUID: MIG-31aa)
  MIG 1g.5gb      Device  1: (UUID: MIG-15bb)
GPU 1: {A100} (UUID: GPU-1aaa)
"""


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine with three GPUs, and no other driver files."""
    monkeypatch.setattr(gpus, "_ROOT", tmp_path / "root")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    install(tmp_path / "bin", monkeypatch, [row(0), row(1, free=1000), row(2)])
    return monkeypatch


def test_nvidia_smis_output_is_parsed(smi: pytest.MonkeyPatch) -> None:
    first, second, _ = read_gpus()
    assert first == GPU(0, A100, "580.82", 40.0, 40000 / 1024, 3, "GPU-0aaa")
    assert (first.device, first.is_taken, second.is_taken) == (0, False, True)


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        (None, [0, 1, 2]),
        ("2,0", [2, 0]),
        ("GPU-1aaa, 0", [1, 0]),
        ("GPU-2", [2]),
        ("1,7,0", [1]),  # as CUDA does
        ("0,-1,1", [0]),
        ("1,1", [1]),
        ("", []),
        ("-1", []),
        ("none", []),
        ("NoDevFiles", []),
    ],
)
def test_a_process_has_the_gpus_that_its_environment_names(
    smi: pytest.MonkeyPatch, named: str | None, expected: list[int]
) -> None:
    environment = {} if named is None else {"CUDA_VISIBLE_DEVICES": named}
    assert [gpu.device for gpu in read_gpus(environment)] == expected


@pytest.mark.parametrize(("named", "told"), [("7", "names 7, and"), ("MIG-99", "names one by its id, and")])
def test_an_unknown_gpu_name_is_reported(smi: pytest.MonkeyPatch, named: str, told: str) -> None:
    with pytest.raises(FederationError, match=f"{told} nvidia-smi lists 0, 1, 2. Start with one"):
        read_gpus({"CUDA_VISIBLE_DEVICES": named})


def test_a_sliced_gpu_is_listed_by_its_slices(smi: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(tmp_path / "bin", smi, [row(0, busy="[N/A]"), row(1)], _LIST)
    first, second, whole = read_gpus()
    assert first == GPU(0, f"{A100} 3g.20gb", "580.82", 20.0, 20.0, None, "MIG-31aa", is_slice=True)
    assert [gpu.device for gpu in (first, second, whole)] == ["MIG-31aa", "MIG-15bb", 1]
    for named, expected in (("MIG-15bb", ["MIG-15bb"]), ("0", ["MIG-31aa"]), ("1,MIG-31", [1, "MIG-31aa"])):
        assert [gpu.device for gpu in read_gpus({"CUDA_VISIBLE_DEVICES": named})] == expected


def test_a_broken_driver_is_reported(smi: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(tmp_path / "bin", smi, ["Failed to initialize NVML: Driver/library version mismatch"], status=18)
    with pytest.raises(FederationError, match="nvidia-smi says: Failed to initialize NVML: Driver"):
        read_gpus()
    install(tmp_path / "bin", smi, ["No devices were found"])
    with pytest.raises(FederationError, match="nvidia-smi says: No devices were found"):
        read_gpus()
    install(tmp_path / "bin", smi, [row(0)], sleep=2)
    smi.setattr(gpus, "_SECONDS", 0.2)
    with pytest.raises(FederationError, match="does not answer within 0 s"):
        read_gpus()


@pytest.mark.parametrize("trace", ["dev/nvidia0", "usr/lib64/libcuda.so.1", "usr/lib/x86_64-linux-gnu/libcuda.so.1"])
def test_an_unreachable_driver_is_not_taken_for_a_missing_one(
    smi: pytest.MonkeyPatch, tmp_path: Path, trace: str
) -> None:
    smi.setenv("PATH", str(tmp_path / "nothing"))
    assert read_gpus() == []
    (tmp_path / "root" / trace).parent.mkdir(parents=True)
    (tmp_path / "root" / trace).touch()
    with pytest.raises(FederationError, match=f"{trace} is there, of a driver, and nvidia-smi is not in PATH"):
        read_gpus()
