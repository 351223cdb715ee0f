"""Pooled figures from counts and sums agree with all patients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oncofed.data.spec import DataSpec
from oncofed.suppression import LEAST_PATIENTS
from oncofed.tasks import Classification, ClassificationSpec, Segmentation, SegmentationSpec
from oncofed.tasks.classification import Classified, class_scores, ranking_scores
from oncofed.tasks.over_sites import figure, pooled_test
from oncofed.tasks.pooled import (
    BINS,
    area_interval,
    bins_of,
    cells_of,
    coarser,
    coarser_rows,
    log_odds,
    ranking,
)
from oncofed.tasks.site_sums import classification_sums, figure_sums

CLASSES = {0: "clear", 1: "pneumonia"}
DATA = DataSpec(dataset="x", modality="xray", patch=(32, 32))
TASK = Classification(ClassificationSpec(classes=CLASSES), DATA)

PROBABILITIES = st.sampled_from([0.0, 1e-9, 0.2, 0.5, 0.50001, 0.999999, 1.0]) | st.floats(0, 1)
SITE = st.lists(st.tuples(PROBABILITIES, st.booleans()), min_size=1, max_size=60)


def _sums(site: list[tuple[float, bool]], **more: Any) -> dict[str, Any] | None:
    found = np.array([[1 - p, p] for p, _ in site])
    labels = np.array([int(truth) for _, truth in site])
    return classification_sums(found, labels, [f"p{n}" for n in range(len(site))], CLASSES, **more)


def _of(sites: list[list[tuple[float, bool]]]) -> dict[str, dict[str, Any]]:
    return {f"s{n}": sums for n, site in enumerate(sites) if (sums := _sums(site))}


@given(st.lists(SITE, min_size=1, max_size=4))
def test_the_bounds_contain_the_area_of_pooled_scores(sites: list[list[tuple[float, bool]]]) -> None:
    told = _of(sites)
    there = [s for n, s in enumerate(sites) if "pneumonia" in told.get(f"s{n}", {"classes": {}})["classes"]]
    every = [one for site in there for one in site]
    truth = np.array([label for _, label in every], dtype=bool)
    test = pooled_test(told, ["s0", "s1", "s2", "s3"])
    if not len(truth) or truth.all() or not truth.any():
        assert test is None or not test.classes
        return
    assert test
    found = test.classes["pneumonia"]
    area, _ = ranking_scores(np.array([p for p, _ in every]), truth)
    low, high = found.bounds
    assert low - 1e-9 <= area <= high + 1e-9
    assert low - 1e-9 <= found.auroc <= high + 1e-9
    assert (found.patients_with, found.patients_without) == (truth.sum(), (~truth).sum())


@given(SITE, st.integers(5, 30))
def test_every_cell_holds_enough_patients_for_any_minimum(site: list[tuple[float, bool]], fewest: int) -> None:
    probabilities = np.array([p for p, _ in site])
    cells = cells_of(probabilities, [f"p{n}" for n in range(len(site))])
    for told, least in ((cells, LEAST_PATIENTS), (coarser(cells, fewest), fewest)):
        assert bool(told) == (len(site) >= least)
        assert all(count >= least for _, count, *_ in told)
        if told:
            assert sum(count for _, count, *_ in told) == len(site)
            assert sum(total for _, _, total, _ in told) == pytest.approx(log_odds(probabilities).sum(), abs=0.1)
            assert told[-1][0] == 0
            assert [cell[0] for cell in told] == sorted({cell[0] for cell in told}, reverse=True)


def test_a_patient_with_many_images_does_not_fill_a_cell() -> None:
    probabilities = np.array([0.99] * 20 + [0.5, 0.3, 0.2, 0.1])
    told = cells_of(probabilities, ["a"] * 20 + ["b", "c", "d", "e"])
    assert [cell[:2] for cell in told] == [[0, 24]]
    assert cells_of(probabilities, ["a"] * 20 + ["b", "c", "d", "d"]) == []


def test_nothing_is_sent_about_fewer_than_five_patients() -> None:
    four = [(0.2, False)] * 2 + [(0.7, True)] * 2
    assert _sums(four) is None
    assert (
        TASK.temperature_sums([(f"p{n}", Classified(np.array([1 - p, p]), int(t))) for n, (p, t) in enumerate(four)])
        is None
    )
    sums = _sums([(0.2, False)] * 6 + [(0.7, True)] * 4)
    assert sums
    assert sums["classes"] == {}
    assert [row[0] for row in sums["reliability"]["cells"]] == [5, 5]
    assert figure_sums({"mean": dict.fromkeys("abcd", 0.5)}, "mean") is None


def test_nothing_is_sent_about_many_images_of_few_patients() -> None:
    outcomes = [(f"p{n % 4}", Classified(np.array([0.4, 0.6]), n % 2)) for n in range(40)]
    assert TASK.pooled(outcomes) is None
    assert TASK.temperature_sums(outcomes) is None
    assert TASK.paired(outcomes, outcomes) is None


def test_a_rare_class_is_not_revealed_by_the_others() -> None:
    labels = np.array([0] * 12 + [1] * 9 + [2] * 2)
    found = np.full((len(labels), 3), 1 / 3)
    names = {0: "a", 1: "b", 2: "c"}
    sums = classification_sums(found, labels, [str(n) for n in range(len(labels))], names)
    assert sums
    assert set(sums["classes"]) == {"a"}  # c has too few patients, and b would reveal it


def test_a_figure_that_few_patients_lack_is_not_sent() -> None:
    whole = {f"p{n}": 0.5 for n in range(12)}
    some, half = dict(list(whole.items())[:9]), dict(list(whole.items())[:6])
    sums = figure_sums({"mean": whole, "core": some, "rim": half, "all": whole}, "mean")
    assert sums
    assert set(sums["figures"]) == {"mean", "rim", "all"}


def test_the_estimate_is_near_the_truth_and_the_interval_covers_it() -> None:
    rng = np.random.default_rng(1)
    off, covered, widths = [], 0, []
    for _ in range(60):
        sites = []
        for count in (30, 60, 110):
            truth = rng.random(count) < 0.4
            odds = rng.normal(np.where(truth, 1.2, -0.2), 1.3)
            sites.append(list(zip(1 / (1 + np.exp(-odds)), truth.tolist(), strict=True)))
        every = [one for site in sites for one in site]
        area, _ = ranking_scores(np.array([p for p, _ in every]), np.array([t for _, t in every], dtype=bool))
        test = pooled_test(_of(sites), [])
        assert test
        found = test.classes["pneumonia"]
        off.append(abs(found.auroc - area))
        widths.append(found.bounds[1] - found.bounds[0])
        true = 0.7768  # of two normals 1.4 apart with a spread of 1.3 each: Phi(1.4 / (1.3 sqrt 2))
        covered += found.interval[0] <= true <= found.interval[1]
    assert np.mean(off) < 0.01
    assert max(off) < 0.03
    assert np.mean(widths) < 0.3
    assert covered >= 54


@pytest.mark.parametrize(
    ("sizes", "mean", "most"), [((500, 800, 1200), 0.001, 0.002), ((150, 250, 400), 0.0025, 0.006)]
)
def test_the_area_of_large_sites_is_off_by_at_most_two_thousandths(
    sizes: tuple[int, ...], mean: float, most: float
) -> None:
    rng = np.random.default_rng(1)
    areas, precisions = [], []
    for _ in range(12):
        sites = []
        for count in sizes:
            truth = rng.random(count) < 0.4
            odds = rng.normal(np.where(truth, 1.2, -0.2) + rng.normal(0, 0.3), 1.3)
            sites.append(list(zip(1 / (1 + np.exp(-odds)), truth.tolist(), strict=True)))
        every = [one for site in sites for one in site]
        exact = ranking_scores(np.array([p for p, _ in every]), np.array([t for _, t in every], dtype=bool))
        test = pooled_test(_of(sites), [])
        assert test
        found = test.classes["pneumonia"]
        areas.append(abs(found.auroc - exact[0]))
        precisions.append(abs(found.average_precision - exact[1]))
    assert BINS == 200
    assert np.mean(areas) < mean
    assert max(areas) < most
    assert max(precisions) < 0.015


def test_the_interval_of_a_perfect_area_has_a_width() -> None:
    low, high = area_interval(1.0, 10, 20)
    assert 0.7 < low < 0.95
    assert high == 1.0
    assert area_interval(0.0, 10, 20)[1] == pytest.approx(1 - low, abs=0.05)
    wide, narrow = area_interval(0.8, 20, 20), area_interval(0.8, 200, 200)
    assert wide[0] < narrow[0] < 0.8 < narrow[1] < wide[1]


def test_the_curve_begins_high_and_ends_with_everybody() -> None:
    ill = [[60, 10, 30.0, 90.0], [0, 10, 5.0, 20.0]]
    well = [[40, 10, 4.0, 12.0], [0, 30, -80.0, 230.0]]
    found = ranking([{"with": ill, "without": well, "pairs": 640.0}])
    assert found
    assert found.auroc == found.bounds[0] == found.bounds[1] == 0.8  # of one site all is known
    assert found.curve[-1][1:3] == (1.0, 1.0)
    assert found.curve[-1][3] == pytest.approx(20 / 60)
    assert all(
        a[1] <= b[1] and a[2] <= b[2] and a[0] > b[0] for a, b in zip(found.curve, found.curve[1:], strict=False)
    )
    assert 0.3 < found.average_precision < 1
    assert ranking([{"with": [], "without": [[0, 5, 0.0, 0.0]], "pairs": 0}]) is None


@settings(max_examples=25)
@given(
    st.lists(st.lists(st.tuples(st.floats(0.01, 0.99), st.booleans()), min_size=5, max_size=50), min_size=1, max_size=3)
)
def test_sums_over_sites_equal_those_of_all_patients(sites: list[list[tuple[float, bool]]]) -> None:
    test = pooled_test(_of(sites), ["s0", "s1", "s2", "s9"])
    assert test
    assert test.reliability
    every = [one for site in sites for one in site]
    found = np.array([[1 - p, p] for p, _ in every])
    labels = np.array([int(t) for _, t in every])
    brier = np.square(found - np.eye(2)[labels]).sum(axis=1).mean()
    assert test.reliability.brier == pytest.approx(brier, abs=0.005)
    assert test.reliability.log_loss == pytest.approx(-np.log(found[np.arange(len(every)), labels]).mean(), abs=0.005)
    right = sum(one.right * one.patients for one in test.reliability.bins)
    assert right == pytest.approx((found.argmax(axis=1) == labels).sum())
    assert test.patients == len(every)
    assert test.calibrated is None
    assert "s9" in test.withheld


def test_an_overconfident_model_is_recognised() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random(400) < 0.5
    odds = rng.normal(np.where(truth, 1, -1), 1.0) * 2  # twice as sure as would be right, which is 2 * odds
    site = list(zip(1 / (1 + np.exp(-4 * odds)), truth.tolist(), strict=True))
    sums = _sums(site, temperature=4.0)
    assert sums
    test = pooled_test({"east": sums}, ["east"])
    assert test
    assert test.reliability
    assert test.calibrated
    assert test.calibrated.calibration_error < 0.06 < test.reliability.calibration_error
    assert test.calibrated.log_loss < test.reliability.log_loss
    single = class_scores(np.array([[1 - p, p] for p, _ in site]), truth.astype(np.int64), CLASSES)
    assert test.reliability.calibration_error == pytest.approx(single.extra_metrics["calibration_error"], abs=0.02)


@given(st.lists(st.floats(0, 1), min_size=10, max_size=40), st.integers(5, 9))
def test_mean_and_spread_come_from_sums(values: list[float], cut: int) -> None:
    parts = [
        figure_sums({"mean": {str(n): v for n, v in enumerate(part)}}, "mean") for part in (values[:cut], values[cut:])
    ]
    sums = [part["figures"]["mean"] for part in parts if part]
    every = values if len(sums) == 2 else values[:cut]
    found = figure(sums)
    assert found
    assert found.mean == pytest.approx(np.mean(every), abs=1e-4)
    assert found.sd == pytest.approx(np.std(every, ddof=1), abs=0.02)
    assert found.interval[0] <= found.mean <= found.interval[1]


def test_a_segmentation_sends_its_metric_overall_and_by_class() -> None:
    task = Segmentation(SegmentationSpec(classes={1: "core", 2: "rim"}), DataSpec(dataset="x"))
    outcomes = [(f"p{n}", {"dice.core": 0.5 + n / 100, "dice.rim": 0.9}) for n in range(8)]
    sums = task.pooled(outcomes)
    assert sums
    test = pooled_test({"east": sums, "west": sums}, ["east", "west", "north"])
    assert test
    assert test.auroc is None
    assert test.figures["core"].mean == pytest.approx(0.535)
    assert test.figures["mean"].mean == pytest.approx((0.535 + 0.9) / 2)
    assert (test.figures["core"].patients, test.withheld) == (16, ["north"])
    assert task.pooled(outcomes[:4]) is None
    assert task.temperature_sums(outcomes) is None


def test_rows_are_added_up_until_they_count_enough() -> None:
    rows = [[5, 4, 4.5], [5, 3, 4.0], [6, 2, 3.5]]
    assert coarser_rows(rows, 5) == rows
    assert coarser_rows(rows, 10) == [[16, 9, 12.0]]
    assert coarser_rows(rows, 17) == []


def test_edges_are_those_of_log_odds() -> None:
    assert bins_of(np.array([0.0, 0.5, 1.0])).tolist() == [0, BINS // 2, BINS - 1]
    assert bins_of(np.array([1.0000000000000002])).tolist() == [BINS - 1]
