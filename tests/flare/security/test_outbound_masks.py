"""What leaves a site of a job with secure aggregation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from oncofed.algorithms.plan import FederationPlan
from oncofed.client.secure_aggregation import told_norm
from oncofed.errors import FederationError, PolicyError
from oncofed.flare import wire
from oncofed.flare.security.outbound_filter import check_reply
from oncofed.flare.security.outbound_policy import OutboundPolicy
from oncofed.job.spec import JobSpec
from oncofed.messages.compression import NotFiniteError
from oncofed.messages.requests import EvaluateRequest, TrainRequest
from oncofed.messages.results import EvaluateResult, Result, TrainResult
from oncofed.messages.secure_aggregation import (
    ConfirmRequest,
    MaskedResult,
    MaskRequest,
    RevealRequest,
    SecureStepResult,
    ShareKeysRequest,
    ready_content,
    score_form,
)
from oncofed.models.weights import Weights
from oncofed.privacy.secure_aggregation.messages import Confirmation, KeyShares, MaskedInput, Reveal
from oncofed.privacy.secure_aggregation.ring import words_digest
from outbound_results import EVALUATION, NUMBERS, delta_of, policy_of
from secure_sums import Federation

_BASE = f"blake3:{'0' * 64}"
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


class _Sites(Federation):
    """Sites that declare norms as a job's do."""

    def norm(self, name: str) -> float:
        return told_norm(super().norm(name))


class _Masking:
    """A site of three that sum securely, and the guard of what leaves it."""

    def __init__(self, spec: JobSpec, settings: dict[str, Any] | None = None) -> None:
        self.policy, self.delta = policy_of(spec, settings or _MASKED), delta_of(spec)
        form = score_form(spec.plan(), FederationPlan.model_validate(settings or _MASKED))
        self.figures = form.bits(form.found_in(NUMBERS)) if form else b""
        shapes = {name: tuple(value.shape) for name, value in _words(spec).items()}
        self.sites = _Sites(3, shapes=shapes)
        self.name = self.sites.names[0]
        self.site = self.sites.participants[self.name]

    def ready(self, attempt: int = 1, base: str = _BASE, **changes: Any) -> TrainResult:
        """Return what the server is told of an update, not yet checked."""
        self.roster = self.sites.begin(attempt=attempt, base=base)
        offer = self.roster.readies[0]
        if self.figures:
            offer = self.site.ready(1, attempt + 1, base, offer.cases, offer.steps, offer.norm, self.figures)
        content = ready_content(self.site.advertise(), offer)
        content = {part: {**of, **{k: v for k, v in changes.items() if k in of}} for part, of in content.items()}
        return TrainResult(delta={}, cases=self.sites.cases[self.name], steps=10, numbers=NUMBERS, ready=content)

    def check_update(self) -> None:
        delta = {**self.delta, **self.sites.updates[self.name]}
        self.policy.check_before_masking(TrainResult(delta=delta, cases=4, steps=4, numbers=NUMBERS))

    def share(self) -> SecureStepResult:
        """Return its shares, of which the guard is told as the executor tells it."""
        peers = [one.advertise().to_fields() for one in self.sites.participants.values()]
        request = ShareKeysRequest(round=1, attempt=1, content={"peers": peers, "roster": self.roster.to_fields()})
        answer = SecureStepResult(self.site.share_keys(self.roster).to_fields())
        self.policy.masked.note_answer(request, answer)
        return answer

    def mask(self) -> MaskedResult:
        forwarded = self.sites.share(self.roster)[self.name]
        fields = self.site.mask(forwarded, self.sites.updates[self.name]).to_fields()
        answer = MaskedResult(fields.pop("words"), fields)
        self.policy.masked.note_answer(MaskRequest(round=1, attempt=1, content={}), answer)
        return answer

    def send(self, task: str, result: Result) -> dict[str, Any]:
        return _check(self.policy, task, result)


def test_masked_words_and_keys_leave_with_facts_for_the_log(spec: JobSpec) -> None:
    site = _Masking(spec)
    site.check_update()
    site.send(TrainRequest.task, site.ready())
    assert site.send(ShareKeysRequest.task, site.share())["step"] == "KeyShares"
    masked = site.mask()
    for _ in range(2):  # an answer that was lost is fetched again
        facts = site.send(MaskRequest.task, masked)
        assert facts["tensors"] == len(masked.words)
        assert facts["masked"]
        assert facts["bytes"] >= 4 * sum(value.numel() for value in masked.words.values())
    confirmed = SecureStepResult(Confirmation(site.name, 1, 1, b"s" * 32).to_fields())
    assert site.send(ConfirmRequest.task, confirmed)["step"] == "Confirmation"
    seeds = dict.fromkeys(site.sites.names[:2], b"s" * 33)
    revealed = SecureStepResult(Reveal(site.name, 1, 1, seeds, {site.sites.names[2]: b"k" * 33}).to_fields())
    assert site.send(RevealRequest.task, revealed)["step"] == "Reveal"
    # Another attempt has other words.
    site.check_update()
    site.send(TrainRequest.task, site.ready(attempt=2))
    with pytest.raises(PolicyError, match="no READY"):
        site.send(MaskRequest.task, masked)


@pytest.mark.attack(_BARE, by="the site's outbound check", logged="the site's audit log: held back")
def test_a_ready_says_what_the_kit_says_and_follows_a_checked_update(spec: JobSpec) -> None:
    site = _Masking(spec)
    with pytest.raises(PolicyError, match="no update was checked"):
        site.send(TrainRequest.task, site.ready())
    site.check_update()
    for changes in (
        {"certificates": b"x" * (1 << 16)},
        {"job": "Jane Doe"},
        {"plan_digest": "Jane Doe"},
        {"site": "Jane Doe"},
        {"cases": 123456},
        {"steps": 123456},
        {"signature": b"x" * 1024},
    ):
        with pytest.raises((PolicyError, FederationError)):
            site.send(TrainRequest.task, site.ready(**changes))
    with pytest.raises(PolicyError, match="digest of the model"):
        site.send(TrainRequest.task, site.ready(attempt=2, base="Jane Doe, born 1950"))
    site.send(TrainRequest.task, site.ready(attempt=3))
    with pytest.raises(PolicyError, match="no update was checked"):
        site.send(TrainRequest.task, site.ready(attempt=4))


@pytest.mark.attack(_BARE, by="the site's outbound check", logged="the site's audit log: held back")
def test_a_ready_declares_the_length_of_the_update_that_was_checked(spec: JobSpec) -> None:
    """Its signature is right: the job's process signs what it likes."""
    for factor, leaves in ((0.5, False), (0.99, False), (1.0, True), (1.2, False), (100.0, False)):
        site = _Masking(spec)
        site.check_update()
        declared = told_norm(Federation.norm(site.sites, site.name)) * factor
        site.sites.norm = lambda name, declared=declared: declared  # type: ignore[method-assign, misc]
        if leaves:
            site.send(TrainRequest.task, site.ready())
            continue
        with pytest.raises(PolicyError, match="another length"):
            site.send(TrainRequest.task, site.ready())


@pytest.mark.attack(_BARE, by="the site's outbound check", logged="the site's audit log: held back")
def test_where_sites_make_noise_together_a_ready_declares_what_the_model_allows(spec: JobSpec) -> None:
    """Neither the update's own length, which tells of patients, nor any other number."""
    for declared, leaves in ((7.25, True), (7.2500001, False), (7.0, False), (0.1, False)):
        site = _Masking(spec)
        delta = {**site.delta, **site.sites.updates[site.name]}
        site.policy.check_before_masking(TrainResult(delta=delta, cases=4, steps=4, numbers=NUMBERS), 7.25)
        site.sites.norm = lambda name, declared=declared: declared  # type: ignore[method-assign, misc]
        if leaves:
            site.send(TrainRequest.task, site.ready())
            continue
        with pytest.raises(PolicyError, match="another length than the round's model allows"):
            site.send(TrainRequest.task, site.ready())


@pytest.mark.attack(_BARE, by="the site's outbound check", logged="the site's audit log: held back")
def test_words_leave_that_were_masked_here_after_a_ready(spec: JobSpec) -> None:
    site, words = _Masking(spec), _words(spec)
    fields = MaskedInput(site.name, 1, 1, words, words_digest(words)).to_fields()
    other = MaskedResult(fields.pop("words"), fields)
    with pytest.raises(PolicyError, match="no READY"):
        site.send(MaskRequest.task, other)
    site.check_update()
    site.send(TrainRequest.task, site.ready())
    with pytest.raises(PolicyError, match="did not mask"):
        site.send(MaskRequest.task, other)
    site.share()
    masked = site.mask()
    for bad, match in (
        (MaskedResult({name: value * 0 for name, value in words.items()}, masked.content), "zero"),
        (MaskedResult(words, masked.content), "did not mask"),
        (MaskedResult(masked.words, {**masked.content, "digest": b"x" * 32}), "did not mask"),
        (MaskedResult(masked.words, {**masked.content, "round": 7}), "no READY"),
        (MaskedResult(masked.words, {**masked.content, "site": "Jane Doe"}), "no READY"),
    ):
        with pytest.raises(PolicyError, match=match):
            site.send(MaskRequest.task, bad)


@pytest.mark.attack(_BARE, by="the site's outbound check", logged="the site's audit log: held back")
def test_a_step_names_verified_sites_alone(spec: JobSpec) -> None:
    site = _Masking(spec)
    one, two, _ = site.sites.names
    site.check_update()
    site.send(TrainRequest.task, site.ready())
    shares = site.share()
    share, sealed = b"s" * 33, dict(shares.content["sealed"])
    for changed in ({"Jane Doe": b"x" * 82}, {**sealed, "Jane Doe": b"x" * 82}, {**sealed, one: b"x" * 82}):
        with pytest.raises(PolicyError, match="names"):
            site.send(ShareKeysRequest.task, SecureStepResult({**shares.content, "sealed": changed}))
    for seeds, keys in (({"Jane Doe": share}, {}), ({one: share}, {"Jane Doe": share}), ({two: share}, {two: share})):
        with pytest.raises(PolicyError, match="names"):
            site.send(RevealRequest.task, SecureStepResult(Reveal(one, 1, 1, seeds, keys).to_fields()))
    with pytest.raises(PolicyError, match="1024 bytes"):
        site.send(ConfirmRequest.task, SecureStepResult(Confirmation(one, 1, 1, b"s" * 1024).to_fields()))
    with pytest.raises(PolicyError, match="no READY"):
        site.send(ConfirmRequest.task, SecureStepResult(Confirmation(one, 1, 2, b"s" * 32).to_fields()))


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
    # The same update again, for another attempt at its sum, is one update.
    assert len(policy._usual._norms) == 1
    for factor in (1.01, 1.02):
        policy.check_before_masking(TrainResult(delta=delta_of(spec, factor=factor), cases=4, steps=4, numbers=NUMBERS))
    longer = TrainResult(delta=delta_of(spec, factor=100.0), cases=4, steps=4, numbers=NUMBERS)
    with pytest.raises(PolicyError, match="times as long"):
        policy.check_before_masking(longer)
    # The job is stopped here, for honest updates too.
    for _ in range(2):
        with pytest.raises(PolicyError, match="times as long"):
            policy.check_before_masking(update)


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


_SUMMED = {"secure_aggregation": {"scores": "summed"}}
_OWN = "a site's own score beside the sum of all"


@pytest.mark.attack(_OWN, by="the site's outbound check", logged="the site's audit log: held back")
def test_no_score_leaves_beside_its_sum(spec: JobSpec) -> None:
    site = _Masking(spec, _SUMMED)
    for attempt, name in ((1, "loss"), (3, "evaluation")):
        site.check_update()
        told = replace(site.ready(attempt), numbers={name: NUMBERS[name], "train_s": 1.0})
        with pytest.raises(PolicyError, match="1 scores of this site"):
            site.send(TrainRequest.task, told)
    with pytest.raises(PolicyError, match="1 scores of this site"):
        site.send(EvaluateRequest.task, EvaluateResult({"evaluation": EVALUATION, "validate_s": 1.0}))
    # What patients' sums tell is a score, too.
    pooled = {"patients": 9, "figures": {"mean": [9, 4.5, 2.5]}}
    with pytest.raises(PolicyError):
        site.send(EvaluateRequest.task, EvaluateResult({"pooled": pooled, "validate_s": 1.0}))
    site.check_update()
    site.send(TrainRequest.task, replace(site.ready(attempt=5), numbers={"train_s": 1.0, "validate_s": 1.0}))


def test_scores_are_checked_before_they_are_masked(spec: JobSpec) -> None:
    policy = policy_of(spec, _SUMMED)
    assert policy.scores_before_masking(NUMBERS, training=True) == NUMBERS
    few = policy_of(spec, _SUMMED, minimum_patients=10).scores_before_masking(NUMBERS, training=True)
    assert (few["evaluation"]["mean"], few["evaluation"]["by_class"]) == (None, {})
    none = policy_of(spec, _SUMMED, scores="none").scores_before_masking(NUMBERS, training=True)
    assert none["evaluation"]["mean"] is None
    assert "loss" not in none
    with pytest.raises(PolicyError, match="does not declare"):
        policy.scores_before_masking({**NUMBERS, "Jane Doe": 1.0}, training=True)
    with pytest.raises(PolicyError, match="does not declare"):  # nothing more leaves
        policy.scores_before_masking(NUMBERS, training=False)


def test_a_sum_of_scores_has_a_ready_of_its_own(spec: JobSpec) -> None:
    site = _Masking(spec, _SUMMED)
    numbers = {"evaluation": EVALUATION, "validate_s": 1.0}
    made = score_form(spec.plan(), FederationPlan.model_validate(_SUMMED))
    assert made
    offer = site.site.ready(2, 1, _BASE, 1, 1, 1.0, made.bits(made.found_in(numbers)))
    scored = EvaluateResult({"validate_s": 1.0}, ready_content(site.site.advertise(), offer))
    with pytest.raises(PolicyError, match="no update was checked"):
        site.send(EvaluateRequest.task, scored)
    site.policy.scores_before_masking(numbers, training=False)
    assert site.send(EvaluateRequest.task, scored)["step"] == "Ready"
    # The scores of one split follow, and no update.
    form = torch.zeros(made.words, dtype=torch.int32)
    for words, match in (
        (_words(spec), "not those of the job"),
        ({"@scores.test": form, "@scores.validation": form}, "not those of the job"),
        ({"@scores.test": form[1:]}, "masked words as int32"),
        ({"@scores.test": form + 1}, "did not mask"),
    ):
        fields = MaskedInput(site.name, 2, 1, words, words_digest(words)).to_fields()
        with pytest.raises(PolicyError, match=match):
            site.send(MaskRequest.task, MaskedResult(fields.pop("words"), fields))
    with pytest.raises(PolicyError, match="does not form of scores"):
        _check(policy_of(spec, _MASKED), EvaluateRequest.task, EvaluateResult(numbers, scored.ready))


@pytest.mark.attack(
    "patients' data in place of the figures that a READY names",
    by="the site's outbound check",
    logged="the site's audit log: held back",
)
@pytest.mark.parametrize("settings", [_MASKED, _SUMMED])
def test_a_ready_names_the_figures_that_were_checked(spec: JobSpec, settings: dict[str, Any]) -> None:
    site = _Masking(spec, settings)
    right = site.figures
    for attempt, wrong in enumerate((b"Jane Doe, born 1950" * 100, right + b"\0", b"\xff" * len(right) + b"\x01")):
        site.check_update()
        site.figures = wrong
        told = replace(site.ready(attempt=2 * attempt + 1), numbers={"train_s": 1.0})
        with pytest.raises(PolicyError, match="names other figures"):
            site.send(TrainRequest.task, told)


@pytest.mark.parametrize(("rule", "told"), [("each", True), ("summed", False), ("none", False)])
def test_a_policy_says_how_scores_leave(spec: JobSpec, rule: str, told: bool) -> None:
    """In a job that does not sum them; policies that ask for sums refuse it before."""
    reply = wire.to_shareable(EvaluateResult({"evaluation": EVALUATION, "validate_s": 1.0}))
    check_reply(policy_of(spec, scores=rule), EvaluateRequest.task, reply)
    found = wire.read_result(EvaluateRequest.task, reply)
    assert isinstance(found, EvaluateResult)
    assert (found.numbers["evaluation"]["mean"] is not None) == told
    assert bool(found.numbers["evaluation"]["by_class"]) == told


@pytest.mark.parametrize("bits", [16, 32])
def test_words_have_the_bits_of_the_job(spec: JobSpec, bits: int) -> None:
    site = _Masking(spec, {"secure_aggregation": {"bits": bits}})
    site.check_update()
    site.send(TrainRequest.task, site.ready())
    short = MaskedResult({name: value.to(torch.int16) for name, value in site.mask().words.items()}, {})
    fields = MaskedInput(site.name, 1, 1, dict(short.words), b"d" * 32).to_fields()
    fields.pop("words")
    match = "did not mask" if bits == 16 else "masked words as int32"
    with pytest.raises(PolicyError, match=match):
        site.send(MaskRequest.task, MaskedResult(short.words, fields))
