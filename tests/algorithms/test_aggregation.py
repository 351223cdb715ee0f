"""Aggregation: shared properties, and each paper's formula."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from oncofed.algorithms import Algorithm, Update, algorithm_class, algorithm_names
from oncofed.algorithms.order_statistics import in_order
from oncofed.errors import FederationError

NAMES = frozenset({"w"})
VALUES = st.lists(st.floats(-1e3, 1e3, width=32), min_size=3, max_size=3)
SITES = st.lists(st.tuples(VALUES, st.integers(1, 500)), min_size=5, max_size=7)


def _algorithm(name: str, **settings: Any) -> Algorithm[Any]:
    kind = algorithm_class(name)
    return kind(kind.Settings(name=name, **settings), NAMES)


def _updates(*values: float | list[float], cases: int = 1, steps: int = 1) -> list[Update]:
    tensors = [torch.tensor(v if isinstance(v, list) else [v]) for v in values]
    return [Update(f"site-{i}", {"w": t}, cases, steps) for i, t in enumerate(tensors)]


def _drawn(drawn: list[tuple[list[float], int]]) -> list[Update]:
    return [Update(f"site-{i}", {"w": torch.tensor(v)}, n) for i, (v, n) in enumerate(drawn)]


@pytest.mark.parametrize("name", algorithm_names())
@given(drawn=SITES, random=st.randoms())
def test_the_order_of_arrival_changes_no_bit(name: str, drawn, random) -> None:  # type: ignore[no-untyped-def]
    updates = _drawn(drawn)
    shuffled = updates.copy()
    random.shuffle(shuffled)
    model = {"w": torch.ones(3)}
    one = _algorithm(name).aggregate(dict(model), updates, 8)["w"]
    other = _algorithm(name).aggregate(dict(model), shuffled, 8)["w"]
    assert torch.equal(one, other)
    assert torch.isfinite(one).all()
    assert torch.equal(model["w"], torch.ones(3)), "the model before is left as it was"


@pytest.mark.parametrize("name", sorted(set(algorithm_names()) - {"krum"}))
def test_a_zero_update_changes_nothing(name: str) -> None:
    algorithm = _algorithm(name)
    moved = algorithm.aggregate({"w": torch.tensor([2.0])}, _updates(0.0), 1)
    assert torch.equal(moved["w"], torch.tensor([2.0]))


@given(SITES)
def test_the_mean_matches_the_formula(drawn: list[tuple[list[float], int]]) -> None:
    updates = _drawn(drawn)
    values = torch.stack([u.delta["w"] for u in updates]).double()
    cases = torch.tensor([u.cases for u in updates]).double()
    mean = _algorithm("fedavg").aggregate({"w": torch.zeros(3)}, updates, len(updates))["w"].double()
    assert torch.allclose(mean, (values * cases[:, None]).sum(0) / cases.sum(), atol=1e-2, rtol=1e-5)
    assert (mean >= values.min(0).values - 1e-2).all()
    assert (mean <= values.max(0).values + 1e-2).all()


def test_every_strategy_averages_statistics_and_takes_counters() -> None:
    model = {"w": torch.zeros(1), "running_var": torch.ones(1), "counter": torch.tensor(3)}
    delta = {"w": torch.ones(1), "running_var": torch.tensor([-0.5]), "counter": torch.tensor(7)}
    moved = _algorithm("fedadam", learning_rate=5.0).aggregate(model, [Update("a", delta, 1)], 1)
    assert moved["running_var"].item() == 0.5
    assert moved["counter"].item() == 7
    assert moved["counter"].dtype == torch.int64


def test_aggregation_never_holds_two_models() -> None:
    model = {"w": torch.zeros(1), "encoder": torch.ones(2)}
    moved = _algorithm("fedavg").aggregate(model, _updates(1.0), 1)
    assert list(moved) == ["w", "encoder"]
    assert not model


def test_untrained_weights_stay() -> None:
    model = {"w": torch.zeros(1), "encoder": torch.ones(2)}
    moved = _algorithm("fedavg").aggregate(model, _updates(1.0), 1)
    assert torch.equal(moved["encoder"], torch.ones(2))


def test_no_updates_are_an_error() -> None:
    with pytest.raises(FederationError, match="nothing to average"):
        _algorithm("fedavg").aggregate({"w": torch.zeros(1)}, [], 2)


def test_a_stale_update_weighs_less() -> None:
    fresh, stale = _updates(1.0, 0.0)
    stale = Update("late", stale.delta, 1, staleness=3, discount=(1 + 3) ** -0.5)
    moved = _algorithm("fedavg").aggregate({"w": torch.zeros(1)}, [fresh, stale], 2)
    assert moved["w"].item() == pytest.approx(1 / 1.5)


def test_momentum_grows_over_rounds_and_survives_a_restart() -> None:
    first = _algorithm("fedavgm", momentum=0.5)
    model = first.aggregate({"w": torch.zeros(1)}, _updates(1.0), 1)
    again = _algorithm("fedavgm", momentum=0.5)
    again.restore({name: value.clone() for name, value in first.state.items()})
    moved = [momentum.aggregate(dict(model), _updates(1.0), 1)["w"].item() for momentum in (again, first)]
    assert moved == [2.5, 2.5]


def test_adam_and_yogi_steps_do_not_depend_on_the_updates_size() -> None:
    for name in ("fedadam", "fedyogi"):
        for size in (1.0, 100.0):
            moved = _algorithm(name, learning_rate=0.1, momentum=0.0, second_momentum=0.0, tau=1e-6).aggregate(
                {"w": torch.zeros(1)}, _updates(size), 1
            )
            assert moved["w"].item() == pytest.approx(0.1, rel=1e-3)


def test_scaffold_counts_absent_sites_as_unchanged() -> None:
    algorithm = _algorithm("scaffold")
    extra = {"control.w": torch.tensor([4.0])}
    algorithm.aggregate({"w": torch.zeros(1)}, [Update("a", {"w": torch.zeros(1)}, 1, extra=extra)], sites=4)
    assert algorithm.for_clients()["control.w"].item() == 1.0


def test_fednova_normalises_different_numbers_of_steps() -> None:
    long, short = Update("a", {"w": torch.tensor([10.0])}, 1, steps=10), Update("b", {"w": torch.tensor([-1.0])}, 1)
    assert _algorithm("fedavg").aggregate({"w": torch.zeros(1)}, [long, short], 2)["w"].item() == 4.5
    assert _algorithm("fednova").aggregate({"w": torch.zeros(1)}, [long, short], 2)["w"].item() == pytest.approx(
        0.0, abs=1e-6
    )


def test_feddyn_goes_further_where_all_agree() -> None:
    algorithm = _algorithm("feddyn", alpha=0.1)
    assert algorithm.aggregate({"w": torch.zeros(1)}, _updates(1.0, 1.0), 2)["w"].item() == pytest.approx(2.0)


@pytest.mark.parametrize("poison", [1e6, -1e6, float("1e30")])
@pytest.mark.parametrize("name", ["median", "trimmed_mean", "krum"])
def test_a_robust_model_resists_one_bad_site_of_five(name, poison: float) -> None:  # type: ignore[no-untyped-def]
    moved = _algorithm(name).aggregate({"w": torch.zeros(1)}, _updates(0.9, 1.0, 1.1, 1.0, poison), 5)
    assert 0.9 - 1e-6 <= moved["w"].item() <= 1.1 + 1e-6


def test_a_long_update_is_clipped_to_the_median_norm() -> None:
    moved = _algorithm("clipped_mean").aggregate({"w": torch.zeros(1)}, _updates(1.0, 1.0, 100.0), 3)
    assert moved["w"].item() == pytest.approx(1.0)


@given(st.integers(1, 70), st.integers(0, 2**31))
def test_weights_are_sorted_over_any_number_of_sites(count: int, seed: int) -> None:
    drawn = torch.randint(-5, 5, (count, 3, 7), generator=torch.Generator().manual_seed(seed)).float()
    for rank in {0, count // 2, count - 1}:
        found = in_order(list(drawn), lambda ordered, rank=rank: ordered[rank])  # type: ignore[misc]
        assert torch.equal(found, drawn.sort(dim=0).values[rank])


def test_weights_of_several_blocks_are_sorted_and_inputs_stay_as_they_are() -> None:
    drawn = torch.randn(5, 40_000, generator=torch.Generator().manual_seed(1))
    before = drawn.clone()
    assert torch.equal(in_order(list(drawn), lambda ordered: ordered[2]), before.sort(dim=0).values[2])
    assert torch.equal(drawn, before)


def test_the_median_of_an_even_number_is_between_the_middle_two() -> None:
    assert _algorithm("median").aggregate({"w": torch.zeros(1)}, _updates(0.0, 1.0, 2.0, 50.0), 4)["w"].item() == 1.5


def test_krum_with_too_few_updates_names_the_minimum() -> None:
    with pytest.raises(FederationError, match="needs 5 updates, found 3"):
        _algorithm("krum").aggregate({"w": torch.zeros(1)}, _updates(1.0, 1.0, 1.0), 3)
