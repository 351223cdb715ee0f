"""Grades: ordered whatever the weights, and agreement that second implementations confirm."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from oncofed.data.targets import DatasetTarget
from oncofed.errors import DataError, SpecError
from oncofed.tasks.agreement import Moments
from oncofed.tasks.classification import ranking_scores
from oncofed.tasks.targets.grade import predicted_grades, reach
from oncofed.tasks.targets.grade_table import pooled_table
from target_heads import keys, make_head, settings_of

GRADES = ["1", "2", "3", "4", "5"]
HEAD = make_head("grade", grades=GRADES)


def _made(seed: int, count: int) -> tuple[NDArray[np.float64], NDArray[np.float64], list[str]]:
    """Return probabilities of grades, stated ones and patients."""
    rng = np.random.default_rng(seed)
    stated = rng.choice(5, count, p=[0.35, 0.3, 0.2, 0.1, 0.05])
    score = stated + rng.normal(0, 0.8, count)
    reached = 1 / (1 + np.exp(-2 * (score[:, None] - np.arange(1, 5) + 0.5)))
    ends = np.concatenate([np.ones((count, 1)), reached, np.zeros((count, 1))], axis=1)
    return -np.diff(ends, axis=1), stated[:, None].astype(float), keys(count)


def _weighted_kappa(stated: NDArray[np.int64], told: NDArray[np.int64], grades: int) -> float:
    """Return the kappa of Cohen (1968) by its definition, from the table and its margins."""
    table = np.zeros((grades, grades))
    for a, b in zip(stated, told, strict=True):
        table[a, b] += 1
    weights = np.array([[(a - b) ** 2 / (grades - 1) ** 2 for b in range(grades)] for a in range(grades)])
    expected = np.outer(table.sum(axis=1), table.sum(axis=0)) / table.sum()
    return float(1 - (weights * table).sum() / (weights * expected).sum())


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=40))
def test_kappa_is_that_of_its_definition(pairs: list[tuple[int, int]]) -> None:
    stated, told = np.array(pairs).T
    found = Moments.of(stated.astype(float), told.astype(float)).agreement
    if found is None:
        assert len(set(stated.tolist() + told.tolist())) == 1
    else:
        assert found == pytest.approx(_weighted_kappa(stated, told, 5))
        assert -1 <= found <= 1


@given(st.lists(st.floats(-20, 20), min_size=4, max_size=4))
def test_probabilities_never_rise_with_the_grade_whatever_the_outputs(outputs: list[float]) -> None:
    answer = HEAD.answer(np.array([outputs]))
    assert answer.sum() == pytest.approx(1)
    assert answer.min() >= 0
    reached = [float(reach(answer, step)[0]) for step in range(1, 5)]
    assert reached == sorted(reached, reverse=True)
    if min(abs(one - 0.5) for one in reached) > 1e-9:  # where rounding decides, either is right
        assert int(predicted_grades(answer)[0]) == sum(one > 0.5 for one in reached)


def test_the_loss_is_the_sum_of_binary_cross_entropies_of_what_is_answered() -> None:
    outputs = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    truth = torch.tensor([[0.0], [1.0], [2.0], [3.0], [4.0], [float("nan")]])
    losses = HEAD.loss(outputs, truth)
    answer = HEAD.answer(outputs.double().numpy())
    for row in range(5):
        expected = -sum(
            np.log(reach(answer, step)[row] if truth[row, 0] >= step else 1 - reach(answer, step)[row])
            for step in range(1, 5)
        )
        assert float(losses[row]) == pytest.approx(expected, rel=1e-4)
    assert losses[5] == 0


def test_training_on_it_finds_an_order() -> None:
    torch.manual_seed(0)
    score = torch.rand(400, 1) * 5
    stated = score.floor().clamp(0, 4)
    layer = torch.nn.Linear(1, 4)
    optimiser = torch.optim.Adam(layer.parameters(), 0.1)
    for _ in range(200):
        optimiser.zero_grad()
        HEAD.loss(layer(score), stated).mean().backward()
        optimiser.step()
    figures = HEAD.figures(HEAD.answer(layer(score).detach().double().numpy()), stated.double().numpy(), keys(400))
    assert figures.primary is not None
    assert figures.primary > 0.95
    assert figures.extra["within_one"] == 1.0


def test_its_figures_are_those_of_the_predicted_grades() -> None:
    answers, truths, patients = _made(1, 200)
    figures = HEAD.figures(answers, truths, patients)
    stated, told = truths[:, 0].astype(int), predicted_grades(answers)
    assert figures.primary == pytest.approx(_weighted_kappa(stated, told, 5))
    assert figures.extra["accuracy"] == np.mean([a == b for a, b in zip(stated, told, strict=True)])
    assert figures.extra["within_one"] == np.mean([abs(a - b) <= 1 for a, b in zip(stated, told, strict=True)])
    assert figures.extra["mae_grades"] == np.mean([abs(a - b) for a, b in zip(stated, told, strict=True)])
    assert figures.extra["auroc_from_3"] == ranking_scores(answers[:, 3:].sum(axis=1), stated >= 3)[0]
    assert len(figures.behind["auroc_from_4"]) == (stated == 4).sum()
    declared = {metric.name: metric for metric in HEAD.declared_metrics}
    assert set(figures.extra) == set(declared)
    assert all(declared[name].admits(value) for name, value in figures.extra.items())


def test_a_grade_outside_the_scale_is_named() -> None:
    target = settings_of("grade", grades=GRADES)
    declared = DatasetTarget(kind="grade", names=GRADES)
    assert target.encode("3", declared) == target.encode(3, declared) == (2.0,)
    with pytest.raises(DataError, match="target it: found '6', outside the dataset's scale 1, 2, 3, 4, 5"):
        target.encode("6", declared)
    with pytest.raises(DataError, match="found '6', outside the scale 1, 2, 3, 4, 5"):
        target.encode("6", DatasetTarget(kind="grade", names=[*GRADES, "6"]))
    with pytest.raises(DataError, match="the dataset's grades go 5, 4, 3, 2, 1, expected 1, 2, 3, 4, 5"):
        target.encode("3", DatasetTarget(kind="grade", names=GRADES[::-1]))
    with pytest.raises((SpecError, ValueError), match="two grades have one name"):
        settings_of("grade", grades=["low", "Low", "high"])


@pytest.mark.parametrize(("sizes", "mean", "most"), [((60, 110, 80), 0.03, 0.08), ((100, 200, 300), 0.015, 0.04)])
def test_kappa_over_sites_is_near_that_of_all_patients(sizes: tuple[int, ...], mean: float, most: float) -> None:
    off = []
    for repeat in range(6):
        made = [_made(100 * repeat + n, size) for n, size in enumerate(sizes)]
        sums = [HEAD.site_sums(*one) for one in made]
        assert all(HEAD.is_site_sums(one, size) for one, size in zip(sums, sizes, strict=True))
        pooled = HEAD.over_sites([one for one in sums if one])
        exact = HEAD.figures(*(np.concatenate([one[n] for one in made]) for n in (0, 1)), keys(sum(sizes)))
        assert pooled
        if "quadratic_kappa" not in pooled.figures:
            continue
        off.append(abs(pooled.figures["quadratic_kappa"].value - (exact.primary or 0)))
        assert pooled.figures["accuracy"].value == pytest.approx(exact.extra["accuracy"], abs=0.03)
        bounds = pooled.figures["auroc_from_2"].bounds
        assert bounds
        assert bounds[0] - 1e-9 <= exact.extra["auroc_from_2"] <= bounds[1] + 1e-9
    assert len(off) >= 4
    assert np.mean(off) < mean
    assert max(off) < most


def test_a_table_that_is_told_whole_is_what_it_was() -> None:
    cells = [[10, 7, None], [8, 20, 9], [None, 6, 12]]
    assert pooled_table([{"cells": [[10, 7, 5], [8, 20, 9], [5, 6, 12]], "rest": [[0, 0]]}]).tolist() == [
        [10, 7, 5],
        [8, 20, 9],
        [5, 6, 12],
    ]
    told = pooled_table([{"cells": cells, "rest": [[0, 6]]}])
    assert told.sum() == 10 + 7 + 8 + 20 + 9 + 6 + 12 + 6
    assert told[0, 2] + told[2, 0] == pytest.approx(6)


@pytest.mark.filterwarnings("error")
@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 30) | st.just(500), min_size=16, max_size=16), st.booleans())
def test_whatever_sites_report_the_table_is_finite_and_complete(counts: list[int], diagonal: bool) -> None:
    cells = np.array(counts).reshape(4, 4) * (np.eye(4, dtype=int) if diagonal else 1)
    hidden = cells < 5
    rest = int(cells[hidden].sum()) + 5
    rows = [
        [None if hide else int(cell) for cell, hide in zip(*row, strict=True)]
        for row in zip(cells, hidden, strict=True)
    ]
    rest = rest if hidden.any() else 0
    table = pooled_table([{"cells": rows, "rest": [[0, rest]]}])
    assert np.isfinite(table).all()
    assert table.min() >= 0
    assert table.sum() == pytest.approx(cells[~hidden].sum() + rest)


@pytest.mark.attack(
    "the grade of a few patients from the table of stated and told grades and the counts of at least each grade",
    by="the site before it sends: cells and what is left of a step of grades hold five patients or more, or nobody",
    logged="nowhere: what is left leaves",
)
@given(st.integers(0, 2000), st.integers(5, 60), st.integers(5, 15))
def test_no_cell_and_no_remainder_is_of_few_patients(seed: int, count: int, minimum: int) -> None:
    made = _made(seed, count)
    sums = HEAD.site_sums(*made)
    assert sums
    assert HEAD.is_site_sums(sums, count)
    told = [(sums, 5)]
    coarser = HEAD.withhold(sums, minimum)
    assert (coarser is None) == (count < minimum)
    told += [(coarser, minimum)] if coarser else []
    for one, least in told:
        assert HEAD.is_site_sums(one, count)
        starts = [row[0] for row in one["table"]["rest"]]
        for (start, rest), end in zip(one["table"]["rest"], [*starts[1:], 5], strict=True):
            cells = [cell for row in one["table"]["cells"][start:end] for cell in row if cell is not None]
            assert all(cell >= least for cell in cells)
            assert rest == 0 or rest >= least
            in_step = int(((made[1] >= start) & (made[1] < end)).sum())
            assert sum(cells) + rest == in_step
            assert in_step >= least
    assert HEAD.site_sums(made[0][:4], made[1][:4], made[2][:4]) is None
