"""Tests of what the guard lets leave a site, message by message."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from nvflare.apis.dxo import from_shareable
from nvflare.apis.shareable import Shareable

import oncofed
from oncofed.algorithms.plan import FederationPlan
from oncofed.errors import FederationError, PolicyError
from oncofed.flare import wire
from oncofed.flare.security.outbound_filter import OutboundPolicy
from oncofed.flare.wire import TASK_PREPARE, TASK_TRAIN, TASK_VALIDATE
from oncofed.job.spec import JobSpec
from oncofed.messages.compression import Compressor, NotFiniteError
from oncofed.models.weights import Weights, exchanged_names, weights_of
from oncofed.privacy.policy import Policy

_EVALUATION = {
    "mean": 0.5,
    "by_class": {"shell": 0.5},
    "more": {},
    "interval": None,
    "cases": 9,
    "patients": {"all": 9, "mean": 9, "by_class": {"shell": 9}, "more": {}},
}
_NUMBERS = {"loss": 1.0, "train_s": 1.0, "validate_s": 1.0, "evaluation": _EVALUATION}


def _outbound(
    spec: JobSpec, federation: dict[str, Any] | None = None, ends: float | None = None, **leaves: Any
) -> OutboundPolicy:
    policy = Policy.model_validate({"schema": 1, "leaves": leaves, "job_hours": 1.0})
    return OutboundPolicy(spec.plan(), FederationPlan.model_validate(federation or {}), policy, ends)


def _delta(spec: JobSpec, seed: int = 0, factor: float = 1.0) -> Weights:
    network = spec.plan().build_network()
    generator = torch.Generator().manual_seed(seed)
    names = exchanged_names(network)
    return {
        n: torch.randn(v.shape, generator=generator) * factor if v.is_floating_point() else v
        for n, v in weights_of(network).items()
        if n in names
    }


def _update(delta: Weights, extra: Weights | None = None, **numbers: Any) -> Shareable:
    return wire.update_message(delta, extra or {}, 4, 4, {**_NUMBERS, **numbers})


@pytest.mark.parametrize("kind", ["native", "bfloat16", "int8"])
def test_an_update_as_the_job_declares_it_leaves_and_is_described(spec: JobSpec, kind: Any) -> None:
    outbound = _outbound(spec, {"exchange": {"update": kind}})
    sent = Compressor(kind).compress(_delta(spec))
    facts = outbound.check(TASK_TRAIN, _update(sent))
    assert facts["bytes"] > 1000
    assert facts["tensors"] == len(_delta(spec))
    again = outbound.check(TASK_TRAIN, _update(sent))
    assert again["digest"] == facts["digest"]
    assert outbound.check(TASK_TRAIN, _update(Compressor(kind).compress(_delta(spec, 1))))["digest"] != facts["digest"]


def test_what_scaffold_asks_for_leaves_with_scaffold_alone(spec: JobSpec) -> None:
    delta = _delta(spec)
    control = {f"control.{name}": value for name, value in delta.items()}
    _outbound(spec, {"strategy": {"name": "scaffold"}}).check(TASK_TRAIN, _update(delta, control))
    with pytest.raises(FederationError, match="the strategy does not ask for"):
        _outbound(spec).check(TASK_TRAIN, _update(delta, control))


def test_other_tensors_shapes_types_and_tasks_do_not_leave(spec: JobSpec) -> None:
    delta = _delta(spec)
    first = next(iter(delta))
    for bad in (
        {**delta, "pixels": torch.rand(8, 8)},
        {name: value for name, value in delta.items() if name != first},
        {**delta, first: delta[first].double()},
        {**delta, first: delta[first][:1]},
    ):
        with pytest.raises(FederationError):
            _outbound(spec).check(TASK_TRAIN, _update(bad))
    with pytest.raises(PolicyError, match="no job of oncofed has a task 'submit_model'"):
        _outbound(spec).check("submit_model", _update(delta))
    with pytest.raises(NotFiniteError):
        _outbound(spec).check(TASK_TRAIN, _update({**delta, first: delta[first] * float("nan")}))


def test_counts_of_cases_and_steps_are_counts(spec: JobSpec) -> None:
    message = wire.update_message(_delta(spec), {}, -4, 4, _NUMBERS)
    with pytest.raises(PolicyError, match="not within their bounds"):
        _outbound(spec).check(TASK_TRAIN, message)


def test_what_training_images_are_like_stays_where_the_policy_says_so(spec: JobSpec) -> None:
    counts = {"train": 9, "validation": 1, "test": 1, "device": "cpu", "version": oncofed.__version__}
    told = {"channels": {"patients": 9, "counts": [9, 0, 0, 0, 0]}}
    for allowed in (True, False):
        message = wire.numbers_message({**counts, "profile": told})
        _outbound(spec, training_profile=allowed).check(TASK_PREPARE, message)
        sent = wire.read_numbers_message(message)
        assert sent == ({**counts, "profile": told} if allowed else counts)
    few = {"channels": {"patients": 9, "counts": [7, 2, 0, 0, 0]}}
    message = wire.numbers_message({**counts, "profile": few})
    with pytest.raises(PolicyError, match="profile is not within its bounds"):
        _outbound(spec).check(TASK_PREPARE, message)


@pytest.mark.attack(
    "pixels inside a declared tensor's shape",
    by="the outbound guard, by the update's length; one as long as usual that is unlike those before it is flagged",
    logged="the site's audit log: message held back, or left and unusual",
)
def test_an_update_unlike_those_before_is_held_back_once_it_is_known_what_is_usual(spec: JobSpec) -> None:
    outbound = _outbound(spec)
    for seed in range(3):
        outbound.check(TASK_TRAIN, _update(_delta(spec, seed)))
    outbound.check(TASK_TRAIN, _update(_delta(spec, 3, factor=5)))
    with pytest.raises(PolicyError, match="20 times as long as this job's usual one"):
        outbound.check(TASK_TRAIN, _update(_delta(spec, 4, factor=20)))
    # As long as an update, but with a picture in it.
    outbound, way = _outbound(spec), _delta(spec)
    for seed in range(1, 6):
        noise = _delta(spec, seed)
        honest = {name: way[name] + noise[name] if way[name].is_floating_point() else way[name] for name in way}
        facts = outbound.check(TASK_TRAIN, _update(honest))
        assert "unusual" not in facts
    assert facts["similarity"] > 0.4
    pixels = {n: torch.rand_like(v) * 2 if v.is_floating_point() else v for n, v in way.items()}
    assert "unusual" in outbound.check(TASK_TRAIN, _update(pixels))


@pytest.mark.attack(
    "a message, or a job, of more bytes than it declares",
    by="the outbound guard",
    logged="the site's audit log: message held back",
)
def test_bytes_and_hours_are_limited(spec: JobSpec) -> None:
    size = sum(value.nbytes for value in _delta(spec).values()) / 1e6
    with pytest.raises(PolicyError, match="expected at most"):
        _outbound(spec, mb_a_round=size / 2).check(TASK_TRAIN, _update(_delta(spec)))
    outbound = _outbound(spec, mb_a_job=size * 2.5)
    for _ in range(2):
        outbound.check(TASK_TRAIN, _update(_delta(spec)))
    with pytest.raises(PolicyError, match="the job has sent"):
        outbound.check(TASK_TRAIN, _update(_delta(spec)))
    with pytest.raises(PolicyError, match="the job's hours here are over"):
        _outbound(spec, ends=time.time() - 1).check(TASK_TRAIN, _update(_delta(spec)))


def test_scores_of_too_few_patients_are_taken_out_of_the_message_itself(spec: JobSpec) -> None:
    outbound = _outbound(spec, minimum_patients=10)
    update = _update(_delta(spec))
    outbound.check(TASK_TRAIN, update)
    _, _, _, numbers = wire.read_update_message(update)
    assert numbers["evaluation"]["mean"] is None
    assert numbers["loss"] == 1.0
    score = wire.numbers_message({"evaluation": _EVALUATION, "validate_s": 1.0})
    outbound.check(TASK_VALIDATE, score)
    assert from_shareable(score).data["evaluation"]["by_class"] == {}


@pytest.mark.attack(
    "sums asked for again and again, of many models or at many temperatures",
    by="the site's outbound check: after a few times they stay",
    logged="nowhere: the scores leave as before",
)
def test_sums_over_patients_leave_a_few_times_alone(spec: JobSpec) -> None:
    outbound = _outbound(spec)
    sums = {"patients": 9, "difference": 0.1, "variance": 0.01}
    left = []
    for _ in range(10):
        reply = wire.numbers_message({"evaluation": _EVALUATION, "paired": sums})
        outbound.check(TASK_VALIDATE, reply)
        left.append("paired" in wire.read_numbers_message(reply))
    assert left == [True] * 6 + [False] * 4
    reply = wire.numbers_message({"evaluation": _EVALUATION, "paired": sums})
    _outbound(spec, pooled_figures=False).check(TASK_VALIDATE, reply)
    assert wire.read_numbers_message(reply).keys() == {"evaluation"}


def test_what_a_site_says_of_its_data_first(spec: JobSpec) -> None:
    counts = {"train": 1, "validation": 1, "test": 1, "device": "cpu", "version": oncofed.__version__}
    digests = {"dataset": "0" * 64, "policy": None}
    _outbound(spec).check(TASK_PREPARE, wire.numbers_message({**counts, **digests}))
    with pytest.raises(PolicyError):
        _outbound(spec).check(TASK_PREPARE, wire.numbers_message({**counts, "dataset": "MRN-0001"}))
