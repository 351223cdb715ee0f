"""What leaves a site of a job with secure aggregation."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from oncofed.errors import FederationError, PolicyError
from oncofed.flare import wire
from oncofed.flare.security.outbound_filter import check_reply
from oncofed.flare.security.outbound_policy import OutboundPolicy
from oncofed.job.spec import JobSpec
from oncofed.messages.compression import NotFiniteError
from oncofed.messages.requests import TrainRequest
from oncofed.messages.results import Result, TrainResult
from oncofed.messages.secure_aggregation import MaskedResult, MaskRequest, SecureStepResult, ShareKeysRequest
from oncofed.models.weights import Weights
from oncofed.privacy.secure_aggregation.messages import KeyShares, MaskedInput
from oncofed.privacy.secure_aggregation.ring import words_digest
from outbound_results import NUMBERS, delta_of, policy_of

_MASKED = {"secure_aggregation": {}}
_BARE = "an update without a mask, or something else in a mask's place"


def _words(spec: JobSpec) -> Weights:
    floats = {name: value for name, value in delta_of(spec).items() if value.is_floating_point()}
    return {name: torch.randint(-(2**31), 2**31 - 1, value.shape, dtype=torch.int32) for name, value in floats.items()}


def _masked(words: Weights) -> MaskedResult:
    fields = MaskedInput("east", 1024, 1, words, words_digest(words)).to_fields()
    return MaskedResult(fields.pop("words"), fields)


def _shares(**changes: Any) -> SecureStepResult:
    sealed = {"west": b"x" * 82, "north": b"y" * 82}
    return SecureStepResult({**KeyShares("east", 1024, 1, b"c" * 32, sealed).to_fields(), **changes})


def _check(policy: OutboundPolicy, task: str, result: Result) -> dict[str, Any]:
    return dict(check_reply(policy, task, wire.to_shareable(result)))


def test_masked_words_and_keys_leave_with_facts_for_the_log(spec: JobSpec) -> None:
    policy, words = policy_of(spec, _MASKED), _words(spec)
    facts = _check(policy, MaskRequest.task, _masked(words))
    assert facts["tensors"] == len(words)
    assert facts["masked"]
    assert facts["bytes"] >= 4 * sum(value.numel() for value in words.values())
    assert _check(policy, ShareKeysRequest.task, _shares())["step"] == "KeyShares"


def test_an_update_is_checked_before_it_is_masked(spec: JobSpec) -> None:
    policy, delta = policy_of(spec, _MASKED), delta_of(spec)
    update = TrainResult(delta=delta, cases=4, steps=4, numbers=NUMBERS)
    assert policy.check_before_masking(update)["tensors"] == len(delta)
    first = next(iter(delta))
    with pytest.raises(NotFiniteError):
        policy.check_before_masking(
            TrainResult(delta={**delta, first: delta[first] * float("nan")}, cases=4, steps=4, numbers=NUMBERS)
        )
    for _ in range(3):
        policy.check_before_masking(update)
    longer = TrainResult(delta=delta_of(spec, factor=100.0), cases=4, steps=4, numbers=NUMBERS)
    with pytest.raises(PolicyError, match="times as long"):
        policy.check_before_masking(longer)


@pytest.mark.attack(_BARE, by="the site's outbound check", logged="the site's audit log: held back")
def test_a_bare_update_is_held_back_where_masks_are_due(spec: JobSpec) -> None:
    update = TrainResult(delta=delta_of(spec), cases=4, steps=4, numbers=NUMBERS)
    with pytest.raises(PolicyError, match="found one without"):
        _check(policy_of(spec, _MASKED), TrainRequest.task, update)
    with pytest.raises(PolicyError, match="or not at all"):
        _check(policy_of(spec, secure_aggregation="required"), TrainRequest.task, update)
    with pytest.raises(FederationError, match="secure aggregation"):
        _check(policy_of(spec, _MASKED), TrainRequest.task, TrainResult(delta={}, cases=4, steps=4, numbers=NUMBERS))


@pytest.mark.attack(_BARE, by="the site's outbound check", logged="the site's audit log: held back")
def test_nothing_but_declared_words_leaves_as_masked(spec: JobSpec) -> None:
    policy, words = policy_of(spec, _MASKED), _words(spec)
    first = next(iter(words))
    for bad in (
        {**words, first: words[first].float()},
        {**words, first: words[first].to(torch.int16)},
        {**words, first: words[first].flatten()},
        {**words, "pixels": torch.zeros(8, dtype=torch.int32)},
        {name: value for name, value in words.items() if name != first},
    ):
        fields = dict(_masked(words).content)
        with pytest.raises((PolicyError, FederationError)):
            _check(policy, MaskRequest.task, MaskedResult(bad, fields))
    with pytest.raises(FederationError):
        _check(policy, MaskRequest.task, MaskedResult(words, {**_masked(words).content, "note": "a name"}))


@pytest.mark.attack(_BARE, by="the site's outbound check", logged="the site's audit log: held back")
def test_a_step_sends_its_own_message_alone(spec: JobSpec) -> None:
    policy = policy_of(spec, _MASKED)
    for changes in ({"note": "a name"}, {"sealed": {"west": b"x" * 5000}}, {"site": 3}, {"commitment": b""}):
        with pytest.raises((PolicyError, FederationError)):
            _check(policy, ShareKeysRequest.task, _shares(**changes))
    with pytest.raises(PolicyError, match="no secure aggregation"):
        _check(policy_of(spec), ShareKeysRequest.task, _shares())
    with pytest.raises(PolicyError, match="no secure aggregation"):
        _check(policy_of(spec), MaskRequest.task, _masked(_words(spec)))
