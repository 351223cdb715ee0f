"""When networks are compiled.

Also failures, and where kernels are kept.
"""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._inductor.runtime import cache_dir_utils

from oncofed.training import compiling
from oncofed.training.compiling import (
    CACHE_VARIABLE,
    Compiling,
    Form,
    Situation,
    Timing,
    can_compile,
    choose,
    cost_seconds,
    has_paid,
    in_form,
    pays_by_plan,
    use_cache,
)

BUSY = Timing(step=0.1, host=0.02)
LAUNCHING = Timing(step=0.1, host=0.095)
GPU = torch.device("cuda")


@pytest.mark.parametrize(
    ("timing", "steps", "cost", "replayable", "expected"),
    [
        (BUSY, 10_000, 60, True, "compiled"),
        (BUSY, 2_000, 60, True, "eager"),  # saves 50 s
        (BUSY, 2_600, 60, True, "compiled"),
        (BUSY, 2_000, 8, True, "compiled"),  # kernels are there already
        (LAUNCHING, 2_600, 60, True, "replayed"),
        (LAUNCHING, 2_600, 60, False, "compiled"),
        (LAUNCHING, 2_000, 60, True, "eager"),
        (Timing(step=0.01, host=0.01), 24_000, 60, True, "eager"),
        (BUSY, 0, 60, True, "eager"),
    ],
)
def test_the_fastest_form_is_chosen(timing: Timing, steps: int, cost: float, replayable: bool, expected: Form) -> None:
    assert choose(timing, steps, cost, replayable) == expected


def test_a_deterministic_run_decides_by_its_length() -> None:
    assert not pays_by_plan(500, 60)
    assert pays_by_plan(20_000, 60)


def test_a_difference_by_chance_does_not_count() -> None:
    assert has_paid(BUSY, Timing(0.08, 0.02))
    assert not has_paid(BUSY, Timing(0.099, 0.02))
    assert not has_paid(BUSY, Timing(0.2, 0.02))


def test_larger_networks_take_longer_and_kept_kernels_hardly_any_time() -> None:
    small, large = nn.Sequential(nn.Linear(1, 1)), nn.Sequential(*[nn.Linear(1, 1) for _ in range(300)])
    assert cost_seconds(small, cached=False) < cost_seconds(large, cached=False)
    assert cost_seconds(large, cached=True) < cost_seconds(small, cached=False)


class _Steps:
    """A training whose steps take a fixed time by form."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, took: dict[Form, Timing]) -> None:
        self.took, self.now, self.used, self.waits = took, 0.0, list[Form](), 0
        monkeypatch.setattr(compiling, "_now", lambda: self.now)
        monkeypatch.setattr(compiling, "can_compile", lambda: None)
        monkeypatch.setattr(compiling, "use_cache", lambda folder: False)
        monkeypatch.setattr(torch.cuda, "synchronize", self._wait)
        monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: None)
        self._ends = 0.0

    def _wait(self, device: torch.device) -> None:
        self.waits += 1
        self.now = max(self.now, self._ends)

    def of(self, **changes: Any) -> Compiling:
        situation = {"wanted": "auto", "deterministic": False, "total_steps": 10_000, "device": GPU, "replayable": True}
        self.compiling = Compiling(Situation(**{**situation, **changes}), nn.Linear(1, 1), self.used.append)
        return self.compiling

    def take(self, count: int, total: int = 10_000) -> None:
        for done in range(count):
            with self.compiling.step(total - done):
                timing = self.took[self.compiling.form]
                self._ends = self.now + timing.step
                self.now += timing.host


def test_after_fifty_steps_it_is_compiled_and_stays_so_where_that_saves(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = _Steps(monkeypatch, {"eager": BUSY, "compiled": Timing(0.06, 0.02)})
    steps.of()
    steps.take(49)
    assert steps.used == []
    steps.take(1)
    assert steps.used == ["compiled"]
    steps.take(200)
    assert steps.used == ["compiled"]
    assert steps.waits == 2 * (5 + 5)


def test_compiling_that_saves_nothing_is_given_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    steps = _Steps(monkeypatch, {"eager": BUSY, "compiled": Timing(0.11, 0.02)})
    steps.of()
    steps.take(200)
    assert steps.used == ["compiled", "eager"]
    assert "compiled saves nothing (110.0 ms a step): training goes on without it" in caplog.text


def test_graphs_that_save_nothing_leave_the_compiled_step(monkeypatch: pytest.MonkeyPatch) -> None:
    took: dict[Form, Timing] = {"eager": LAUNCHING, "replayed": Timing(0.1, 0.01), "compiled": Timing(0.07, 0.06)}
    steps = _Steps(monkeypatch, took)
    steps.of()
    steps.take(300)
    assert steps.used == ["replayed", "compiled"]


def test_a_short_run_is_never_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = _Steps(monkeypatch, {"eager": BUSY})
    steps.of(total_steps=900)
    steps.take(300, total=900)
    assert steps.used == []


def test_a_deterministic_run_reads_no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = _Steps(monkeypatch, {"eager": BUSY, "compiled": BUSY})
    steps.of(deterministic=True, total_steps=5_000)
    steps.take(200)
    assert steps.used == []
    steps.of(deterministic=True, total_steps=50_000)
    assert steps.used == ["compiled"]
    steps.take(200)
    assert steps.waits == 0


@pytest.mark.parametrize("changes", [{"wanted": "never"}, {"device": torch.device("cpu")}])
def test_without_a_gpu_or_if_disabled_nothing_is_measured(
    changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = _Steps(monkeypatch, {"eager": BUSY})
    steps.of(**changes)
    steps.take(200)
    assert steps.used == []
    assert steps.waits == 0


def test_several_processes_do_as_the_first_one_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = _Steps(monkeypatch, {"eager": Timing(0.001, 0.001), "compiled": BUSY})
    asked: list[bool] = []

    def agree(decision: bool) -> bool:
        asked.append(decision)
        return True

    steps.of(replayable=False, agree=agree)
    steps.take(200)
    assert steps.used == ["compiled"]
    assert asked == [False, False]


def test_each_form_that_fails_leaves_a_plainer_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    steps = _Steps(monkeypatch, {"eager": LAUNCHING, "replayed": LAUNCHING, "compiled": LAUNCHING})
    steps.of()
    steps.take(50)
    steps.compiling.fall_back(RuntimeError("overwritten\nby another"))
    assert steps.compiling.form == "compiled"
    steps.compiling.fall_back(RuntimeError("no ptxas"))
    assert steps.used == ["replayed", "compiled", "eager"]
    assert "a step as CUDA graphs failed (overwritten)" in caplog.text
    assert "torch.compile failed (no ptxas)" in caplog.text
    steps.take(200)
    assert steps.used[-1] == "eager"


def test_a_batch_in_parts_is_no_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = _Steps(monkeypatch, dict.fromkeys(("eager", "replayed", "compiled"), LAUNCHING))  # type: ignore[arg-type]
    steps.of().take_in_parts()
    steps.take(50)
    assert steps.used == ["compiled"]
    steps.used.clear()
    steps.of()
    steps.take(50)
    steps.compiling.take_in_parts()
    assert steps.used == ["replayed", "compiled"]


def test_if_compiling_cannot_work_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    steps = _Steps(monkeypatch, {"eager": BUSY})
    monkeypatch.setattr(compiling, "can_compile", lambda: "there is no C compiler: install gcc")
    steps.of()
    steps.take(200)
    steps.of(wanted="always")
    assert steps.used == []
    line = "torch.compile cannot be used here: there is no C compiler: install gcc. Training goes on without it"
    assert [record.getMessage() for record in caplog.records] == [line, line]


@pytest.fixture
def complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A machine with all that compiling needs."""
    (tmp_path / "Python.h").touch()
    compiler = tmp_path / "gcc"
    compiler.write_text("#!/bin/sh\n")
    compiler.chmod(0o755)
    monkeypatch.setattr(compiling.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    return tmp_path


def _forbidden(*args: object, **kwargs: object) -> None:
    raise PermissionError


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda folder, patch: None, None),
        (lambda folder, patch: (folder / "gcc").unlink(), "there is no C compiler: install gcc"),
        (lambda folder, patch: patch.setenv("CC", "icc"), "there is no compiler icc"),
        (lambda folder, patch: (folder / "Python.h").unlink(), "header files"),
        (lambda folder, patch: patch.setattr(subprocess, "run", _forbidden), "this process may start no others"),
        (lambda folder, patch: (folder / "gcc").write_text("#!/bin/sh\nexit 1\n"), "gcc does not run"),
    ],
)
def test_the_reason_why_it_cannot_work_is_given(
    complete: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[..., object], why: str | None
) -> None:
    change(complete, monkeypatch)
    found = can_compile()
    assert found is None if why is None else found and why in found


def test_a_cuda_build_needs_triton(complete: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(compiling.importlib.util, "find_spec", lambda name: None)
    assert can_compile() == "the package triton is not installed"


def test_kernels_are_kept_where_only_their_owner_can_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, "")
    assert use_cache(tmp_path) is False
    cache = Path(os.environ[CACHE_VARIABLE])
    assert cache == tmp_path / "compiled"
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    (cache / "kernel").touch()
    monkeypatch.setenv(CACHE_VARIABLE, "")
    assert use_cache(tmp_path) is True


def test_kernels_that_others_could_have_put_there_are_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, "")
    (tmp_path / "compiled").mkdir()
    (tmp_path / "compiled").chmod(0o770)
    assert use_cache(tmp_path) is False
    assert os.environ[CACHE_VARIABLE] == ""
    assert "is not this user's alone" in caplog.text


def test_without_a_folder_they_lie_among_the_users_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    use_cache(None)
    assert os.environ[CACHE_VARIABLE] == str(tmp_path / "oncofed" / "compiled")
    use_cache(tmp_path / "elsewhere")  # whoever set the variable is heeded
    assert os.environ[CACHE_VARIABLE] == str(tmp_path / "oncofed" / "compiled")


def test_the_folder_that_torch_chose_goes_with_the_run_and_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(CACHE_VARIABLE, raising=False)
    monkeypatch.setenv(CACHE_VARIABLE, cache_dir_utils.default_cache_dir())
    use_cache(tmp_path)
    assert os.environ[CACHE_VARIABLE] == str(tmp_path / "compiled")


def test_forms_are_what_torch_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(torch, "compile", lambda function, **options: asked.append(options) or function)
    network = nn.Linear(1, 1)
    assert in_form(network, "eager", True) is network
    for form in ("compiled", "replayed"):
        for deterministic in (False, True):
            in_form(network, form, deterministic)
    graphs, same = {"triton.cudagraphs": True}, {"deterministic": True}
    assert asked == [{}, {"options": same}, {"options": graphs}, {"options": {**same, **graphs}}]


def test_torch_knows_these_options() -> None:
    from torch import _inductor  # noqa: PLC0415 - it takes seconds

    known = _inductor.list_options()
    assert "deterministic" in known
    assert "triton.cudagraphs" in known
