"""Values become words of a ring, and back."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from oncofed.privacy.secure_aggregation import ProtocolError
from oncofed.privacy.secure_aggregation.ring import (
    Scale,
    bounds_of,
    dequantise,
    fingerprint,
    norm_of,
    quantise,
    scale_of,
    unsigned,
    words_digest,
)

FLOATS = arrays(np.float32, st.integers(0, 40), elements=st.floats(-100, 100, width=32))


@settings(max_examples=60)
@given(FLOATS, st.floats(1e-3, 1.0), st.sampled_from([32, 16]))
def test_words_and_left_over_are_the_value(values: np.ndarray, factor: float, bits: int) -> None:
    """What is sent is off by half a step at most, cut or not; nothing gets lost."""
    value = torch.from_numpy(values)
    scale = scale_of("x", {} if bits == 32 else {"x": 50.0})
    left = torch.empty_like(value)
    words = quantise(value, factor, scale, left)
    assert words.dtype == (torch.int32 if bits == 32 else torch.int16)
    sent = dequantise(words, scale).double() / factor
    assert torch.allclose(sent + left, value.double(), rtol=1e-6, atol=1e-6 * max(1.0, 1 / factor))
    cut = value.double().clamp(-scale.limit, scale.limit)
    assert ((sent - cut).abs() <= scale.step / factor * 0.5000001 + 1e-5).all()
    assert torch.equal(quantise(value, factor, scale), words)


def test_what_is_cut_off_is_left_over() -> None:
    scale = scale_of("x", {"x": 1.0})
    value = torch.tensor([5.0, -7.0, 0.5, 0.0])
    left = torch.empty(4)
    words = quantise(value, 1.0, scale, left)
    assert words.tolist()[:2] == [32767 - 128, -(32767 - 128)]
    assert left[0] == pytest.approx(5.0 - scale.limit)
    assert left[1] == pytest.approx(-7.0 + scale.limit)
    assert left[2:].tolist() == [0.0, 0.0]
    assert quantise(value, 0.0, scale, left).tolist() == [0] * 4
    assert torch.equal(left, value)


@pytest.mark.parametrize("bits", [32, 16])
@pytest.mark.parametrize("sites", [3, 50, 255])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_sum_never_wraps(bits: int, sites: int, sign: int) -> None:
    """All sites far out of range, shares that round up: the worst case."""
    scale = scale_of("x", {} if bits == 32 else {"x": 3.0})
    value = torch.full((1,), sign * 1e6)
    total = sum(int(quantise(value, 1 / sites, scale)[0]) for _ in range(sites))
    assert -(1 << (bits - 1)) <= total < 1 << (bits - 1)
    # Factors that add up to more than one are cut off earlier.
    scale = scale_of("x", {} if bits == 32 else {"x": 3.0}, weight=sites * 0.5)
    total = sum(int(quantise(value, 0.5, scale)[0]) for _ in range(sites))
    assert -(1 << (bits - 1)) <= total < 1 << (bits - 1)


@pytest.mark.parametrize("sites", [4, 10, 50])
def test_error_of_the_mean(sites: int) -> None:
    """Within (n/2 + 1) steps; of updates of 1e-3 some 1e-7 with 32 bits, below 1 % with 16."""
    made = torch.Generator().manual_seed(sites)
    updates = [torch.randn(20_000, generator=made, dtype=torch.float64) * 1e-3 for _ in range(sites)]
    mean = sum(updates[1:], updates[0]) / sites
    for bounds, relative in (({}, 1e-3), (bounds_of({"x": mean}), 1e-2)):
        scale = scale_of("x", bounds)
        words = [quantise(update.float(), 1 / sites, scale).long() for update in updates]
        error = torch.stack(words).sum(0) * scale.step - mean
        assert error.abs().max() <= (sites / 2 + 1) * scale.step
        assert error.norm() <= relative * mean.norm()


def test_bounds_follow_from_the_last_mean() -> None:
    mean = {"a": torch.full((2000,), 2e-3), "b": torch.zeros(1024), "c": torch.tensor(1e-9)}
    bounds = bounds_of(mean)
    whole = math.sqrt(2000 * 4e-6 / 3025)
    assert bounds.keys() == {"a", "b"}  # of a few values nothing is saved
    assert bounds["a"] == pytest.approx(64 * 2e-3)
    assert bounds["b"] == pytest.approx(64e-3 * whole)
    assert bounds == bounds_of(dict(reversed(mean.items())))
    assert bounds_of({"a": torch.zeros(3)}) == bounds_of({}) == {}
    assert bounds_of({"a": torch.tensor([1.0, torch.nan])}) == {}
    assert scale_of("d", bounds) == Scale(32, 2**-24)
    assert scale_of("a", bounds).step == pytest.approx(2 * 64 * 2e-3 / 65536)


@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_any_floating_type_and_layout(kind: torch.dtype) -> None:
    value = torch.arange(-6, 6).reshape(3, 4).to(kind) / 4
    words = quantise(value.T, 0.5, scale_of("x", {}))
    assert words.shape == (4, 3)
    assert torch.equal(dequantise(words, scale_of("x", {})), value.T.float() / 2)
    scalar = quantise(torch.tensor(1.5, dtype=kind), 1.0, scale_of("x", {}))
    assert (scalar.shape, scalar.item()) == ((), 3 << 23)
    assert quantise(torch.empty(0, 3, dtype=kind), 1.0, scale_of("x", {})).shape == (0, 3)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite(value: float) -> None:
    for bits in ({}, {"x": 1.0}):
        with pytest.raises(ProtocolError, match="not finite") as refused:
            quantise(torch.tensor([0.0] * 40_000 + [value]), 0.5, scale_of("x", bits))
        assert refused.value.rule == "not finite"


def test_words_share_memory_and_wrap() -> None:
    words = torch.tensor([2**31 - 1, -(2**31)], dtype=torch.int32)
    flat = unsigned(words)
    flat += 1
    assert words.tolist() == [-(2**31), -(2**31) + 1]
    assert unsigned(torch.tensor(5, dtype=torch.int16)).tolist() == [5]


def test_digests_tell_names_types_shapes_and_words_apart() -> None:
    words = {"a": torch.arange(6, dtype=torch.int32).reshape(2, 3), "b": torch.zeros(0, dtype=torch.int16)}
    others = [
        {"a": words["a"].reshape(3, 2), "b": words["b"]},
        {"c": words["a"], "b": words["b"]},
        {"a": words["a"].short(), "b": words["b"]},
        {"a": words["a"] + 1, "b": words["b"]},
        {"a": words["a"]},
    ]
    digests = {words_digest(one) for one in [words, *others]}
    assert len(digests) == 6
    assert words_digest(dict(reversed(words.items()))) == words_digest(words)
    assert words_digest({**words, "a": words["a"].T.contiguous().T}) == words_digest(words)


def test_fingerprints_are_of_the_values() -> None:
    made = torch.randn(3, 4)
    assert fingerprint({"a": made}) == fingerprint({"a": made.T.contiguous().T})
    other = made.clone()
    other[1, 1] = torch.nextafter(other[1, 1], torch.tensor(9.0))
    kinds = [{"a": made}, {"b": made}, {"a": other}, {"a": made.double()}, {"a": made.reshape(4, 3)}, {}]
    assert len({fingerprint(one) for one in kinds}) == len(kinds)
    assert norm_of({"a": made, "b": torch.ones(2)}) == pytest.approx(math.sqrt(float(made.square().sum()) + 2))
