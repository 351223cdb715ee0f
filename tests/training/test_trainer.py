from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from oncofed.data.cases import read_cases
from oncofed.errors import TrainingError
from oncofed.job.spec import JobSpec
from oncofed.training import Trainer
from oncofed.training.batch_gradients import training_precision
from oncofed.training.optimizer import learning_rate
from oncofed.training.settings import TrainingSpec


def _trainer(spec: JobSpec, site: Path, name: str = "site-1", **training: object) -> Trainer:
    plan = spec.changed({"training": training}).plan() if training else spec.plan()
    return Trainer(plan, read_cases(site, plan.data.split, plan.seed), name)


def test_it_learns(spec: JobSpec, site: Path) -> None:
    trainer = _trainer(spec, site, steps_per_round=30)
    before = trainer.evaluate(trainer.cases.validation).mean
    first = trainer.train(5)
    trainer.train(45)
    assert trainer.train(5) < first * 0.8
    after = trainer.evaluate(trainer.cases.validation).mean
    assert before is not None
    assert after is not None
    assert after > before + 0.2


def test_two_runs_with_one_seed_are_equal_to_the_bit(spec: JobSpec, site: Path) -> None:
    runs = [_trainer(spec, site) for _ in range(2)]
    losses = []
    for trainer in runs:
        # Each run sets the process's random state when it is made: make and train one after the other.
        fresh = _trainer(spec, site)
        losses.append(fresh.train(6))
        trainer.load_weights(fresh.weights())
    assert losses[0] == losses[1]
    first, second = (trainer.weights() for trainer in runs)
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_round_continues_where_the_last_one_ended(spec: JobSpec, site: Path) -> None:
    whole, parts = _trainer(spec, site), _trainer(spec, site)
    whole = _trainer(spec, site)
    whole.train(6)
    parts = _trainer(spec, site)
    parts.train(2)
    parts.load_weights(parts.weights())
    parts.train(4)
    assert parts.steps_done == whole.steps_done == 6
    expected = whole.weights()
    assert all(torch.equal(value, expected[key]) for key, value in parts.weights().items())


def test_sites_draw_their_own_patches(spec: JobSpec, site: Path) -> None:
    assert _trainer(spec, site, "east").train(3) != _trainer(spec, site, "west").train(3)


def test_a_loss_that_is_not_finite_stops_with_a_message(spec: JobSpec, site: Path) -> None:
    trainer = _trainer(spec, site)
    weights = trainer.weights()
    trainer.load_weights({key: torch.full_like(value, float("nan")) for key, value in weights.items()})
    with pytest.raises(
        TrainingError, match=r"the loss was not finite in 1 of 1 steps up to step 1, expected at most 10"
    ):
        trainer.train(1)


def test_gradients_are_clipped(spec: JobSpec, site: Path) -> None:
    trainer = _trainer(spec, site, gradient_clip=1e-3, optimizer="sgd", learning_rate=1.0, weight_decay=0.0)
    before = trainer.weights()
    trainer.train(1)
    after = trainer.weights()
    moved = torch.sqrt(sum(((after[k] - before[k]) ** 2).sum() for k in before))
    assert moved <= 1e-3 * 1.0 * 1.99 + 1e-6  # Nesterov adds momentum times the gradient


def test_training_stops_when_asked(spec: JobSpec, site: Path) -> None:
    trainer = _trainer(spec, site)
    trainer.train(5, should_stop=lambda: trainer.steps_done >= 2)
    assert trainer.steps_done == 2


def test_the_schedule_runs_over_all_rounds_and_does_not_restart() -> None:
    spec = TrainingSpec(learning_rate=1e-2, warmup_steps=10, schedule="cosine")
    rates = [learning_rate(spec, step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(1e-3)
    assert max(rates) == pytest.approx(1e-2)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))
    assert rates[-1] < 3e-4
    constant = spec.model_copy(update={"schedule": "constant"})
    assert learning_rate(constant, 99, 100) == 1e-2
    polynomial = spec.model_copy(update={"schedule": "polynomial"})
    assert learning_rate(polynomial, 100, 100) == 0


def test_a_job_sets_whether_its_runs_are_deterministic(spec: JobSpec, site: Path) -> None:
    _trainer(spec, site, deterministic=True)
    assert torch.are_deterministic_algorithms_enabled()
    _trainer(spec, site, deterministic=False)
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.benchmark


def test_nondeterministic_operations_are_named_in_the_first_step(
    spec: JobSpec, site: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = _trainer(spec, site, deterministic=True)
    network = trainer.network

    def forward(image: torch.Tensor) -> torch.Tensor:
        return network(image.put_(torch.tensor([0]), torch.tensor([0.5])))  # type: ignore[no-any-return]

    trainer._gradients.forward = forward
    trainer.train(3)
    assert [message for message in caplog.messages if "put_" in message] == [
        (
            "training.deterministic: on this device there is no deterministic form of put_. Two runs may differ in "
            "their last bits"
        )
    ]


def test_explicit_bfloat16_on_a_gpu_without_it_is_reported(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cuda, spec = torch.device("cuda"), TrainingSpec(precision="bfloat16")
    for has in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, has=has: has)
        assert training_precision(spec, cuda) is torch.bfloat16
        assert ("which this GPU only emulates" in caplog.text) == (not has)


def test_a_profiler_sees_the_parts_of_a_step(spec: JobSpec, site: Path) -> None:
    trainer = _trainer(spec, site)
    trainer.train(1)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        trainer.train(2)
    found = [event.name for event in profile.events() or [] if event.is_user_annotation]
    assert {name: found.count(name) for name in ("input", "forward", "loss", "backward", "optimizer")} == dict.fromkeys(
        ("input", "forward", "loss", "backward", "optimizer"), 2
    )
