"""Tests of weights' digests and norms."""

from __future__ import annotations

import hashlib

import pytest
import torch

from oncofed.models.weights import digest_of, sum_of_squares


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 200.0])
def test_the_sum_of_squares_is_that_of_double_precision(dtype: torch.dtype, scale: float) -> None:
    value = (torch.randn(3, 300_001, generator=torch.Generator().manual_seed(1)) * scale).to(dtype)
    assert sum_of_squares(value) == pytest.approx(float(value.double().square().sum()), rel=5e-6)


@pytest.mark.parametrize("value", [0.0, 1e-30, 1e-18, 1e25, 3e38])
def test_values_beyond_single_precision_are_summed_in_double(value: float) -> None:
    single = torch.tensor([value, -value, value])
    assert sum_of_squares(single) == pytest.approx(3 * float(single[0].double()) ** 2, rel=1e-6)


@pytest.mark.parametrize("count", [0, 1, 32768, 32769, 1 << 21, (1 << 21) + 1])
def test_every_value_counts_once_however_many_there_are(count: int) -> None:
    assert sum_of_squares(torch.ones(count)) == pytest.approx(count, rel=1e-6)


@pytest.mark.parametrize("strange", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, 400_000, -1])
def test_a_value_that_is_not_finite_makes_the_sum_so(strange: float, place: int) -> None:
    values = torch.ones(600_000)
    values[place] = strange
    assert not torch.isfinite(torch.tensor(sum_of_squares(values)))


def test_a_digest_names_its_algorithm_and_follows_names_types_shapes_and_values() -> None:
    weights = {"b": torch.arange(6.0), "a": torch.ones(2, dtype=torch.int64)}
    said = str(digest_of(weights))
    assert said.startswith("blake3:")
    assert str(digest_of(dict(reversed(weights.items())))) == said
    others = [
        {**weights, "b": torch.arange(6.0).reshape(2, 3)},
        {**weights, "b": torch.arange(6.0).view(torch.int32)},
        {**weights, "b": torch.arange(6.0) + 1},
        {"b": weights["b"], "c": weights["a"]},
    ]
    assert len({said, *(str(digest_of(other)) for other in others)}) == 1 + len(others)


def test_a_digest_by_another_algorithm_is_of_the_same_bytes() -> None:
    value = torch.arange(3, dtype=torch.int32)
    expected = hashlib.sha256(b"w torch.int32 (3,)" + value.numpy().tobytes()).hexdigest()
    assert digest_of({"w": value}, hashlib.sha256).hexdigest() == expected
