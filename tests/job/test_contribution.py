"""What a site brings to the others, from results with it and without it."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console
from scipy import stats

from oncofed.errors import SpecError
from oncofed.job.contribution import LeaveOneOut, contribution
from oncofed.job.spec import JobSpec
from oncofed.report.result import Result, SiteResult


def _result(seed: int, **scores: float | None) -> Result:
    sites = {
        name: SiteResult(train_cases=4, validation_cases=1, test_cases=5, federated=score)
        for name, score in scores.items()
    }
    return Result(job="balls", status="completed", backend="simulate", rounds=2, best_round=2, seed=seed, sites=sites)


def test_it_is_the_others_mean_with_it_less_their_mean_without_it() -> None:
    together = {1: _result(1, east=0.9, north=0.8, west=0.1), 2: _result(2, east=0.7, north=0.8, west=0.2)}
    without = {1: _result(1, east=0.7, north=0.8), 2: _result(2, east=0.7, north=0.7)}
    found = contribution("west", together, without)
    assert found.by_seed == {"1": pytest.approx(0.1), "2": pytest.approx(0.05)}
    assert found.by_site == {"east": pytest.approx(0.1), "north": pytest.approx(0.05)}
    assert found.mean == pytest.approx(0.075)
    interval = stats.ttest_1samp([0.1, 0.05], 0).confidence_interval(0.95)
    assert found.interval == pytest.approx((interval.low, interval.high))
    assert found.train_cases == 4


def test_one_seed_has_no_interval_and_a_score_that_nobody_told_is_left_out() -> None:
    together = {1: _result(1, east=0.9, north=None, west=0.1)}
    found = contribution("west", together, {1: _result(1, east=0.7, north=0.8)})
    assert (found.mean, found.interval) == (pytest.approx(0.2), None)
    assert set(found.by_site) == {"east"}
    silent = contribution("west", {1: _result(1, east=None, west=0.1)}, {1: _result(1, east=0.5)})
    assert silent.mean is None


def test_what_cannot_be_told_is_refused_before_anything_runs(
    spec: JobSpec, two_sites: dict[str, Path], tmp_path: Path
) -> None:
    def refused(job: JobSpec, sites: dict[str, Path], message: str) -> None:
        out = tmp_path / "out"
        with pytest.raises(SpecError, match=message):
            LeaveOneOut(job, sites, [1], "simulate", out, Console(quiet=True)).execute()
        assert not out.exists()

    refused(spec, two_sites, "found 2 sites, expected 3 at least")
    four = {f"s{n}": folder for n, folder in enumerate([*two_sites.values(), *two_sites.values()])}
    summed = spec.changed({"privacy": {"secure_aggregation": {"scores": "summed"}}})
    refused(summed, four, "found summed, under which no site's score is known")
    masked = spec.changed({"privacy": {"secure_aggregation": {"minimum_sites": 4}}})
    refused(masked, four, "the job needs 4 sites")
