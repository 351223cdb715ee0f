"""The outbound policy's decision on each kind of result."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from oncofed.errors import FederationError, PolicyError
from oncofed.flare.security.outbound_policy import Approved, OutboundPolicy
from oncofed.job.spec import JobSpec
from oncofed.messages.compression import Compressor, NotFiniteError
from oncofed.messages.results import CombineResult, EvaluateResult, Result, SiteFacts, TrainResult
from oncofed.models.weights import Weights
from oncofed.privacy.gains import gain_numbers
from oncofed.tasks.differences import Part
from outbound_results import COUNTS, EVALUATION, NUMBERS, delta_of, policy_of
from tabular import table_job


def _update(delta: Mapping[str, torch.Tensor], extra: Weights | None = None, **numbers: Any) -> TrainResult:
    return TrainResult(delta=delta, extra=extra or {}, cases=4, steps=4, numbers={**NUMBERS, **numbers})


def _check(policy: OutboundPolicy, result: Result) -> Approved:
    tensors = [*result.delta.values(), *result.extra.values()] if isinstance(result, TrainResult) else []
    return policy.check(result, sum(value.nbytes for value in tensors))


@pytest.mark.parametrize("kind", ["native", "bfloat16", "int8"])
def test_a_declared_update_leaves_with_audit_facts(spec: JobSpec, kind: Any) -> None:
    policy = policy_of(spec, {"exchange": {"update": kind}})
    sent = _update(Compressor(kind).compress(delta_of(spec)))
    approved = _check(policy, sent)
    assert approved.result is sent
    assert approved.facts["bytes"] > 1000
    assert approved.facts["tensors"] == len(delta_of(spec))
    again = _check(policy, sent).facts
    assert again["digest"] == approved.facts["digest"]
    other = _check(policy, _update(Compressor(kind).compress(delta_of(spec, 1)))).facts
    assert other["digest"] != approved.facts["digest"]


def test_control_variates_leave_only_with_scaffold(spec: JobSpec) -> None:
    delta = delta_of(spec)
    control = {f"control.{name}": value for name, value in delta.items()}
    _check(policy_of(spec, {"strategy": {"name": "scaffold"}}), _update(delta, control))
    with pytest.raises(FederationError, match="the strategy does not ask for"):
        _check(policy_of(spec), _update(delta, control))


def test_undeclared_tensors_shapes_and_types_do_not_leave(spec: JobSpec) -> None:
    delta = delta_of(spec)
    first = next(iter(delta))
    for bad in (
        {**delta, "pixels": torch.rand(8, 8)},
        {name: value for name, value in delta.items() if name != first},
        {**delta, first: delta[first].double()},
        {**delta, first: delta[first][:1]},
    ):
        with pytest.raises(FederationError):
            _check(policy_of(spec), _update(bad))
        with pytest.raises(FederationError):
            _check(policy_of(spec, {"strategy": {"name": "swarm"}}), CombineResult(mean=bad, cases=4))
    with pytest.raises(NotFiniteError):
        _check(policy_of(spec), _update({**delta, first: delta[first] * float("nan")}))


def test_a_swarm_update_goes_to_peers_and_the_mean_leaves(spec: JobSpec) -> None:
    policy = policy_of(spec, {"strategy": {"name": "swarm"}})
    assert _check(policy, _update({}, update="f" * 64)).facts == {"bytes": 0}
    assert _check(policy, CombineResult(mean=delta_of(spec), cases=8)).facts["tensors"] == len(delta_of(spec))
    assert _check(policy, CombineResult(mean={}, cases=0, missing=["west"])).facts == {"bytes": 0}
    with pytest.raises(FederationError, match="other tensors"):
        _check(policy_of(spec), _update({}))
    with pytest.raises(PolicyError, match="no site that averages updates"):
        _check(policy_of(spec), CombineResult(mean={}, cases=0, missing=["west"]))


@pytest.mark.parametrize(
    "counts", [{"cases": -4, "steps": 4}, {"cases": 4, "steps": 1 << 40}, {"cases": 4.5, "steps": 4}]
)
def test_counts_of_cases_and_steps_must_be_counts(spec: JobSpec, counts: dict[str, Any]) -> None:
    with pytest.raises(PolicyError, match="not within their bounds"):
        _check(policy_of(spec), TrainResult(delta=delta_of(spec), numbers=NUMBERS, **counts))


def test_the_training_profile_stays_if_the_policy_says_so(spec: JobSpec) -> None:
    told = {"channels": {"patients": 9, "counts": [9, 0, 0, 0, 0]}}
    for allowed in (True, False):
        approved = _check(policy_of(spec, training_profile=allowed), SiteFacts({**COUNTS, "profile": told})).result
        assert isinstance(approved, SiteFacts)
        assert approved.numbers == ({**COUNTS, "profile": told} if allowed else COUNTS)
    few = {"channels": {"patients": 9, "counts": [7, 2, 0, 0, 0]}}
    with pytest.raises(PolicyError, match="profile is not within its bounds"):
        _check(policy_of(spec), SiteFacts({**COUNTS, "profile": few}))


@pytest.mark.parametrize(
    ("leaves", "left"), [({}, True), ({"training_profile": False}, False), ({"minimum_patients": 10}, False)]
)
def test_numbers_of_tiles_leave_if_the_policy_lets_them(spec: JobSpec, leaves: dict[str, Any], left: bool) -> None:
    data = {"dataset": "slides", "modality": "microscopy", "channels": ["red", "green", "blue"], "patch": [64, 64]}
    task = {"type": "classification", "classes": {0: "a", 1: "b"}}
    values = {"name": "slides", "title": "Slides", "data": data, "task": task, "model": {"network": "resnet18"}}
    slides = JobSpec.model_validate(values)
    told = {"patients": 9, "tiles": 100, "pen": 3}
    approved = _check(policy_of(slides, **leaves), SiteFacts({**COUNTS, "tiles": told})).result
    assert isinstance(approved, SiteFacts)
    assert approved.numbers == ({**COUNTS, "tiles": told} if left else COUNTS)
    with pytest.raises(PolicyError, match="does not declare"):
        _check(policy_of(spec), SiteFacts({**COUNTS, "tiles": told}))


@pytest.mark.attack(
    "pixels inside a declared tensor's shape",
    by="the outbound guard, by the update's length; one as long as usual that is unlike those before it is flagged",
    logged="the site's audit log: message held back, or left and unusual",
)
def test_an_unusual_update_is_held_back_after_some_rounds(spec: JobSpec) -> None:
    policy = policy_of(spec)
    for seed in range(3):
        _check(policy, _update(delta_of(spec, seed)))
    _check(policy, _update(delta_of(spec, 3, factor=5)))
    with pytest.raises(PolicyError, match="20 times as long as this job's usual one"):
        _check(policy, _update(delta_of(spec, 4, factor=20)))
    # As long as an update, but it holds a picture.
    policy, way = policy_of(spec), delta_of(spec)
    for seed in range(1, 6):
        noise = delta_of(spec, seed)
        honest = {name: way[name] + noise[name] if way[name].is_floating_point() else way[name] for name in way}
        facts = _check(policy, _update(honest)).facts
        assert "unusual" not in facts
    assert facts["similarity"] > 0.4
    pixels = {n: torch.rand_like(v) * 2 if v.is_floating_point() else v for n, v in way.items()}
    assert "unusual" in _check(policy, _update(pixels)).facts


@pytest.mark.attack(
    "a message, or a job, of more bytes than it declares",
    by="the outbound guard",
    logged="the site's audit log: message held back",
)
def test_bytes_and_hours_are_limited(spec: JobSpec) -> None:
    size = sum(value.nbytes for value in delta_of(spec).values()) / 1e6
    with pytest.raises(PolicyError, match="expected at most"):
        _check(policy_of(spec, mb_a_round=size / 2), _update(delta_of(spec)))
    policy = policy_of(spec, mb_a_job=size * 2.5)
    for _ in range(2):
        _check(policy, _update(delta_of(spec)))
    with pytest.raises(PolicyError, match="the job has sent"):
        _check(policy, _update(delta_of(spec)))
    with pytest.raises(PolicyError, match="the job's hours here are over"):
        _check(policy_of(spec, ends=time.time() - 1), _update(delta_of(spec)))


@pytest.mark.attack(
    "sums asked for again and again, of many models or at many temperatures",
    by="the site's outbound check: after a few times they stay",
    logged="nowhere: the scores leave as before",
)
def test_sums_over_patients_leave_a_limited_number_of_times(spec: JobSpec) -> None:
    policy = policy_of(spec)
    sums = {"patients": 9, "difference": 0.1, "variance": 0.01}
    left = []
    for _ in range(10):
        approved = _check(policy, EvaluateResult({"evaluation": EVALUATION, "paired": sums})).result
        assert isinstance(approved, EvaluateResult)
        left.append("paired" in approved.numbers)
    assert left == [True] * 6 + [False] * 4
    result = EvaluateResult({"evaluation": EVALUATION, "paired": sums})
    approved = _check(policy_of(spec, pooled_figures=False), result).result
    assert isinstance(approved, EvaluateResult)
    assert approved.numbers.keys() == {"evaluation"}


@pytest.mark.attack("has a site tell sums of a column that the job does not name", "outbound filter", "audit log")
def test_sums_of_the_table_leave_only_as_job_and_policy_say(tmp_path: Path) -> None:
    spec, told = table_job(tmp_path), {"age": [9, 0.25, 0.5]}
    facts = SiteFacts({**COUNTS, "covariates": told})
    assert _check(policy_of(spec), facts).result is facts
    for leaves, left in (({"pooled_figures": False}, None), ({"minimum_patients": 10}, {})):
        approved = _check(policy_of(spec, **leaves), facts).result
        assert isinstance(approved, SiteFacts)
        assert approved.numbers.get("covariates") == left
    for bad in ({"stage": [9, 0.25, 0.5]}, {"age": [4, 0.25, 0.5]}, {"age": [9, 0.25, 0.5001234]}):
        with pytest.raises(PolicyError):
            _check(policy_of(spec), SiteFacts({**COUNTS, "covariates": bad}))


def test_a_sites_facts_are_counts_and_digests(spec: JobSpec) -> None:
    digests = {"dataset": "0" * 64, "policy": None}
    _check(policy_of(spec), SiteFacts({**COUNTS, **digests}))
    with pytest.raises(PolicyError):
        _check(policy_of(spec), SiteFacts({**COUNTS, "dataset": "MRN-0001"}))


@pytest.mark.parametrize("agrees", [False, True])
def test_a_site_agrees_to_contributions_by_its_policy_alone(spec: JobSpec, agrees: bool) -> None:
    kept = _check(policy_of(spec, contributions=agrees), SiteFacts({**COUNTS, "contributions": True})).result
    assert isinstance(kept, SiteFacts)
    assert kept.numbers.get("contributions", False) == agrees


_GAIN = gain_numbers("fine_tuned", 8, Part(9, 0.02, 1e-4), None)


def test_a_gain_leaves_as_scores_do(spec: JobSpec) -> None:
    sent = EvaluateResult({"evaluation": EVALUATION, "gain": _GAIN})
    assert _check(policy_of(spec), sent).result is sent
    for leaves in ({"minimum_patients": 9}, {"scores": "none"}):
        kept = _check(policy_of(spec, **leaves), sent).result
        assert isinstance(kept, EvaluateResult)
        assert "gain" not in kept.numbers


@pytest.mark.attack(
    "a gain by training without noise, of a job with differential privacy",
    by="the outbound policy",
    logged="the site's audit log: held back",
)
def test_a_gain_of_patients_who_were_promised_noise_does_not_leave(spec: JobSpec) -> None:
    private = {"noise_multiplier": 1.0, "delta": 1e-3, "sampling": 0.2}
    policy = policy_of(spec.changed({"privacy": {"differential_privacy": private}, "model": {"norm": "instance"}}))
    with pytest.raises(PolicyError, match="a gain by training without noise"):
        _check(policy, EvaluateResult({"evaluation": EVALUATION, "gain": _GAIN}))
