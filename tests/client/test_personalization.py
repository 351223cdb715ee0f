"""The model that a site keeps after the last round."""

from __future__ import annotations

import csv
import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from oncofed.client.in_memory import InProcessSite, train_in_memory
from oncofed.client.in_process import InProcessTraining
from oncofed.client.local_training import LocalScore, SiteContext
from oncofed.client.personalization import mixed
from oncofed.job.outcome import begin_result, note_scores
from oncofed.job.progress import RunProgress
from oncofed.job.spec import JobSpec, read_job
from oncofed.messages.requests import EvaluateRequest, TrainRequest
from oncofed.models.weights import Weights
from oncofed.privacy.outbound import check_numbers
from oncofed.report.remarks import untold_gains
from oncofed.rounds.events import Event
from oncofed.training import Trainer
from synthetic import Voice, make_site, write_job

_SPLIT = {"validation": 0.3, "test": 0.3}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_site(tmp_path_factory.mktemp("sites") / "west", 20)


@pytest.fixture
def spec(tmp_path: Path) -> JobSpec:
    settings = {"steps": 25, "learning_rate": 0.02}
    changed = {"data": {"split": _SPLIT}, "training": {"steps_per_round": 25}, "personalization": settings}
    return read_job(write_job(tmp_path / "job")).changed(changed)


def test_a_run_tells_each_sites_gain(spec: JobSpec, data: Path, tmp_path: Path) -> None:
    """From the sites through the server's checks and record into the result, the site that gains least first."""
    spec = spec.changed({"training": {"steps_per_round": 4}, "personalization": {"candidates": ["fine_tuned"]}})
    plan, federation, events = spec.plan(), spec.federation(), list[Event]()
    folders = {
        "west": data,
        "east": make_site(tmp_path / "east", 20, seed=1),
        "small": make_site(tmp_path / "small", 6),
    }
    sites = {
        name: InProcessSite(plan, federation, SiteContext(site=name, data=folder, state=tmp_path / "at" / name))
        for name, folder in folders.items()
    }
    train_in_memory(plan, federation, sites, tmp_path / "server", events.append)
    state, result = RunProgress(), begin_result(spec, "simulate")
    for event in events:
        state.apply(event)
    note_scores(result, state)
    assert result.gains is not None
    assert set(result.gains) == {"west", "east"}, "of the small site nothing is told"
    gained = [gain.over_federated.difference for gain in result.gains.values()]
    assert gained == sorted(gained)
    assert "small" in untold_gains(result)


def _training(spec: JobSpec, data: Path, state: Path, reported: Voice | None = None) -> InProcessTraining:
    context = SiteContext(site="west", data=data, state=state)
    training = InProcessTraining(
        plan=spec.plan(), federation=spec.federation(), context=context, reporter=reported or Voice()
    )
    training.prepare()
    return training


def _tested(training: InProcessTraining, weights: Weights, stop: Callable[[], bool] = lambda: False) -> LocalScore:
    request = EvaluateRequest(weights=weights, round=1, split="test", keep=True)
    return training.validate(request, stop, "balls")


def _table(state: Path) -> dict[str, dict[str, str]]:
    with (state / "candidates.csv").open() as file:
        return {row["candidate"]: row for row in csv.DictReader(file)}


def _gain(score: LocalScore) -> dict[str, Any]:
    return dict(score.numbers["gain"])


def test_a_site_keeps_the_surest_candidate(spec: JobSpec, data: Path, tmp_path: Path) -> None:
    weights, state = spec.plan().initial_weights(), tmp_path / "state"
    training = _training(spec, data, state)
    score = _tested(training, weights)
    table, gain = _table(state), _gain(score)
    bounds = {name: float(row["lower_bound"]) for name, row in table.items() if row["lower_bound"]}
    assert set(bounds) == {"fine_tuned", "mixed 0.25", "mixed 0.5", "mixed 0.75"}
    (kept,) = [name for name, row in table.items() if row["kept"] == "True"]
    assert bounds[kept] == max(bounds.values()) > 0
    assert gain["kept"] == kept.split()[0]
    assert score.own
    assert gain["over_federated"]["difference"] > 0.1
    assert gain["over_alone"] is None
    check_numbers(score.numbers, spec.task.figure_names, sums=True)
    tuned = load_file(state / "candidates" / "fine_tuned.safetensors")
    share = float(kept.split()[1]) if " " in kept else 1.0
    expected = mixed(weights, tuned, share) if share < 1 else tuned
    found = load_file(state / "model" / "model.safetensors")
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    assert stat.S_IMODE((state / "candidates.csv").stat().st_mode) == 0o600
    assert stat.S_IMODE((state / "candidates").stat().st_mode) == 0o700
    training.close()


def test_the_federated_model_stays_where_nothing_is_surely_better(spec: JobSpec, data: Path, tmp_path: Path) -> None:
    spec = spec.changed({"personalization": {"learning_rate": 1e-9, "steps": 1}})
    weights = spec.plan().initial_weights()
    training = _training(spec, data, tmp_path / "state")
    score = _tested(training, weights)
    assert _gain(score)["kept"] == "federated"
    assert _gain(score)["over_federated"]["difference"] == 0
    assert not score.own
    kept = load_file(tmp_path / "state" / "model" / "model.safetensors")
    assert all(torch.equal(value, weights[name]) for name, value in kept.items())
    training.close()


def test_its_own_model_alone_is_a_candidate_where_the_job_says_so(spec: JobSpec, data: Path, tmp_path: Path) -> None:
    spec = spec.changed({"personalization": {"candidates": ["alone"]}})
    broken = {n: torch.zeros_like(v) for n, v in spec.plan().initial_weights().items()}
    training = _training(spec, data, tmp_path / "state")
    gain = _gain(_tested(training, broken))
    assert gain["kept"] == "alone"
    assert gain["over_alone"]["difference"] == 0
    assert gain["over_federated"]["difference"] > 0.1
    reference = Trainer(spec.plan(), training.trainer.cases, "west")
    reference.train(spec.plan().total_steps)
    alone = load_file(tmp_path / "state" / "candidates" / "alone.safetensors")
    assert all(torch.equal(value, alone[name]) for name, value in reference.weights().items())
    training.close()


def test_a_site_that_ends_halfway_chooses_the_same(spec: JobSpec, data: Path, tmp_path: Path) -> None:
    weights = spec.plan().initial_weights()
    training = _training(spec, data, tmp_path / "whole")
    expected = _gain(_tested(training, weights))
    training.close()
    state, reported = tmp_path / "ended", Voice()
    training = _training(spec, data, state, reported)

    def fine_tuning_goes_on() -> bool:
        path = state / "candidates" / "fine_tuned.training.safetensors"
        polled["times"] += (state / "candidates").is_dir()
        return polled["times"] > 10 and not path.is_file()

    polled = {"times": 0}
    assert "gain" not in _tested(training, weights, fine_tuning_goes_on).numbers
    training.close()
    assert (state / "candidates" / "fine_tuned.training.safetensors").is_file()
    assert not (state / "model").exists()
    for _ in range(2):  # the second finds the choice of the first
        training = _training(spec, data, state)
        assert _gain(_tested(training, weights)) == expected
        training.close()
    names = sorted(path.name for path in (state / "candidates").iterdir())
    assert names == ["choice.json", "fine_tuned.safetensors"]
    whole, ended = (load_file(tmp_path / one / "model" / "model.safetensors") for one in ("whole", "ended"))
    assert all(torch.equal(value, ended[name]) for name, value in whole.items())


@pytest.mark.attack(
    "a server that asks for the gain over model after model",
    by="the site: it personalizes once a job",
    logged="the site's own log",
)
def test_a_site_personalizes_one_model_of_a_job(spec: JobSpec, data: Path, tmp_path: Path) -> None:
    weights, reported = spec.plan().initial_weights(), Voice()
    training = _training(spec, data, tmp_path / "state", reported)
    _tested(training, weights)
    kept = load_file(tmp_path / "state" / "model" / "model.safetensors")
    other = {name: value * 0.5 if value.is_floating_point() else value for name, value in weights.items()}
    assert "gain" not in _tested(training, other).numbers
    assert any("another model than the job's" in text for text in reported.notes)
    after = load_file(tmp_path / "state" / "model" / "model.safetensors")
    assert all(torch.equal(value, after[name]) for name, value in kept.items())
    training.close()


def test_too_few_validation_patients_choose_nothing(spec: JobSpec, data: Path, tmp_path: Path) -> None:
    spec = spec.changed({"data": {"split": {"validation": 0.1, "test": 0.3}}})
    training = _training(spec, data, tmp_path / "state")
    weights = spec.plan().initial_weights()
    score = _tested(training, weights)
    assert "gain" not in score.numbers
    assert not (tmp_path / "state" / "candidates").exists()
    kept = load_file(tmp_path / "state" / "model" / "model.safetensors")
    assert all(torch.equal(value, weights[name]) for name, value in kept.items())
    training.close()


@pytest.mark.parametrize(("strategy", "other"), [("fedbn", "averaged_norms"), ("ditto", "personal")])
def test_models_of_the_algorithm_are_candidates(
    spec: JobSpec, data: Path, tmp_path: Path, strategy: str, other: str
) -> None:
    changed = {"strategy": {"name": strategy}, "personalization": {"candidates": []}, "model": {"norm": "batch"}}
    spec = spec.changed({**changed, "training": {"steps_per_round": 4}})
    training = _training(spec, data, tmp_path / "state")
    weights = spec.plan().initial_weights()
    training.train(TrainRequest(weights=weights, round=1), lambda: False)
    _tested(training, weights)
    assert set(_table(tmp_path / "state")) == {"federated", other}
    training.close()


def test_a_gain_stays_where_training_patients_were_promised_noise(spec: JobSpec, tmp_path: Path) -> None:
    private = {"noise_multiplier": 1.0, "delta": 1e-3, "sampling": 0.2, "patches": 1}
    spec = spec.changed({"privacy": {"differential_privacy": private}, "model": {"norm": "instance"}})
    training = _training(spec, make_site(tmp_path / "many", 60), tmp_path / "state")
    score = _tested(training, spec.plan().initial_weights())
    assert "gain" not in score.numbers
    assert score.own
    choice = json.loads((tmp_path / "state" / "candidates" / "choice.json").read_text())
    assert choice["kind"] in {"fine_tuned", "mixed"}
    training.close()


def test_a_failure_costs_the_choice_and_not_the_score(
    spec: JobSpec, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    reported = Voice()
    training = _training(spec, data, tmp_path / "state", reported)
    monkeypatch.setattr("oncofed.client.own_training.write_checkpoint", full)
    score = _tested(training, spec.plan().initial_weights())
    assert "evaluation" in score.numbers
    assert "gain" not in score.numbers
    assert any("the federated one is kept" in text for text in reported.notes)
    assert (tmp_path / "state" / "model" / "model.safetensors").is_file()
    training.close()
