"""Sums equal the plain sums in the ring, whoever is lost."""

from __future__ import annotations

import copy
import dataclasses
import random
import secrets
import tracemalloc
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from scipy import stats

from oncofed.privacy.secure_aggregation import (
    AggregationFailed,
    Layout,
    MaskedInput,
    ProtocolError,
    Ready,
    Rules,
    Sum,
    ring,
    threshold,
)
from oncofed.privacy.secure_aggregation.masks import add_mask, pair_sign
from peak import TensorPeak
from secure_sums import BASE, Federation


def assert_equal(sites: Federation, result: Sum, roster: list[str] | None = None) -> None:
    expected = sites.ring_sum(result, roster)
    assert set(result.tensors) == set(expected)
    for name, value in expected.items():
        assert torch.equal(result.tensors[name], value), name


@pytest.mark.parametrize("count", range(3, 13))
def test_sum_is_that_of_the_ring_for_all_losses(count: int) -> None:
    """Lost after the shares, after the upload, or some of each: bit for bit the plain sum."""
    sites, number = Federation(count), 0
    spare = count - threshold(count)
    for lost in range(spare + 1):
        for silent in {0, spare - lost}:
            number += 1
            sites.train(number)
            result = sites.run(lost=lost, silent=silent, number=number)
            assert_equal(sites, result)
            assert result.sites == tuple(sites.names[lost:])
            assert result.lost == tuple(sites.names[:lost])
            assert result.threshold == threshold(count)
            assert set(result.digests) == set(result.sites)


@pytest.mark.parametrize("count", range(3, 13))
def test_one_lost_more_fails_and_nothing_is_revealed(count: int) -> None:
    spare, names = count - threshold(count), None
    for losses in ({"unshared": spare + 1}, {"lost": spare + 1}, {"silent": spare + 1}):
        sites = Federation(count)
        names = sites.names[: spare + 1]
        with pytest.raises(AggregationFailed) as failed:
            sites.run(**losses)
        assert not failed.value.revealed
        assert failed.value.sites == tuple(names)
        assert failed.value.step == {"unshared": "ShareKeys", "lost": "MaskedInput"}.get(*losses, "ConsistencyCheck")
        assert "expected at least" in str(failed.value)
        assert_equal(sites, sites.run(attempt=2))


def test_lost_after_the_signatures_is_asked_again() -> None:
    sites = Federation(4)
    survivors = sites.upload(sites.share(sites.begin()), sites.names)
    confirmations = sites.confirm(survivors)
    with pytest.raises(AggregationFailed) as failed:
        sites.aggregator.unmask(sites.reveal(confirmations, sites.names[:2]))
    assert failed.value.revealed
    assert failed.value.sites == ("site-02", "site-03")
    with pytest.raises(AggregationFailed, match="ask the same survivors again"):
        sites.aggregator.begin(1, 2, BASE, Layout(sites.shapes))
    result = sites.aggregator.unmask(sites.reveal(confirmations, sites.names[1:]))
    assert_equal(sites, result)


def test_lost_before_shares_is_not_in_the_roster_of_masks() -> None:
    sites = Federation(6)
    result = sites.run(unshared=1)
    assert_equal(sites, result)
    assert result.lost == ("site-00",)


def test_mean_divides_by_the_survivors_shares() -> None:
    sites = Federation(4, shapes={"w": (50,), "control.w": (50,)}, factors={"control.": 0.25})
    result = sites.run(lost=1)
    cases = {name: sites.cases[name] for name in result.sites}
    expected = sum(sites.updates[n]["w"] * (cases[n] / sum(cases.values())) for n in cases)
    controls = sum(sites.updates[n]["control.w"] * 0.25 for n in cases)
    mean = result.mean()
    assert torch.allclose(mean["w"], expected, atol=1e-6)
    assert torch.allclose(mean["control.w"], controls, atol=1e-6)


def test_weights_are_those_of_the_given_function() -> None:
    """FedNova: shares by cases, divided by steps; their sum may be above one."""

    def weigh(readies: Mapping[str, Ready]) -> dict[str, float]:
        return {site: 2.0 * ready.steps / (10 * len(readies)) for site, ready in readies.items()}

    sites = Federation(3, weigh=weigh)
    result = sites.run()
    assert result.weights == dict.fromkeys(sites.names, pytest.approx(2 / 3))
    expected = sum(sites.updates[name]["b.bias"] * (2 / 3) for name in sites.names)
    assert torch.allclose(result.tensors["b.bias"], expected, atol=1e-6)


def test_many_rounds_with_sixteen_bits_and_left_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Words of both widths in one stream, and sums of what was sent and of what was left over are the updates."""
    monkeypatch.setattr(ring, "LEAST_VALUES", 1)
    shapes = {"a": (3,), "b": (5, 7), "c": ()}
    sites = Federation(5, shapes=shapes, rules=Rules(bits=16), bounds={"a": 3.0, "b": 4.0})
    roster = sites.begin()
    left: dict[str, dict[str, torch.Tensor]] = {name: {} for name in sites.names}
    way = sites.share(roster)
    for name in sites.names[1:]:
        one = sites.participants[name]
        masked = one.mask(way[name], sites.updates[name], {}, sites.bounds, left[name])
        assert {key: words.dtype for key, words in masked.words.items()} == {
            "a": torch.int16,
            "b": torch.int16,
            "c": torch.int32,
        }
        sites.aggregator.add(masked)
    survivors = sites.aggregator.survivors()
    result = sites.aggregator.unmask(sites.reveal(sites.confirm(survivors), survivors.sites))
    assert_equal(sites, result)
    for key in shapes:
        whole = sum(sites.updates[n][key].double() * result.weights[n] for n in survivors.sites)
        rest = sum(left[n][key].double() * result.weights[n] for n in survivors.sites)
        assert torch.allclose(result.tensors[key].double() + rest, whole, atol=1e-6)


# --- what a site refuses of its own update, and the server of a site's message


def test_updates_that_cannot_be_summed() -> None:
    sites = Federation(3)
    way, update = sites.share(sites.begin()), sites.updates["site-00"]
    one = sites.participants["site-00"]
    for tensors, rule in (
        ({**update, "b.bias": torch.ones(7, dtype=torch.int64)}, "type"),
        ({}, "type"),
        ({**update, "b.bias": torch.full((7,), torch.nan)}, "not finite"),
        ({**update, "b.bias": torch.full((7,), torch.inf)}, "not finite"),
        ({**update, "b.bias": torch.full((7,), 1e4)}, "norm"),
    ):
        with pytest.raises(ProtocolError) as refused:
            one.mask(way["site-00"], tensors)
        assert refused.value.rule == rule
    with pytest.raises(ProtocolError, match="expected 32 bits alone"):
        one.mask(way["site-00"], update, {}, {"b.bias": 1.0})
    with pytest.raises(ProtocolError, match="not above zero"):
        one.mask(way["site-00"], update, {"b.": 0.0})


def test_masked_updates_that_do_not_fit_leave_the_sum_unchanged() -> None:
    sites = Federation(4)
    way = sites.share(sites.begin())
    right = sites.mask("site-00", way)
    bias, weight = right.words["b.bias"], right.words["a.weight"]

    def other(words: dict[str, torch.Tensor], **changes: object) -> MaskedInput:
        return dataclasses.replace(right, words=words, digest=ring.words_digest(words), **changes)  # type: ignore[arg-type]

    for wrong, rule in (
        (other({"b.bias": bias}), "layout"),
        (other({**right.words, "more": bias}), "layout"),
        (other({"a.weight": weight, "b.bias": bias[:3]}), "layout"),
        (other({"a.weight": weight.reshape(5, 3), "b.bias": bias}), "layout"),
        (other({"a.weight": weight, "b.bias": bias.short()}), "layout"),
        (other(right.words, site="site-99"), "unknown site"),
        (other(right.words, round=2), "attempt"),
        (dataclasses.replace(right, words={**right.words, "b.bias": bias + 1}), "digest"),
    ):
        with pytest.raises(ProtocolError) as refused:
            sites.aggregator.add(wrong)
        assert refused.value.rule == rule
    sites.aggregator.add(right)
    with pytest.raises(ProtocolError, match="comes twice"):
        sites.aggregator.add(right)
    survivors = sites.upload(way, sites.names[1:])
    with pytest.raises(ProtocolError, match="too late"):
        sites.aggregator.add(dataclasses.replace(right, site="site-03"))
    assert_equal(sites, sites.aggregator.unmask(sites.reveal(sites.confirm(survivors), survivors.sites)))


def test_sites_that_break_the_protocol_are_left_out() -> None:
    """The server's own checks: others need not refuse the whole roster for one site's mistake."""
    sites = Federation(5)
    sites.aggregator.begin(1, 1, BASE, Layout(sites.shapes))
    readies = [one.ready(1, 1, BASE, 9, 10, 1e3) for one in sites.participants.values()]
    readies[1] = dataclasses.replace(readies[1], cases=10)
    roster = sites.aggregator.roster(readies)
    assert [ready.site for ready in roster.readies] == ["site-00", "site-02", "site-03", "site-04"]
    assert sites.aggregator.refused == {"site-01": "READY of site-01 is not signed by its certificate's key"}
    with pytest.raises(AggregationFailed, match="READY came from 2 sites, expected at least 3") as failed:
        sites.aggregator.roster(readies[:3])
    assert failed.value.step == "AdvertiseKeys"
    copied = dataclasses.replace(sites.meet()[1], job="job-2")
    known = sites.aggregator.peers([sites.meet()[0], copied, *sites.meet()[2:]])
    assert [one.site for one in known] == ["site-00", "site-02", "site-03", "site-04"]


# --- wrong shares, wrong sums


def test_a_wrong_share_is_passed_over_while_others_suffice() -> None:
    sites = Federation(8)
    survivors = sites.upload(sites.share(sites.begin()), sites.names[1:])
    reveals = sites.reveal(sites.confirm(survivors), survivors.sites)
    wrong = dataclasses.replace(
        reveals[2],
        seeds={site: bytes(33) for site in reveals[2].seeds},
        keys={site: bytes([0, *share[1:32], share[32] ^ 1]) for site, share in reveals[2].keys.items()},
    )
    reveals[2] = wrong
    assert_equal(sites, sites.aggregator.unmask(reveals))


@pytest.mark.parametrize("what", ["seeds", "keys"])
def test_a_wrong_share_among_t_fails_and_names_no_secret(what: str) -> None:
    sites = Federation(4)
    survivors = sites.upload(sites.share(sites.begin()), sites.names[1:])
    reveals = sites.reveal(sites.confirm(survivors), survivors.sites)
    right = getattr(reveals[1], what)
    share = right[min(right)]
    wrong = {**right, min(right): share[:32] + bytes([share[32] ^ 1])}
    reveals[1] = dataclasses.replace(reveals[1], **{what: wrong})
    with pytest.raises(AggregationFailed, match="do not give the key that it announced") as failed:
        sites.aggregator.unmask(reveals)
    assert failed.value.revealed
    assert failed.value.sites == (min(right),)
    assert share.hex()[:12] not in str(failed.value)


def test_a_sum_longer_than_declared_is_refused() -> None:
    """A site masked something else than an update: words that nobody can take off."""
    sites = Federation(3)
    way = sites.share(sites.begin())
    for name in sites.names[1:]:
        sites.aggregator.add(sites.mask(name, way))
    honest = sites.mask("site-00", way)
    words = {name: value + 1_000_000_000 for name, value in honest.words.items()}
    sites.aggregator.add(dataclasses.replace(honest, words=words, digest=ring.words_digest(words)))
    survivors = sites.aggregator.survivors()
    reveals = sites.reveal(sites.confirm(survivors), survivors.sites)
    with pytest.raises(AggregationFailed, match="the norms that its sites declared allow"):
        sites.aggregator.unmask(reveals)


# --- what the server sees


def masked_words(sites: Federation, number: int) -> np.ndarray:
    way = sites.share(sites.begin(number))
    return ring.unsigned(sites.mask("site-00", way).words["x"])


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_masked_words_are_uniform(value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chi-squared over the bytes of 1e6 words; the entropy is fixed, so that chance cannot fail the test."""
    monkeypatch.setattr(secrets, "token_bytes", random.Random(value).randbytes)
    sites = Federation(3, shapes={"x": (1_000_000,)})
    for name in sites.names:
        sites.updates[name]["x"].fill_(value)
    counts = np.bincount(masked_words(sites, 1).view(np.uint8), minlength=256)
    assert stats.chisquare(counts).pvalue > 1e-4


def test_two_rounds_have_no_block_in_common() -> None:
    sites = Federation(3, shapes={"x": (40_000,)})
    blocks = [masked_words(sites, number).view("V16").tobytes() for number in (1, 2)]
    seen = [{view[at : at + 16] for at in range(0, len(view), 16)} for view in blocks]
    assert [len(one) for one in seen] == [10_000, 10_000]
    assert not seen[0] & seen[1]


def test_masked_updates_differ_by_the_updates_alone() -> None:
    """Under the same keys: the mask does not depend on what it hides."""
    sites = Federation(3, shapes={"x": (1000,)})
    sites.cases = dict.fromkeys(sites.names, 4)
    way = sites.share(sites.begin())
    twin = copy.deepcopy(sites.participants["site-00"])
    update = sites.updates["site-00"]["x"]
    masked = ring.unsigned(sites.mask("site-00", way).words["x"])
    other = ring.unsigned(twin.mask(way["site-00"], {"x": update / 2}).words["x"])
    scale = ring.scale_of("x", {})
    words = [ring.unsigned(ring.quantise(value, 1 / 3, scale)) for value in (update, update / 2)]
    assert ((masked - other) == (words[0] - words[1])).all()


def test_the_servers_view_depends_on_the_sum_alone() -> None:
    """Three masked words of 8 bits, 10,000 times, for two sets of inputs with the same sum: one distribution."""
    views = []
    for number, inputs in enumerate(((1, 2, 3), (250, 11, 1))):
        words = [np.full(10_000, value, dtype=np.uint8) for value in inputs]
        for site in range(3):
            add_mask(words[site], bytes([number, site] * 16))
            for other in {0, 1, 2} - {site}:
                pair = bytes([7 + number, min(site, other), max(site, other), 0] * 8)
                add_mask(words[site], pair, pair_sign(str(site), str(other)))
        total = words[0] + words[1] + words[2]
        for site in range(3):
            add_mask(total, bytes([number, site] * 16), -1)
        assert (total == 6).all()
        views.append(np.stack(words).astype(int))
    before, after = views
    for site in range(3):
        assert stats.ks_2samp(before[site], after[site]).pvalue > 1e-3
    assert stats.ks_2samp(before[0] * 256 + before[1], after[0] * 256 + after[1]).pvalue > 1e-3
    assert stats.ks_2samp(before.sum(0) % 256, after.sum(0) % 256).pvalue > 1e-3


# --- memory


def test_the_server_holds_one_sum_whatever_the_number_of_sites() -> None:
    """Tensors of the server at their highest, for 50 sites; ``benchmarks/privacy.py`` measures it at full size."""
    model = {f"layer{number}.weight": (15_000,) for number in range(8)}
    size = 4 * 8 * 15_000
    sites = Federation(50, shapes=model)
    for name in sites.names[1:]:
        sites.updates[name] = sites.updates["site-00"]
    way = sites.share(sites.begin())
    most = 0
    for name in sites.names:
        masked = sites.mask(name, way)
        with TensorPeak() as peak:
            sites.aggregator.add(masked)
        most += peak.most
    assert most == size  # the sum, made with the first of them
    survivors = sites.aggregator.survivors()
    reveals = sites.reveal(sites.confirm(survivors), survivors.sites)
    tracemalloc.start()
    with TensorPeak() as peak:
        result = sites.aggregator.unmask(reveals)
    others = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak.most <= size + 2 * 8 * 15_000  # the values, as the words go; a block of them in double precision, twice
    assert others < 2 << 20
    assert_equal(sites, result)
