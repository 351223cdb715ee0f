"""Differential privacy of a step: what one patient can change, and how much noise hides it."""

from __future__ import annotations

import math
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from oncofed.algorithms.fedprox import Proximal
from oncofed.algorithms.scaffold import ControlVariates
from oncofed.data.cases import read_cases
from oncofed.job.spec import JobSpec
from oncofed.privacy.noise import SecretRandomness
from oncofed.training import Trainer, start_trainer
from oncofed.training.optimizer import StepScaler
from oncofed.training.patient_draws import PatientDraw, PatientDraws
from oncofed.training.patient_gradients import ClippedSum, PatientGradients

_KEY = bytes(range(32))
_PRIVATE = {"noise_multiplier": 1.0, "delta": 1e-3, "sampling": 0.5, "patches": 2, "clip": 0.5}
_TRAINING = {"optimizer": "sgd", "momentum": 0.9, "schedule": "constant", "learning_rate": 0.05}


class _Given:
    """Gives each patient the gradient that its batch holds."""

    def __init__(self, weight: nn.Parameter) -> None:
        self.scaler = StepScaler("cpu", torch.float32)
        self._weight = weight

    def compute(self, batch: dict[str, Tensor]) -> Tensor:
        self._weight.grad = batch["gradient"].clone()
        return batch["gradient"].sum()


def _step(patients: list[Tensor], size: int, *, clip: float, deviation: float, key: bytes = _KEY) -> Tensor:
    """Return the sum that a step of these patients makes."""
    network = nn.Linear(size, 1, bias=False)
    given: Any = _Given(network.weight)
    gradients = PatientGradients(given, network, clip=clip, deviation=deviation, divisor=7.0)
    batches: list[Any] = [partial(lambda own: {"gradient": own.view(1, -1)}, patient) for patient in patients]
    gradients.compute(PatientDraw(batches, SecretRandomness(key).step()))
    assert network.weight.grad is not None
    return network.weight.grad[0] * 7


# --- what one patient can change


@pytest.mark.parametrize("patient", [1e30, 1e-30, 0.0, math.nan, math.inf, 3.0])
def test_one_patient_changes_the_sum_by_the_clip_at_most(patient: float) -> None:
    others = [torch.randn(1000, generator=torch.Generator().manual_seed(n)) * 10.0**n for n in range(-3, 4)]
    network = nn.Linear(1000, 1, bias=False)
    sums = []
    for patients in (others, [*others, torch.full((1000,), patient)]):
        total = ClippedSum([network.weight], 0.5)
        for own in patients:
            total.add([own.view(1, -1).clone()])
        sums.append(total.sums[0])
    assert torch.isfinite(sums[1]).all()
    assert float((sums[1] - sums[0]).norm()) <= 0.5 * (1 + 1e-6)


def test_a_small_gradient_stays_as_it_is() -> None:
    assert _step([torch.tensor([0.1, -0.2])], 2, clip=0.5, deviation=0).tolist() == pytest.approx([0.1, -0.2])


def test_a_patient_without_a_finite_gradient_counts_as_zero() -> None:
    found = _step([torch.tensor([0.1, math.nan]), torch.tensor([0.2, 0.0])], 2, clip=0.5, deviation=0)
    assert found.tolist() == pytest.approx([0.2, 0.0])


def test_a_step_of_nobody_is_taken_with_its_noise() -> None:
    found = _step([], 10_000, clip=0.5, deviation=2.0)
    assert stats.kstest(found.numpy() / 2, "norm").pvalue > 1e-3


# --- how much noise hides it


@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.0])
def test_distance_of_with_and_without_is_one_in_sigma(sigma: float) -> None:
    with_ = _step([torch.eye(4000)[0] * 1e6], 4000, clip=0.5, deviation=0)
    noise = _step([], 4000, clip=0.5, deviation=sigma * 0.5)
    assert float(with_.max() / noise.std()) == pytest.approx(1 / sigma, rel=0.05)


@pytest.mark.attack(
    "telling from many releases of a private step whether a patient was there",
    by="noise as large as the job says: less is shown than the accountant's epsilon, more with half of the noise",
    logged="nowhere: it is a test of the release",
)
@pytest.mark.parametrize(
    ("sigma", "sampling", "steps", "claimed"), [(1.0, 1.0, 1, 4.38), (1.0, 0.1, 10, 2.85), (0.7, 0.05, 20, 4.65)]
)
def test_an_attacker_shows_less_than_the_accountant_says_and_more_where_noise_is_halved(
    sigma: float, sampling: float, steps: int, claimed: float
) -> None:
    assert 1.2 < _shown(sigma, sampling, steps, made=sigma) < claimed
    assert _shown(sigma, sampling, steps, made=sigma / 2) > claimed


def _shown(sigma: float, sampling: float, steps: int, made: float, releases: int = 200_000) -> float:
    """Return the epsilon that the best attack shows at 95 %, at a delta of 1e-5.

    It sees many runs of the mechanism with and without one patient, and knows all but whether the patient is there.
    """
    clip = 0.5
    own = float(_step([torch.ones(1) * 1e9], 1, clip=clip, deviation=0)[0]) / clip
    noise = [
        _step([], releases * steps, clip=clip, deviation=made * clip, key=bytes([run] * 32)).double() / clip
        for run in (1, 2)
    ]
    stream = SecretRandomness(_KEY).step()
    drawn = torch.zeros(releases * steps, dtype=torch.float64)
    drawn[stream.draws(len(drawn), sampling)] = own

    def evidence(seen: Tensor) -> np.ndarray[Any, Any]:
        ratio = torch.log1p(sampling * torch.expm1((2 * seen - 1) / (2 * sigma**2)))
        return ratio.view(releases, steps).sum(1).numpy()

    with_, without, half = evidence(drawn + noise[0]), evidence(noise[1]), releases // 2

    def excess(at: float) -> float:
        hits, alarms = (with_[:half] > at).mean() - 1e-5, (without[:half] > at).mean()
        return float(np.log(max(hits, 1e-12) / max(alarms, 1 / half)))

    at = max(np.quantile(without[:half], [0.9, 0.99, 0.999, 0.9999]), key=excess)
    hits, alarms = int((with_[half:] > at).sum()), int((without[half:] > at).sum())
    least = stats.beta.ppf(0.025, hits, half - hits + 1)
    most = stats.beta.ppf(0.975, alarms + 1, half - alarms)
    return float(np.log(max(least - 1e-5, 1e-12) / most))


# --- who is drawn


class _Indices:
    """Builds a batch that holds its cases' numbers."""

    def build(self, indices: list[int], generator: torch.Generator, upcoming: list[int]) -> dict[str, Any]:
        del generator, upcoming
        return {"cases": indices}


def _draws(patients: list[str], sampling: float, patches: int = 2, **more: Any) -> PatientDraws:
    builder: Any = _Indices()
    randomness = SecretRandomness(more.pop("key", _KEY))
    return PatientDraws(patients, builder, sampling=sampling, patches=patches, randomness=randomness, **more)


def test_numbers_of_patients_are_those_of_poisson_sampling() -> None:
    draws = _draws([f"p{n}" for n in range(60)], 0.2)
    counts = np.array([next(draws).patients for _ in range(10_000)])
    assert counts.mean() == pytest.approx(12, abs=4 * math.sqrt(9.6 / 10_000))
    assert counts.var() == pytest.approx(9.6, rel=0.05)


def test_a_patient_with_many_cases_is_drawn_as_one() -> None:
    patients = ["a"] * 50 + ["b"]
    drawn = [batch["cases"] for batch in next(_draws(patients, 1.0, patches=4))]
    assert len(drawn) == 2
    assert all(len(cases) == 4 for cases in drawn)
    assert len(set(drawn[0])) == 4
    assert drawn[1] == [50] * 4


def test_processes_share_the_patients_out() -> None:
    patients = [f"p{n % 5}" for n in range(20)]
    shares = [[batch["cases"][0] % 5 for batch in next(_draws(patients, 1.0, rank=rank, size=2))] for rank in (0, 1)]
    assert sorted(shares[0] + shares[1]) == [0, 1, 2, 3, 4]


def test_draws_resume_and_do_not_repeat() -> None:
    first, second = _draws(list("abcdefgh"), 0.5), _draws(list("abcdefgh"), 0.5, key=bytes(32))
    next(first)
    second.restore(first.state())
    ahead = [[batch["cases"] for batch in next(draws)] for draws in (first, second)]
    assert ahead[0] == ahead[1]


# --- a site's training


def _trainer(spec: JobSpec, site: Path, name: str = "site-1", checkpoint: Path | None = None, **more: Any) -> Trainer:
    private = {"differential_privacy": {**_PRIVATE, **more.pop("private", {})}}
    plan = spec.changed({"training": {**_TRAINING, **more}, "privacy": private}).plan()
    return Trainer(plan, read_cases(site, plan.data.split, plan.seed), name, checkpoint=checkpoint)


def test_without_noise_and_clip_it_is_the_mean_over_patients(spec: JobSpec, site: Path) -> None:
    trainer = _trainer(spec, site, private={"sampling": 1.0, "clip": 1000.0})
    assert trainer.patient_gradients
    trainer.patient_gradients.deviation = 0.0
    trainer.network.train()
    batches = list(next(trainer.prepare()))
    parameters = list(trainer.network.parameters())
    expected = [torch.zeros_like(value) for value in parameters]
    for batch in batches:
        loss = trainer.task.loss(trainer.network(batch["image"]), batch)
        for total, own in zip(expected, torch.autograd.grad(loss, parameters), strict=True):
            total.add_(own / len(batches))
    stream = SecretRandomness().step()
    again: list[Any] = [partial(lambda own: own, batch) for batch in batches]
    trainer.patient_gradients.compute(PatientDraw(again, stream))
    for value, wanted in zip(parameters, expected, strict=True):
        assert value.grad is not None
        assert torch.allclose(value.grad, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_processes_of_several_gpus_take_patients_each_and_one_makes_noise(spec: JobSpec, site: Path) -> None:
    private = {"differential_privacy": {**_PRIVATE, "noise_multiplier": 0.3, "sampling": 1.0, "clip": 1e-4}}
    changed = {"training": {**_TRAINING, "momentum": 0.0, "weight_decay": 0.0}, "privacy": private}
    plan = spec.changed({**changed, "resources": {"gpus": 2}}).plan()
    cases = read_cases(site, plan.data.split, plan.seed)
    with start_trainer(plan, cases, "site-1", devices="cpu") as trainer:
        before = trainer.weights()
        trainer.train(1)
        moved = torch.cat([(value - before[name]).flatten() for name, value in trainer.weights().items()])
    patients = len({case.patient for case in cases.train})
    noise = 0.05 * 0.3 * 1e-4 / patients
    # All patients pull the same way, each by the clip; noise adds its own length.
    longest = 0.05 * 1e-4 + noise * math.sqrt(len(moved)) * 1.2
    assert noise * math.sqrt(len(moved)) * 0.8 < float(moved.double().norm()) < longest


def test_two_runs_of_one_job_are_different(spec: JobSpec, site: Path) -> None:
    weights = []
    for _ in range(2):
        trainer = _trainer(spec, site)
        start = trainer.weights()
        trainer.train(1)
        weights.append({name: value - start[name] for name, value in trainer.weights().items()})
    for name, value in weights[0].items():
        assert not (value == weights[1][name]).any() or value.numel() < 9, name


def test_a_killed_training_goes_on_with_the_same_noise(spec: JobSpec, site: Path, tmp_path: Path) -> None:
    first = _trainer(spec, site, checkpoint=tmp_path / "checkpoint")

    def keep(done: int, loss: object) -> None:
        if done == 2:
            first._keep()
            first.settle()
            for copy in ("killed", "restored"):
                shutil.copy(tmp_path / "checkpoint", tmp_path / copy)
            torch.manual_seed(0)

    first.train(4, keep, round_key="1 a model")
    ends = [first.weights()]
    for copy, key in (("killed", "1 a model"), ("restored", "1 another model")):
        trainer = _trainer(spec, site, checkpoint=tmp_path / copy)
        assert (trainer.steps_done, trainer.unfinished) == (2, "1 a model")
        torch.manual_seed(0)
        trainer.train(2, round_key=key)
        ends.append(trainer.weights())
    whole, killed, restored = ends
    assert all(torch.equal(value, killed[name]) for name, value in whole.items())
    # A copy of the site is asked for another model: with the same noise, the difference would have none.
    assert not any(torch.equal(value, restored[name]) for name, value in whole.items() if value.numel() > 8)


def test_every_trained_weight_has_noise_and_others_none(spec: JobSpec, site: Path) -> None:
    trainer = _trainer(spec, site, private={"noise_multiplier": 50.0}, trainable=["model.2*"])
    before = trainer.weights()
    trainer.train(1)
    for name, value in trainer.weights().items():
        assert bool((value != before[name]).all()) == name.startswith("model.2"), name


def test_the_long_noisy_gradient_is_not_clipped_again(spec: JobSpec, site: Path) -> None:
    trainer = _trainer(spec, site, private={"noise_multiplier": 100.0}, gradient_clip=1e-3, momentum=0, weight_decay=0)
    before = trainer.weights()
    trainer.train(1)
    moved = torch.cat([(value - before[name]).flatten() for name, value in trainer.weights().items()])
    patients = len({case.patient for case in trainer.cases.train})
    assert float(moved.std()) == pytest.approx(0.05 * 100 * 0.5 / (0.5 * patients), rel=0.1)


def test_an_algorithm_corrects_after_the_noise(spec: JobSpec, site: Path) -> None:
    """A proximal term far longer than the clip moves the weights: it is no part of a patient's gradient."""
    trainer = _trainer(spec, site, momentum=0, weight_decay=0)
    trainer.gradient_hook = hook = Proximal(10.0)
    hook.start(trainer.network, {})
    hook.hold_near({name: value + 1000.0 for name, value in trainer.weights().items()})
    before = trainer.weights()
    trainer.train(1)
    moved = torch.cat([(value - before[name]).flatten() for name, value in trainer.weights().items()])
    assert float(moved.median()) == pytest.approx(0.05 * 10 * 1000, rel=0.01)


def test_scaffolds_control_is_the_mean_of_noisy_gradients(spec: JobSpec, site: Path) -> None:
    trainer = _trainer(spec, site, private={"noise_multiplier": 20.0}, momentum=0, weight_decay=0)
    trainer.gradient_hook = hook = ControlVariates()
    hook.start(trainer.network, {})
    before = trainer.weights()
    trainer.train(3)
    moved = trainer.weights()
    for of, control in hook.finish(trainer.network).items():
        name = of.removeprefix("control.")
        assert torch.allclose(control, (before[name] - moved[name]) / (3 * 0.05), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("more", [{"precision": "bfloat16"}, {"recompute_activations": True}, {"micro_batch": 1}])
def test_it_trains_in_every_way_of_saving_memory(spec: JobSpec, site: Path, more: dict[str, Any]) -> None:
    trainer = _trainer(spec, site, **more)
    assert math.isfinite(trainer.train(2))
    assert all(torch.isfinite(value).all() for value in trainer.weights().values())
