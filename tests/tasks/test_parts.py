"""Means of a job's targets compare models, and sites, over the same targets alone."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from oncofed.cli.common import result_table
from oncofed.job.outcome import begin_result, note_scores
from oncofed.job.spec import parse_job
from oncofed.report.remarks import remarks
from oncofed.tasks import Evaluation
from oncofed.tasks.parts import Part, comparable_means
from oncofed.tasks.targets.details import TargetDetails
from synthetic import write_job
from trained import SLIDES

PARTS = {"disc": Part(("rim", "heart"), has_own_figure=True), "finds": Part(("gas", "mass")), "size": Part()}
ALONE = {
    "disc": 0.2,
    "disc.rim": 0.3,
    "disc.heart": 0.1,
    "finds": 0.5,
    "finds.gas": 0.4,
    "finds.mass": 0.6,
    "size": 0.7,
}


def test_a_mean_is_of_what_all_models_have() -> None:
    sent = {"disc.rim": 0.9, "finds": 0.8, "finds.gas": 0.8, "size": 1.0}
    found = comparable_means(PARTS, {"alone": ALONE, "federated": sent, "silent": {}})
    assert found.targets == ["finds", "size"]
    assert found.means == pytest.approx({"alone": (0.4 + 0.7) / 2, "federated": 0.9})
    assert found.whole == {"federated"}
    assert comparable_means(PARTS, {"alone": ALONE}).means == pytest.approx({"alone": (0.2 + 0.5 + 0.7) / 3})
    nothing = comparable_means(PARTS, {"alone": ALONE, "federated": {"size": float("nan")}})
    assert (nothing.targets, nothing.means) == ([], {})


def _state(test: dict[str, Any]) -> Any:
    cases = {site: {"train": 30, "validation": 8, "test": 12} for site in test}
    nothing = dict.fromkeys(("personal", "cross_site", "pooled", "paired", "calibration", "attention", "summed"))
    return SimpleNamespace(
        cases=cases, summed_scores=False, finished=SimpleNamespace(best_round=1, test=test, **nothing)
    )


def test_a_gain_is_of_the_same_targets_and_sites_of_others_have_no_worst(tmp_path: Path) -> None:
    """A site that sent its size alone, 1.0, seemed to gain 0.53 by the federation."""
    result = begin_result(parse_job(write_job(tmp_path, SLIDES)), "simulate")
    result.targets = dict.fromkeys(PARTS, TargetDetails.model_construct(kind="value"))
    sent = {"east": {"mean": 1.0, "by_class": {"size": 1.0}}, "west": {"mean": 0.5, "by_class": ALONE}}
    alone = Evaluation(sum(ALONE[name] for name in PARTS) / 3, dict(ALONE), {}, 12, (0.3, 0.6))
    note_scores(result, _state(sent), {site: {site: alone} for site in sent}, parts=PARTS)
    east, west = result.sites["east"], result.sites["west"]
    assert (east.alone, east.federated, east.in_mean) == (0.7, 1.0, ["size"])
    assert "alone" not in east.interval, "it is of all targets"
    assert west.in_mean == ["disc", "finds", "size"]
    assert west.interval["alone"] == (0.3, 0.6)
    assert result.fairness is None
    said = next(line for line in remarks(result) if "east over size" in line)
    assert "at west" not in said
    assert "a worst one is not named" in said
    assert next(result_table(result).columns[5].cells) == "[green]+0.300[/]"
