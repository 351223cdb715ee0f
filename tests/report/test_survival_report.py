"""A run's report shows a survival target over all sites: curves, numbers at risk, log-rank, calibration."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from follow_ups import drawn
from oncofed.report.html import write_report
from oncofed.report.result import Means, Result, SiteResult, Timing
from oncofed.tasks.over_sites import pooled_test
from oncofed.tasks.targets.survival import SurvivalHead, SurvivalTarget


def result_of(*sizes: int) -> Result:
    """Return a run's result over sites of so many test patients."""
    head = SurvivalHead(SurvivalTarget(name="survival_time", unit="months", horizon=36))
    told, sites = {}, {}
    for number, count in enumerate(sizes):
        log_risks, known = drawn(count, number)
        survival = np.exp(-0.02 * np.exp(log_risks)[:, None] * np.array(head.settings.ends))
        truths = np.stack([known.times, known.events], axis=1)
        sums = head.site_sums(survival, truths, [f"p{n}" for n in range(count)])
        told[f"site {number}"] = {"patients": count, "targets": {"survival_time": sums}}
        sites[f"site {number}"] = SiteResult(
            train_cases=3 * count, validation_cases=count, test_cases=count, alone=0.6, federated=0.7
        )
    return Result(
        job="lives",
        title="How long patients live",
        status="completed",
        backend="federation",
        rounds=2,
        best_round=2,
        seed=1,
        metric="concordance",
        metric_name="concordance",
        classes=["survival_time"],
        sites=sites,
        mean=Means(alone=0.6, federated=0.7),
        pooled_test=pooled_test(told, told, {"survival_time": head}),
        curves={},
        timing=Timing(total_s=12, overhead_s_per_round=0.2),
    )


def test_curves_numbers_at_risk_and_calibration_are_shown(tmp_path: Path) -> None:
    html = write_report(result_of(90, 60), {}, tmp_path).read_text()
    for text in ("Survival by predicted risk", "Risk of an event by 36 months", "observed, Kaplan-Meier"):
        assert f"<!-- {text}" in html, "matplotlib says a drawn text in a comment"
    for text in ("at risk after … months", "lowest third of risk", "log-rank p between thirds of risk"):
        assert text in html
    assert "concordance" in html
