"""The outbound filter on FLARE's messages."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from nvflare.apis.dxo import from_shareable
from nvflare.apis.shareable import Shareable

from oncofed.errors import FederationError, PolicyError
from oncofed.flare import wire
from oncofed.flare.security.outbound_filter import check_reply
from oncofed.job.spec import JobSpec
from oncofed.messages.results import CombineResult, EvaluateResult, SiteFacts, TrainResult
from oncofed.models.weights import Weights
from outbound_results import COUNTS, EVALUATION, NUMBERS, delta_of, policy_of


def _update(delta: Weights, extra: Weights | None = None) -> Shareable:
    return wire.to_shareable(TrainResult(delta=delta, extra=extra or {}, cases=4, steps=4, numbers=NUMBERS))


def test_an_unknown_task_sends_nothing(spec: JobSpec) -> None:
    with pytest.raises(PolicyError, match="no job of oncofed has a task 'submit_model'"):
        check_reply(policy_of(spec), "submit_model", _update(delta_of(spec)))


def test_a_malformed_reply_does_not_leave(spec: JobSpec) -> None:
    message = _update(delta_of(spec))
    dxo = from_shareable(message)
    dxo.set_meta_prop("oncofed.numbers", "patient 7")
    dxo.update_shareable(message)
    with pytest.raises(PolicyError, match="malformed"):
        check_reply(policy_of(spec), "train", message)


def test_an_update_leaves_unchanged_with_audit_facts(spec: JobSpec) -> None:
    delta = delta_of(spec)
    control = {f"control.{name}": value for name, value in delta.items()}
    message = _update(delta, control)
    facts = check_reply(policy_of(spec, {"strategy": {"name": "scaffold"}}), "train", message)
    assert list(facts) == ["bytes", "tensors", "digest"]
    assert facts["bytes"] == wire.bytes_of(message)
    sent = wire.read_result("train", message)
    assert isinstance(sent, TrainResult)
    assert all(torch.equal(sent.delta[name], value) for name, value in delta.items())
    assert sent.extra.keys() == control.keys()
    with pytest.raises(FederationError, match="the strategy does not ask for"):
        check_reply(policy_of(spec), "train", _update(delta, control))


@pytest.mark.attack(
    "a collector's answer with tensors or numbers beside the mean",
    by="the outbound filter",
    logged="the site's audit log: message held back",
)
def test_a_collector_sends_only_a_mean(spec: JobSpec) -> None:
    delta, swarm = delta_of(spec), {"strategy": {"name": "swarm"}}
    message = wire.to_shareable(CombineResult(mean=delta, cases=8, missing=[], left_out={}))
    assert check_reply(policy_of(spec, swarm), "combine", message)["tensors"] == len(delta)
    for more in (
        {"extra": {"pixels": torch.rand(8, 8)}},
        {"numbers": {"loss": 1.0}},
        {"steps": 123},
    ):
        values: dict[str, Any] = {"delta": delta, "cases": 8, "steps": 1, "numbers": {}, **more}
        with pytest.raises(PolicyError, match="a mean"):
            check_reply(policy_of(spec, swarm), "combine", wire.to_shareable(TrainResult(**values)))


def test_scores_of_few_patients_are_removed_from_the_message(spec: JobSpec) -> None:
    policy = policy_of(spec, minimum_patients=10)
    update = _update(delta_of(spec))
    check_reply(policy, "train", update)
    sent = wire.read_result("train", update)
    assert isinstance(sent, TrainResult)
    assert sent.numbers["evaluation"]["mean"] is None
    assert sent.numbers["loss"] == 1.0
    score = wire.to_shareable(EvaluateResult({"evaluation": EVALUATION, "validate_s": 1.0}))
    check_reply(policy, "validate", score)
    assert from_shareable(score).data["evaluation"]["by_class"] == {}


def test_values_kept_by_policy_are_removed_from_the_message(spec: JobSpec) -> None:
    policy = policy_of(spec, training_profile=False)
    told = {"channels": {"patients": 9, "counts": [9, 0, 0, 0, 0]}}
    message = wire.to_shareable(SiteFacts({**COUNTS, "profile": told}))
    check_reply(policy, "prepare", message)
    assert from_shareable(message).data == COUNTS
    sums = {"patients": 9, "difference": 0.1, "variance": 0.01}
    message = wire.to_shareable(EvaluateResult({"evaluation": EVALUATION, "paired": sums}))
    check_reply(policy_of(spec, pooled_figures=False), "validate", message)
    assert from_shareable(message).data.keys() == {"evaluation"}
