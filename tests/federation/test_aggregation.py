from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from oncofed.errors import FederationError
from oncofed.federation.aggregation import Contribution, weighted_mean

CASES = st.integers(1, 500)
VALUES = st.lists(st.floats(-1e3, 1e3, width=32), min_size=3, max_size=3)
SITES = st.lists(st.tuples(VALUES, CASES), min_size=1, max_size=6)


def _contributions(drawn: list[tuple[list[float], int]]) -> list[Contribution]:
    return [Contribution(f"site-{i}", {"w": torch.tensor(v)}, n) for i, (v, n) in enumerate(drawn)]


@given(SITES, st.randoms())
def test_the_order_of_arrival_changes_no_bit(drawn, random) -> None:  # type: ignore[no-untyped-def]
    contributions = _contributions(drawn)
    shuffled = contributions.copy()
    random.shuffle(shuffled)
    assert torch.equal(weighted_mean(contributions)["w"], weighted_mean(shuffled)["w"])


@given(SITES)
def test_the_mean_lies_between_the_sites_and_matches_the_formula(drawn: list[tuple[list[float], int]]) -> None:
    contributions = _contributions(drawn)
    values = torch.stack([c.weights["w"] for c in contributions]).double()
    cases = torch.tensor([c.cases for c in contributions]).double()
    mean = weighted_mean(contributions)["w"].double()
    assert torch.allclose(mean, (values * cases[:, None]).sum(0) / cases.sum(), atol=1e-2, rtol=1e-5)
    assert (mean >= values.min(0).values - 1e-2).all()
    assert (mean <= values.max(0).values + 1e-2).all()


@given(VALUES, CASES)
def test_one_site_gets_its_own_weights_back_and_keeps_them(values: list[float], cases: int) -> None:
    weights = {"w": torch.tensor(values), "counter": torch.tensor(3)}
    mean = weighted_mean([Contribution("site", weights, cases)])
    assert torch.equal(mean["w"], torch.tensor(values))
    assert mean["counter"].dtype == torch.int64
    mean["w"] += 1
    assert torch.equal(weights["w"], torch.tensor(values))


def test_nothing_to_average_is_an_error() -> None:
    with pytest.raises(FederationError, match="nothing to average"):
        weighted_mean([])
