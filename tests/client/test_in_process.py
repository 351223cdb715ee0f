"""Local training in one process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from oncofed.algorithms.plan import FederationPlan
from oncofed.client.in_memory import Unreported
from oncofed.client.in_process import InProcessTraining
from oncofed.client.local_training import SiteContext
from oncofed.job.spec import read_job
from oncofed.messages.requests import TrainRequest
from oncofed.messages.results import TrainResult
from oncofed.models.weights import Weights
from synthetic import make_site, write_job


def test_another_update_from_the_same_model_is_trained_and_not_the_kept_one(tmp_path: Path) -> None:
    plan = read_job(write_job(tmp_path / "job")).plan()
    context = SiteContext(site="east", data=make_site(tmp_path / "east"), state=tmp_path / "state")
    training = InProcessTraining(plan=plan, federation=FederationPlan(), context=context, reporter=Unreported())
    training.prepare()
    weights = plan.initial_weights()

    def trained(repeat: int) -> TrainResult:
        return training.train(TrainRequest(weights=weights, round=1, repeat=repeat), lambda: False)

    first, again, second = trained(0), trained(0), trained(1)
    training.close()
    assert _equal(first, again), "an answer that was lost is sent once more"
    assert not _equal(first, second), "its next batches"


def test_an_update_trained_with_other_control_variates_is_not_given_again(tmp_path: Path) -> None:
    """Under masks a site signs what its update began with: the model and the algorithm's tensors."""
    plan = read_job(write_job(tmp_path / "job")).plan()
    context = SiteContext(site="east", data=make_site(tmp_path / "east"), state=tmp_path / "state")
    federation = FederationPlan.model_validate({"strategy": {"name": "scaffold"}})
    training = InProcessTraining(plan=plan, federation=federation, context=context, reporter=Unreported())
    training.prepare()
    weights, trained = plan.initial_weights(), plan.layout().trained

    def update(control: float) -> TrainResult:
        extra = {f"control.{name}": torch.full_like(weights[name], control) for name in trained}
        return training.train(TrainRequest(weights=weights, round=1, extra=extra), lambda: False)

    first, again, other = update(0.0), update(0.0), update(1.0)
    training.close()
    assert _equal(first, again)
    assert not _equal(first, other)


def _equal(one: TrainResult, other: TrainResult) -> bool:
    return all(torch.equal(value, other.delta[name]) for name, value in one.delta.items())


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("state", ["kept", "reset"])
def test_momentum_is_kept_or_started_anew_with_each_model(tmp_path: Path, optimizer: str, state: str) -> None:
    changes = {"training": {"optimizer": optimizer, "optimizer_state": state, "augmentation": "none"}}
    plan = read_job(write_job(tmp_path / "job")).changed(changes).plan()
    data, weights = make_site(tmp_path / "east"), plan.initial_weights()

    def second_update(folder: Path, first: int) -> Weights:
        context = SiteContext(site="east", data=data, state=folder)
        training = InProcessTraining(plan=plan, federation=FederationPlan(), context=context, reporter=Unreported())
        training.prepare()
        if first:
            start = {name: value * 1.1 if value.is_floating_point() else value for name, value in weights.items()}
            training.train(TrainRequest(weights=start, round=1), lambda: False)
        optimizer_state = {id(p): dict(s) for p, s in training.trainer._optimizer.state.items()}
        assert any(value.any() for one in optimizer_state.values() for value in one.values()) == bool(first)
        training.trainer.begin_model()
        left = any(value.any() for one in training.trainer._optimizer.state.values() for value in one.values())
        assert left == (bool(first) and state == "kept")
        found = training.train(TrainRequest(weights=weights, round=2), lambda: False).delta
        training.close()
        return dict(found)

    after, fresh = second_update(tmp_path / "after", 1), second_update(tmp_path / "fresh", 0)
    assert after.keys() == fresh.keys()
    assert all(torch.isfinite(value).all() for value in after.values())
