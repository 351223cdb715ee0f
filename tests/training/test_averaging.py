"""A running mean of the weights stands in for those of the last step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from oncofed.data.cases import read_cases
from oncofed.job.spec import JobSpec
from oncofed.models.weights import Weights
from oncofed.training import Plan, Trainer

DECAY = 0.5


@pytest.fixture
def plan(spec: JobSpec) -> Plan:
    return spec.changed({"training": {"steps_per_round": 8, "ema_decay": DECAY}, "rounds": {"number": 1}}).plan()


def _trainer(plan: Plan, site: Path, checkpoint: Path | None = None) -> Trainer:
    return Trainer(plan, read_cases(site, plan.data.split, plan.seed), "site-1", checkpoint=checkpoint)


def _same(one: Weights, other: Weights) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


def test_the_mean_is_of_the_steps_weights(plan: Plan, site: Path) -> None:
    trainer = _trainer(plan, site)
    expected = trainer.weights()
    for taken in range(1, 9):
        trainer.train(1)
        raw, _ = trainer.halfway()
        share = 1 - min(DECAY, (1 + taken) / (10 + taken))
        expected = {name: mean + share * (raw[name] - mean) for name, mean in expected.items()}
        assert not _same(raw, trainer.weights())
        for name, value in trainer.weights().items():
            torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-7)


def test_steps_go_on_from_the_last_steps_weights(plan: Plan, site: Path) -> None:
    without = plan.model_copy(update={"training": plan.training.model_copy(update={"ema_decay": 0.0})})
    one, other = _trainer(plan, site), _trainer(without, site)
    for _ in range(2):
        assert one.train(2) == other.train(2)
        one.weights()  # looked at in between
    assert _same(one.halfway()[0], other.weights())
    assert other.halfway()[1] == {}


def test_the_mean_is_what_is_scored(plan: Plan, site: Path) -> None:
    trainer = _trainer(plan, site)
    trainer.train(8)
    other = _trainer(plan, site)
    other.load_weights(trainer.weights())
    cases = trainer.cases.validation
    before = trainer.halfway()[0]
    assert trainer.evaluate(cases).mean == other.evaluate(cases).mean
    assert _same(before, trainer.halfway()[0])


def test_a_received_model_begins_it_anew(plan: Plan, site: Path) -> None:
    trainer = _trainer(plan, site)
    received = trainer.weights()
    trainer.train(4)
    trainer.load_weights(received)
    assert _same(trainer.weights(), received)


def test_an_unfinished_round_goes_on_with_its_mean(plan: Plan, site: Path, tmp_path: Path) -> None:
    whole = _trainer(plan, site)
    whole.train(8, round_key="1")
    killed = _trainer(plan, site, tmp_path / "checkpoint")
    received = killed.weights()
    killed.train(5, round_key="1")
    resumed = _trainer(plan, site, tmp_path / "checkpoint")
    assert resumed.unfinished == "1"
    halfway = resumed.halfway()
    resumed.load_weights(received)  # as a site does to score what it received
    resumed.go_back(halfway)
    resumed.train(3, round_key="1")
    assert _same(resumed.weights(), whole.weights())
    assert _same(resumed.halfway()[0], whole.halfway()[0])
