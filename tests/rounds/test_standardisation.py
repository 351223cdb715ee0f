"""Mean and spread of a table's numbers travel with the model, and stay what they were at first."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from oncofed.client.in_memory import InProcessSite, train_in_memory
from oncofed.client.local_training import SiteContext
from oncofed.data.moments import own_moments
from oncofed.job.spec import JobSpec
from oncofed.messages.requests import Request, TrainRequest
from oncofed.messages.results import Result, SiteFacts
from oncofed.rounds.events import BEST_MODEL, EVENTS_FILE, MODELS_FOLDER, EventLog, NotStandardised, Standardised
from oncofed.rounds.job_model import JobModel
from oncofed.rounds.run_state import read_run_state
from tabular import IMAGE, JOB, TABLE_ALONE, make_table_site, table_cases, table_job
from tiny_federation import Killed, Recorder

_STEPS = {"training": {"steps_per_round": 3, "batch_size": 8}, "rounds": {"number": 2}}


class _Site(InProcessSite):
    """A site that notes the moments that it receives, and may keep its sums back."""

    def __init__(self, spec: JobSpec, name: str, data: Path, folder: Path, tells: bool = True) -> None:
        super().__init__(spec.plan(), spec.federation(), SiteContext(site=name, data=data, state=folder))
        self._tells = tells
        self.received: list[Mapping[str, Tensor]] = []

    def __call__(self, request: Request) -> Result:
        if isinstance(request, TrainRequest):
            self.received.append(_moments(request.weights))
        result = super().__call__(request)
        if isinstance(result, SiteFacts) and not self._tells:
            return SiteFacts({name: value for name, value in result.numbers.items() if name != "covariates"})
        return result


def _moments(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.rpartition(".")[2]: value for name, value in weights.items() if "numbers_" in name}


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sites")
    return {name: make_table_site(folder / name, 40, seed, 45.0 + 10 * seed) for seed, name in enumerate(("a", "b"))}


@pytest.fixture
def spec(tmp_path: Path) -> JobSpec:
    return table_job(tmp_path / "job", JOB.replace(IMAGE, TABLE_ALONE)).changed(_STEPS)


def _run(
    spec: JobSpec,
    sites: Mapping[str, Path],
    folder: Path,
    kill_after: int | None = None,
    quiet: frozenset[str] = frozenset(),
    initial: Path | None = None,
) -> tuple[Recorder, dict[str, _Site]]:
    """Run server and sites as new processes would."""
    log = EventLog(folder / EVENTS_FILE)
    running = {name: _Site(spec, name, data, folder / name, name not in quiet) for name, data in sites.items()}
    recorder = Recorder(log, kill_after)
    try:
        train_in_memory(spec.plan(), spec.federation(), running, folder, recorder, JobModel(spec.plan(), initial))
    finally:
        log.close()
    return recorder, running


def _expected(spec: JobSpec, sites: Mapping[str, Path]) -> tuple[float, float]:
    ages = []
    for data in sites.values():
        for case in table_cases(spec, data).train:
            assert case.entry
            ages += [float(case.entry.tags["age"])] if case.entry.tags["age"] != "NA" else []
    return float(np.mean(ages)), float(np.std(ages))


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"strategy": {"name": "fedadam"}, "exchange": {"update": "int8"}},
        {"strategy": {"name": "scaffold"}},
        {"strategy": {"name": "median"}, "exchange": {"update": "bfloat16"}},
        {"strategy": {"name": "ditto"}},
    ],
)
def test_all_sites_standardise_alike_and_nothing_moves_it(
    change: dict[str, Any], spec: JobSpec, sites: dict[str, Path], tmp_path: Path
) -> None:
    recorder, running = _run(spec.changed(change), sites, tmp_path)
    mean, spread = _expected(spec, sites)
    state = read_run_state(tmp_path)
    assert state
    last, best = _moments(state.model), _moments(load_file(tmp_path / MODELS_FOLDER / BEST_MODEL))
    assert float(last["numbers_mean"]) == pytest.approx(mean, abs=0.01)
    assert float(last["numbers_spread"]) == pytest.approx(spread, abs=0.05)
    for found in [best, *(one for site in running.values() for one in site.received)]:
        assert {name: value.tolist() for name, value in found.items()} == {n: v.tolist() for n, v in last.items()}
    (told,) = (event for event in recorder.events if isinstance(event, Standardised))
    assert told.columns["age"] == pytest.approx([mean, spread], abs=0.05)
    assert not [event for event in recorder.events if isinstance(event, NotStandardised)]


def test_a_killed_server_keeps_them_whoever_joins_later(spec: JobSpec, sites: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(Killed):
        _run(spec, {"a": sites["a"]}, tmp_path, kill_after=9)
    before = read_run_state(tmp_path)
    assert before
    assert before.round == 1
    recorder, _ = _run(spec, sites, tmp_path)
    after = read_run_state(tmp_path)
    assert after
    assert after.round == 2
    assert {n: v.tolist() for n, v in _moments(after.model).items()} == {
        n: v.tolist() for n, v in _moments(before.model).items()
    }
    assert not [event for event in recorder.events if isinstance(event, Standardised)]
    assert float(_moments(after.model)["numbers_mean"]) == pytest.approx(
        _expected(spec, {"a": sites["a"]})[0], abs=0.01
    )


def test_without_any_sums_the_plausible_range_stands_in_and_that_is_said(
    spec: JobSpec, sites: dict[str, Path], tmp_path: Path
) -> None:
    recorder, _ = _run(spec, sites, tmp_path, quiet=frozenset(sites))
    (event,) = (event for event in recorder.events if isinstance(event, NotStandardised))
    assert (
        str(event)
        == "no site told sums of age: the middle and a quarter of the plausible range stand for mean and spread"
    )
    state = read_run_state(tmp_path)
    assert state
    assert [float(value) for value in _moments(state.model).values()] == [60.0, 30.0]


def test_a_model_that_the_job_brings_keeps_its_own(spec: JobSpec, sites: dict[str, Path], tmp_path: Path) -> None:
    weights = spec.plan().initial_weights()
    weights |= {name: value + 1 for name, value in weights.items() if "numbers_" in name}
    save_file(weights, tmp_path / "brought.safetensors")
    _run(spec, sites, tmp_path / "run", initial=tmp_path / "brought.safetensors")
    state = read_run_state(tmp_path / "run")
    assert state
    assert [float(value) for value in _moments(state.model).values()] == [61.0, 31.0]


def test_a_site_alone_takes_its_own(spec: JobSpec, sites: dict[str, Path]) -> None:
    cases = table_cases(spec, sites["a"])
    mean, spread = own_moments(cases.train, spec.data.covariates)["age"]
    assert (mean, spread) == pytest.approx(_expected(spec, {"a": sites["a"]}))
    assert torch.isfinite(torch.tensor([mean, spread])).all()
