"""Cases are prepared once per content and settings."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from oncofed.data import prepared as module
from oncofed.data.cases import read_cases
from oncofed.data.inputs import Patches
from oncofed.data.prepared import CACHE_FOLDER, CachePlan, PreparedCases, plan_cache
from oncofed.data.register import RegisterOptions, register
from oncofed.data.spec import DataSpec
from oncofed.errors import UnreadableError
from oncofed.processes import SHARED_VARIABLE
from synthetic import make_site

DATA = DataSpec(dataset="balls", patch=(16, 16, 16))
CPU = torch.device("cpu")


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    register(RegisterOptions(make_site(tmp_path / "in"), "balls", tmp_path / "set"))
    return tmp_path / "set"


def _prepare(dataset: Path, data: DataSpec = DATA) -> PreparedCases:
    cases = PreparedCases(read_cases(dataset, data.split, 1).train, Patches(data, "none", 3), CPU)
    for number in range(len(cases)):
        assert cases[number]
    return cases


def _files(dataset: Path) -> set[str]:
    return {path.name for path in (dataset / CACHE_FOLDER).glob("*")}


def test_a_second_run_reads_no_image(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = [_prepare(dataset)[n] for n in range(4)]
    monkeypatch.setattr(Patches, "prepare", lambda self, case: pytest.fail("an image was read"))
    for one, two in zip(first, (_prepare(dataset)[n] for n in range(4)), strict=True):
        assert one.keys() == two.keys()
        assert all(torch.equal(values, two[name]) for name, values in one.items())


@pytest.mark.parametrize("held", ["memory", "disk"])
def test_wherever_they_are_held_they_are_the_same(dataset: Path, held: str) -> None:
    cases = _prepare(dataset, DATA.model_copy(update={"cache": held}))
    assert cases.plan.held == held
    assert cases[0]["image"].shape == (1, 20, 20, 20)
    assert (cases._held[0] is None) == (held == "disk")
    assert torch.equal(cases[1]["image"], _prepare(dataset)[1]["image"])


def test_another_setting_or_another_content_is_prepared_anew(dataset: Path) -> None:
    _prepare(dataset)
    before = _files(dataset)
    _prepare(dataset, DATA.model_copy(update={"spacing": (2.0, 2.0, 2.0)}))
    assert len(_files(dataset)) == 2 * len(before)
    time.sleep(0.01)
    case = read_cases(dataset, DATA.split, 1).train[0]
    image = nib.load(case.image)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj) + 1, image.affine), case.image)
    _prepare(dataset)
    assert len(_files(dataset)) == 2 * len(before) + 1
    # Settings that do not change prepared cases do not change keys.
    _prepare(dataset, DATA.model_copy(update={"max_bad_share": 0.3}))
    assert len(_files(dataset)) == 2 * len(before) + 1


def test_a_file_that_a_killed_process_left_broken_is_made_anew(dataset: Path) -> None:
    expected = _prepare(dataset)[0]["image"]
    for path in (dataset / CACHE_FOLDER).glob("*"):
        path.write_bytes(path.read_bytes()[:100])
    assert torch.equal(_prepare(dataset)[0]["image"], expected)


def test_a_full_disk_costs_the_cache_and_not_the_run(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save_file", full)
    assert _prepare(dataset)[0]["image"].shape == (1, 20, 20, 20)
    assert _files(dataset) == set()


def test_each_is_prepared_when_it_is_wanted_or_a_little_before(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = read_cases(dataset, DATA.split, 1).train
    made: list[str] = []
    prepare = Patches.prepare
    monkeypatch.setattr(Patches, "prepare", lambda self, case: made.append(case.name) or prepare(self, case))
    threads = torch.get_num_threads()
    cases = PreparedCases(train, Patches(DATA, "none", 3), CPU)
    assert made == []
    cases.ahead([2, 0])
    assert cases.of(train[0])["image"].shape == (1, 20, 20, 20)
    assert cases[2] is cases[2]
    assert sorted(made) == sorted([train[2].name, train[0].name])
    cases.ahead([3])
    cases.ahead([1])
    assert set(cases._ahead._under_way) | set(cases._ahead._wanted) == {1}  # cases no longer wanted are dropped
    for number in range(len(cases)):
        assert cases[number]
    assert made.count(train[1].name) == 1
    assert cases._ahead._pool is None
    assert torch.get_num_threads() == threads


def test_a_case_that_cannot_be_read_is_told_when_it_is_wanted(dataset: Path) -> None:
    train = read_cases(dataset, DATA.split, 1).train
    train[1].image.write_bytes(b"")
    cases = PreparedCases(train, Patches(DATA, "none", 3), CPU)
    cases.ahead(range(4))
    assert cases[0]
    with pytest.raises(UnreadableError, match="empty"):
        assert cases[1]


def test_a_process_that_ends_waits_for_no_more_than_its_threads_do(dataset: Path) -> None:
    program = """
import sys, time
from pathlib import Path
from oncofed.lean_imports import lean_imports
with lean_imports():
    import torch
    from oncofed.data.cases import read_cases
    from oncofed.data.inputs import Patches
    from oncofed.data.prepared import PreparedCases
    from oncofed.data.spec import DataSpec

class Slow(Patches):
    def prepare(self, case):
        sys.stdout.write(case.name + "\\n")  # in one piece: two threads write
        sys.stdout.flush()
        time.sleep(1)
        return super().prepare(case)

data = DataSpec(dataset="balls", patch=(16, 16, 16))
train = read_cases(Path(sys.argv[1]), data.split, 1).train
cases = PreparedCases(train * 1, Slow(data, "none", 3), torch.device("cpu"))
cases.ahead(range(len(train)))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(dataset)], capture_output=True, text=True, timeout=300, check=True
    )
    assert len(done.stdout.split()) == 2  # of four
    assert done.stderr == ""


def test_what_is_held_in_memory_leaves_no_file_open_and_what_is_on_disk_takes_none(dataset: Path) -> None:
    def mapped() -> int:
        return Path("/proc/self/maps").read_text().count(CACHE_FOLDER)

    before = mapped()
    held = _prepare(dataset)
    again = _prepare(dataset)
    assert mapped() == before
    on_disk = _prepare(dataset, DATA.model_copy(update={"cache": "disk"}))
    kept = [on_disk[number] for number in range(len(on_disk))]
    assert mapped() == before + len(kept)
    assert torch.equal(kept[0]["image"], held[0]["image"])
    assert torch.equal(again[0]["image"], held[0]["image"])


def test_what_is_promised_shrinks_as_cases_come(dataset: Path) -> None:
    cases = PreparedCases(read_cases(dataset, DATA.split, 1).train, Patches(DATA, "none", 3), CPU)
    assert cases.promised == cases.plan.bytes
    assert cases[0]
    assert cases.promised == 3 * (cases.plan.bytes or 0) // 4
    promised = 10**15
    assert plan_cache(cases._cases, Patches(DATA, "none", 3), CPU, promised).held == "memory"  # nor is there a disk
    assert plan_cache(cases._cases, Patches(DATA, "none", 3), CPU, promised).folder is None


def test_a_gpu_that_has_no_room_any_more_leaves_cases_in_memory(
    dataset: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    train = read_cases(dataset, DATA.split, 1).train
    gpu, to = torch.device("meta"), torch.Tensor.to
    cases = PreparedCases(train, Patches(DATA, "none", 3), gpu, plan=CachePlan(1, "gpu", None, ""))
    assert cases[0]["image"].is_meta

    def full(self: torch.Tensor, *arguments: object, **more: object) -> torch.Tensor:
        if gpu in arguments:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return to(self, *arguments, **more)

    monkeypatch.setattr(torch.Tensor, "to", full)
    assert cases[1]
    assert cases[2]
    assert cases.plan.held == "memory"
    assert len(caplog.records) == 1
    assert "room for 1 of 4" in caplog.text


def test_its_size_is_told_before_and_what_does_not_fit_goes_elsewhere(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = read_cases(dataset, DATA.split, 1).train
    plan = plan_cache(train, Patches(DATA, "none", 3), CPU)
    _prepare(dataset)
    written = sum(path.stat().st_size for path in (dataset / CACHE_FOLDER).glob("*"))
    assert plan.bytes is not None
    assert 0.3 * plan.bytes < written < 1.1 * plan.bytes
    assert "prepared cases, about" in plan.note
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: _Free(10))
    assert plan_cache(train, Patches(DATA, "none", 3), CPU).folder is None
    monkeypatch.undo()
    monkeypatch.setattr(module.psutil, "virtual_memory", lambda: _Free(10))
    assert plan_cache(train, Patches(DATA, "none", 3), CPU).held == "disk"


@pytest.mark.parametrize(
    ("sites", "free", "held"), [(None, 3, "gpu"), ("1", 3, "gpu"), ("2", 3, "memory"), ("2", 6, "gpu")]
)
def test_sites_that_share_a_gpu_share_its_memory(
    dataset: Path, monkeypatch: pytest.MonkeyPatch, sites: str | None, free: int, held: str
) -> None:
    train = read_cases(dataset, DATA.split, 1).train
    size = plan_cache(train, Patches(DATA, "none", 3), CPU).bytes
    assert size is not None
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free * size, 100 * size))
    monkeypatch.setenv(SHARED_VARIABLE, sites) if sites else monkeypatch.delenv(SHARED_VARIABLE, raising=False)
    assert plan_cache(train, Patches(DATA, "none", 3), torch.device("cuda")).held == held


def test_nothing_is_written_beside_images_that_nobody_registered(tmp_path: Path) -> None:
    site = make_site(tmp_path / "in")
    before = set(site.rglob("*"))
    assert _prepare(site).plan.folder is None
    assert set(site.rglob("*")) == before


class _Free:
    def __init__(self, free: int) -> None:
        self.free = self.available = free
