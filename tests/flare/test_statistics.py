"""A federated profile reveals nothing about few patients."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nvflare.app_common.abstract.statistics_spec import Bin, Histogram, HistogramType

from oncofed.data.profile_plan import ProfilePlan
from oncofed.flare.statistics import CaseStatistics, SmallCounts, statistic_configs
from oncofed.suppression import LEAST_PATIENTS

PLAN = ProfilePlan(dataset="balls", classes={1: "shell"})


def _answer(values: dict[str, list[float]], bins: int = 10, low: float = 0, high: float = 10) -> dict[str, Any]:
    def histogram(numbers: list[float]) -> Histogram:
        counts, edges = np.histogram(numbers, bins, (low, high))
        boxes = [Bin(float(edges[n]), float(edges[n + 1]), int(c)) for n, c in enumerate(counts)]
        return Histogram(HistogramType.STANDARD, boxes)

    return {
        "count": {"cases": {name: len(v) for name, v in values.items()}},
        "sum": {"cases": {name: float(np.sum(v)) for name, v in values.items()}},
        "failure_count": {"cases": dict.fromkeys(values, 0)},
        "histogram": {"cases": {name: histogram(v) for name, v in values.items()}},
    }


def _counts(answer: dict[str, Any], name: str) -> list[int]:
    return [b.sample_count for b in answer["histogram"]["cases"][name].bins]


def test_a_feature_of_few_patients_is_removed_entirely() -> None:
    answer, changed = SmallCounts().apply(_answer({"a": [1.0] * 4, "b": [1.0] * 9}), "west")
    assert changed
    for statistic in answer.values():
        assert set(statistic["cases"]) == {"b"}


@given(
    values=st.lists(st.floats(0, 9.99), min_size=LEAST_PATIENTS, max_size=120),
    least=st.integers(LEAST_PATIENTS, 12),
)
def test_bins_and_total_reveal_nothing_about_few_patients(values: list[float], least: int) -> None:
    if len(values) < least:
        return
    truth, _ = np.histogram(values, 10, (0, 10))
    answer, _ = SmallCounts(minimum_count=least).apply(_answer({"a": values}), "west")
    shown = np.array(_counts(answer, "a"))
    assert all(count == 0 or count >= least for count in shown)
    hidden = int(answer["count"]["cases"]["a"] - shown.sum())
    # What the total reveals covers no patient, enough of them, or several bins that cannot be told apart.
    assert hidden == 0 or hidden >= least
    assert all(s in {0, t} for s, t in zip(shown, truth, strict=True))


def test_a_job_cannot_lower_the_minimum_count() -> None:
    answer, _ = SmallCounts(minimum_count=1).apply(_answer({"a": [1.0, 2, 3]}), "west")
    assert answer["count"]["cases"] == {}
    with pytest.raises(ValueError, match="greater than or equal to 5"):
        ProfilePlan(dataset="balls", minimum_count=2)


def test_noise_has_the_requested_scale() -> None:
    values = {"a": [5.0] * 50}
    sums = [
        SmallCounts(noise=0.5, ranges={"a": [0, 10]}, seed=seed).apply(_answer(values), "west")[0]["sum"]["cases"]["a"]
        for seed in range(400)
    ]
    assert np.mean(sums) == pytest.approx(250, abs=1.5)
    assert np.std(sums) == pytest.approx(0.5 * 10 * math.sqrt(2), rel=0.2)


def test_minimum_and_maximum_are_refused() -> None:
    statistics = CaseStatistics(PLAN.model_dump(mode="json"))
    for ask in (statistics.min_value, statistics.max_value):
        with pytest.raises(NotImplementedError, match="does not leave the site"):
            ask("cases", "log2_size_right")


def test_every_histogram_has_the_jobs_fixed_range() -> None:
    configs = statistic_configs(PLAN)
    assert "min" not in configs
    assert "max" not in configs
    assert "quantile" not in configs
    assert all(len(c["range"]) == 2 and c["bins"] == PLAN.bins for c in configs["histogram"].values())
