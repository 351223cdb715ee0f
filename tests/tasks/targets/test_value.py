"""Values: units, plausible ranges, agreement in the unit, and sums that add up to it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from oncofed.data.targets import DatasetTarget
from oncofed.data.units import conversion_factor
from oncofed.errors import DataError, SpecError
from target_heads import keys, make_head, settings_of

RANGE = (0.0, 120.0)
HEAD = make_head("value", unit="years", range=RANGE)
SPREAD = make_head("value", unit="years", range=RANGE, loss="gaussian")


def _made(seed: int, count: int) -> tuple[NDArray[np.float64], NDArray[np.float64], list[str]]:
    """Return answers with spreads, stated values and patients."""
    rng = np.random.default_rng(seed)
    stated = rng.uniform(20, 90, count)
    told = np.clip(stated + rng.normal(2, 8, count), *RANGE)
    return np.stack([told, np.full(count, 8.0)], axis=1), stated[:, None], keys(count)


@pytest.mark.parametrize(
    ("given", "wanted", "factor"),
    [
        ("mm", "cm", 0.1),
        ("m", "mm", 1000),
        ("kg", "g", 1000),
        ("Weeks", "days", 7),
        ("months", "years", 1 / 12),
        ("mg/dl", "g/l", 0.01),
        ("mm³", "ml", 1e-3),
        ("%", "share", 0.01),
        ("cc", "ml", 1),
        ("dl", "ml", 100),
        ("dm", "cm", 10),
        ("yrs", "years", 1),
        ("ug/ml", "mg/l", 1),
        ("\u00b5m", "\u03bcm", 1),
        ("hours", "days", 1 / 24),
        ("", "", 1),
        ("HU", "hu", 1),
    ],
)
def test_units_of_one_dimension_are_converted(given: str, wanted: str, factor: float) -> None:
    assert conversion_factor(given, wanted) == pytest.approx(factor)


@pytest.mark.parametrize(("given", "wanted"), [("mm", "g"), ("mg/dl", "mmol/l"), ("", "mm"), ("furlong", "m")])
def test_others_are_refused(given: str, wanted: str) -> None:
    with pytest.raises(DataError, match=f"found the unit {given or 'none'}, expected {wanted}"):
        conversion_factor(given, wanted)


def test_a_value_is_read_in_the_jobs_unit_and_within_its_range() -> None:
    target = settings_of("value", unit="cm", range=[0, 20])
    assert target.encode(35, DatasetTarget(kind="value", unit="mm")) == (3.5,)
    with pytest.raises(DataError, match=r"found 350 mm, 35 cm, outside the plausible range, 0 to 20 cm"):
        target.encode(350, DatasetTarget(kind="value", unit="mm"))
    with pytest.raises(DataError, match="found the unit kg, expected cm"):
        target.encode(3, DatasetTarget(kind="value", unit="kg"))
    for strange in ("three", True, float("nan"), float("inf")):
        with pytest.raises(DataError, match="expected a number"):
            target.encode(strange, DatasetTarget(kind="value", unit="cm"))
    with pytest.raises((SpecError, ValueError), match="expected a lower end and a higher one"):
        settings_of("value", range=[3, 3])


def test_losses_are_on_the_scale_of_the_range() -> None:
    output, truth = torch.tensor([[0.5], [0.5]]), torch.tensor([[60.0], [float("nan")]])
    assert HEAD.loss(output, truth).tolist() == [0.25, 0.0]
    huber = make_head("value", range=RANGE, loss="huber", huber_from=0.1)
    assert huber.loss(output, truth).tolist() == pytest.approx([0.1 * (0.5 - 0.05), 0])
    two = torch.tensor([[0.5, -1.0], [0.5, -1.0]], requires_grad=True)
    likelihood = make_head("value", range=RANGE, loss="gaussian", beta=0)
    expected = torch.nn.functional.gaussian_nll_loss(
        two[:1, 0].detach(), torch.zeros(1), two[:1, 1].detach().exp(), full=False, reduction="none"
    )
    assert likelihood.loss(two, truth).tolist() == pytest.approx([float(expected), 0])
    # By beta the gradient of the mean is scaled by the variance to that power: with one it is that of squared error.
    one = make_head("value", range=RANGE, loss="gaussian", beta=1)
    one.loss(two, truth).sum().backward()
    assert two.grad is not None
    assert float(two.grad[0, 0]) == pytest.approx(0.5)


def test_answers_are_in_the_unit_and_bounded_by_the_range() -> None:
    assert HEAD.answer(np.array([[0.0], [-1.0], [9.0]])).tolist() == [[60.0], [0.0], [120.0]]
    assert SPREAD.answer(np.array([[0.0, 0.0]])).tolist() == [[60.0, 60.0]]
    assert SPREAD.described(np.array([60.0, 5.0])) == {"value_years": 60.0, "sd_years": 5.0}
    assert HEAD.described_truth((61.5,)) == "61.5 years"


def test_its_figures_are_those_of_their_definitions() -> None:
    answers, truths, patients = _made(1, 80)
    figures = SPREAD.figures(answers, truths, patients)
    x, y = truths[:, 0], answers[:, 0]
    lin = 2 * np.cov(x, y, bias=True)[0, 1] / (x.var() + y.var() + (x.mean() - y.mean()) ** 2)
    difference = y - x
    limits = [difference.mean() + sign * 1.959964 * difference.std(ddof=1) for sign in (-1, 1)]
    expected = {
        "mae": np.abs(difference).mean(),
        "rmse": np.sqrt((difference**2).mean()),
        "r2": 1 - (difference**2).sum() / ((x - x.mean()) ** 2).sum(),
        "bias": difference.mean(),
        "limit_low": limits[0],
        "limit_high": limits[1],
        "coverage_90": (np.abs(difference) <= 1.644854 * 8).mean(),
    }
    assert figures.primary == pytest.approx(lin)
    assert figures.extra == pytest.approx(expected)
    declared = {metric.name: metric for metric in SPREAD.declared_metrics}
    assert set(declared) == set(expected)
    assert declared["mae"].label == "mean absolute error (years)"
    assert declared["mae"].bounds == (0, 120)
    assert all(declared[name].admits(value) for name, value in figures.extra.items())


@given(st.integers(0, 500))
def test_the_order_of_patients_changes_nothing_and_their_cases_count_as_one(seed: int) -> None:
    answers, truths, patients = _made(seed, 20)
    order = np.random.default_rng(seed).permutation(20)
    shuffled = HEAD.figures(answers[order, :1], truths[order], [patients[i] for i in order])
    first = HEAD.figures(answers[:, :1], truths, patients)
    assert shuffled.extra == pytest.approx(first.extra)
    twice = np.repeat(answers[:, :1], 2, axis=0), np.repeat(truths, 2, axis=0), [p for p in patients for _ in (0, 1)]
    assert HEAD.figures(*twice).extra == pytest.approx(first.extra)


@given(st.integers(0, 500), st.lists(st.integers(5, 60), min_size=1, max_size=4))
def test_sums_of_sites_tell_what_all_patients_together_do(seed: int, sizes: list[int]) -> None:
    made = [_made(seed + n, size) for n, size in enumerate(sizes)]
    sums = [SPREAD.site_sums(*one) for one in made]
    assert all(SPREAD.is_site_sums(one, size) for one, size in zip(sums, sizes, strict=True))
    pooled = SPREAD.over_sites([one for one in sums if one])
    exact = SPREAD.figures(*(np.concatenate([one[n] for one in made]) for n in (0, 1)), keys(sum(sizes)))
    assert pooled
    assert pooled.figures["concordance_correlation"].value == pytest.approx(exact.primary, abs=2e-3)
    for name in ("mae", "rmse", "bias", "limit_low", "limit_high"):
        assert pooled.figures[name].value == pytest.approx(exact.extra[name], abs=0.05)
        assert pooled.figures[name].unit == "years"
    if all(one and one["inside"] is not None for one in sums):
        assert pooled.figures["coverage_90"].value == pytest.approx(exact.extra["coverage_90"])


def test_a_spread_that_is_learned_is_about_right() -> None:
    torch.manual_seed(0)
    features = torch.rand(600, 1) * 2 - 1
    spread = 0.05 + 0.25 * (features > 0).float()
    stated = 60 + 60 * (0.5 * features + spread * torch.randn(600, 1))
    network = torch.nn.Sequential(torch.nn.Linear(1, 32), torch.nn.Tanh(), torch.nn.Linear(32, 2))
    optimiser = torch.optim.Adam(network.parameters(), 0.02)
    for _ in range(400):
        optimiser.zero_grad()
        SPREAD.loss(network(features), stated).mean().backward()
        optimiser.step()
    answers = SPREAD.answer(network(features).detach().double().numpy())
    figures = SPREAD.figures(answers, stated.clamp(*RANGE).double().numpy(), keys(600))
    assert figures.extra["coverage_90"] == pytest.approx(0.9, abs=0.04)
    certain = features[:, 0].numpy() < -0.1
    assert answers[certain, 1].mean() < 0.5 * answers[~certain, 1].mean()
