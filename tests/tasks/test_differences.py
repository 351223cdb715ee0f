"""Two models on the same patients."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from oncofed.data.spec import DataSpec
from oncofed.tasks import Classification, ClassificationSpec, Segmentation, SegmentationSpec
from oncofed.tasks.classification import Classified, ranking_scores
from oncofed.tasks.differences import Part, area_difference, combined_difference

VALUES = st.lists(st.floats(-1, 1), min_size=5, max_size=40)


@given(VALUES)
def test_one_site_alone_is_a_paired_t_test(values: list[float]) -> None:
    found = combined_difference({"s": Part.of_values(values)}, "dice", margin=0.1)
    if np.std(values) < 1e-6:
        assert found.difference == pytest.approx(np.mean(values))
        return
    expected = stats.ttest_1samp(values, 0.0)
    low, high = expected.confidence_interval(0.95)
    assert found.interval == pytest.approx((low, high))
    assert found.p_equal == pytest.approx(expected.pvalue)
    above = stats.ttest_1samp(values, -0.1, alternative="greater")
    assert found.p_not_inferior == pytest.approx(above.pvalue)
    assert found.not_inferior == (low > -0.1)


@given(st.lists(VALUES, min_size=1, max_size=4))
def test_sites_are_weighted_by_patients(sites: list[list[float]]) -> None:
    parts = {f"s{n}": Part.of_sums(len(v), sum(v), sum(x * x for x in v)) for n, v in enumerate(sites)}
    found = combined_difference(parts, "dice")
    every = [value for site in sites for value in site]
    assert found.difference == pytest.approx(np.mean(every), abs=1e-9)
    assert found.patients == len(every)
    assert found.interval[0] <= found.difference <= found.interval[1]
    assert 0 <= found.p_equal <= 1
    assert (found.margin, found.p_not_inferior, found.not_inferior) == (None, None, None)


def test_identical_models_do_not_differ() -> None:
    found = combined_difference({"a": Part(9, 0.0, 0.0), "b": Part(7, 0.0, 0.0)}, "dice", 0.02)
    assert (found.difference, found.p_equal, found.not_inferior) == (0.0, 1.0, True)


def test_a_margin_is_met_or_not() -> None:
    rng = np.random.default_rng(2)
    parts = {s: Part.of_values(rng.normal(-0.01, 0.05, n)) for s, n in (("a", 60), ("b", 90))}
    assert combined_difference(parts, "dice", 0.05).not_inferior
    assert combined_difference(parts, "dice", 0.005).not_inferior is False


def test_the_interval_has_its_nominal_coverage() -> None:
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(400):
        parts = {
            f"s{n}": Part.of_values(rng.normal(0.02, spread, count))
            for n, (count, spread) in enumerate(((8, 0.1), (25, 0.05), (60, 0.2)))
        }
        low, high = combined_difference(parts, "dice").interval
        covered += low <= 0.02 <= high
    assert 0.92 <= covered / 400 <= 0.98


def test_areas_differ_with_the_variance_of_delong() -> None:
    rng = np.random.default_rng(4)
    labels = (rng.random(80) < 0.4).astype(np.int64)
    first, second = (rng.normal(labels * shift, 1.0) for shift in (1.5, 1.0))
    p, q = (1 / (1 + np.exp(-values)) for values in (first, second))
    part = area_difference(np.stack([1 - p, p], 1), np.stack([1 - q, q], 1), labels, [str(n) for n in range(80)])
    expected = ranking_scores(p, labels == 1)[0] - ranking_scores(q, labels == 1)[0]
    assert part.difference == pytest.approx(expected)
    ill, well = labels == 1, labels == 0
    # As the paper has it: covariances of the placements of both models.
    above = np.stack([(v[ill][:, None] > v[well][None]).mean(1) for v in (p, q)])
    below = np.stack([(v[ill][:, None] > v[well][None]).mean(0) for v in (p, q)])
    spread = np.cov(above) / ill.sum() + np.cov(below) / well.sum()
    assert part.variance == pytest.approx(spread[0, 0] + spread[1, 1] - 2 * spread[0, 1])
    assert part.patients == 80


def test_a_patients_images_are_not_independent() -> None:
    rng = np.random.default_rng(5)
    labels = np.tile([0, 1], 20)
    p, q = rng.random(40), rng.random(40)
    one = area_difference(np.stack([1 - p, p], 1), np.stack([1 - q, q], 1), labels, [str(n) for n in range(40)])
    doubled = [np.repeat(values, 2) for values in (p, q, labels)]
    p, q, labels = doubled
    twice = area_difference(np.stack([1 - p, p], 1), np.stack([1 - q, q], 1), labels, [str(n // 2) for n in range(80)])
    assert twice.patients == one.patients
    assert twice.difference == pytest.approx(one.difference)
    assert twice.variance == pytest.approx(one.variance, rel=0.06)


def test_tasks_pair_their_outcomes() -> None:
    data = DataSpec(dataset="x", modality="xray", patch=(32, 32))
    task = Classification(ClassificationSpec(classes={0: "clear", 1: "ill"}), data)
    rng = np.random.default_rng(6)

    def outcomes(shift: float) -> list[tuple[str, Classified]]:
        odds = [rng.normal(shift * (n % 2), 1.0) for n in range(30)]
        return [
            (f"p{n}", Classified(np.array([1 - p, p]), n % 2)) for n, p in enumerate(1 / (1 + np.exp(-np.array(odds))))
        ]

    first, second = outcomes(3.0), outcomes(0.5)
    part = task.paired(first, second)
    assert part
    metric = task.summarise(first).mean, task.summarise(second).mean
    assert metric[0] is not None
    assert metric[1] is not None
    assert part.difference == pytest.approx(metric[0] - metric[1])
    assert task.paired(first[:9], second[:9]) is None
    other = Segmentation(SegmentationSpec(classes={1: "core"}), DataSpec(dataset="x"))
    better, worse = ([(f"p{n}", {"dice.core": base + n / 100}) for n in range(6)] for base in (0.8, 0.7))
    paired = other.paired(better, worse)
    assert paired
    assert (paired.patients, paired.difference) == (6, pytest.approx(0.1))
    assert other.paired(better[:4], worse[:4]) is None
