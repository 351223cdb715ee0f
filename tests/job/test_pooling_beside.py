"""Mean and max pooling are trained beside a model of slides, and shown wherever its scores are."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from oncofed.cli.common import result_table
from oncofed.cli.run_options import parse_sites
from oncofed.data.cases import Cases
from oncofed.errors import SpecError
from oncofed.job.outcome import begin_result, note_scores
from oncofed.job.run import Run
from oncofed.job.site_data import CheckedSites
from oncofed.job.spec import parse_job
from oncofed.report.html import write_report
from oncofed.report.result import read_result
from oncofed.tasks import Evaluation
from synthetic import write_job
from trained import SLIDES

SCORES = {"east": 0.6, "pooled": 0.9, "mean_pooling": 0.55, "max_pooling": 0.8}


def _state() -> Any:
    cases = {"east": {"train": 4, "validation": 1, "test": 2}}
    nothing = dict.fromkeys(("personal", "cross_site", "pooled", "paired", "calibration", "attention", "summed"))
    test = {"east": {"mean": 0.85, "by_class": {}}}
    return SimpleNamespace(
        cases=cases, summed_scores=False, finished=SimpleNamespace(best_round=1, test=test, **nothing)
    )


def test_each_pooling_is_a_baseline_of_all_sites(tmp_path: Path) -> None:
    spec = parse_job(write_job(tmp_path, SLIDES))
    run = Run(spec, {}, "simulate", tmp_path, Console(), _data=CheckedSites({"east": Cases((), (), ())}))
    found = {baseline.name: baseline.plan for baseline in run._baselines()}
    assert set(found) == set(SCORES)
    assert found["pooled"] is None
    for name in ("mean_pooling", "max_pooling"):
        plan = found[name]
        assert plan is not None
        bags = torch.rand(1, 4, plan.build_task().in_channels)
        assert plan.build_network()(bags, torch.ones(1, 4, dtype=torch.bool)).shape == (1, 2)


def test_their_scores_stand_in_result_terminal_and_report(tmp_path: Path) -> None:
    result = begin_result(parse_job(write_job(tmp_path, SLIDES)), "simulate")
    result.status = "completed"
    note_scores(result, _state(), {name: {"east": Evaluation(mean, {}, {}, 2)} for name, mean in SCORES.items()})
    assert result.mean.known == {
        "alone": 0.6,
        "federated": 0.85,
        "pooled": 0.9,
        "mean_pooling": 0.55,
        "max_pooling": 0.8,
    }
    kept = json.loads(result.write(tmp_path).read_text())
    assert kept["sites"]["east"]["max_pooling"] == 0.8
    assert read_result(tmp_path) == result
    shown = io.StringIO()
    Console(file=shown, width=200).print(result_table(result))
    assert "mean pooling" in shown.getvalue()
    assert "0.550" in shown.getvalue()
    html = write_report(result, {}, tmp_path).read_text()
    assert '<th class="n">Max pooling</th>' in html
    assert "attention that does not beat them" in html


@pytest.mark.parametrize("name", ["table", "mean_pooling", "pooled"])
def test_no_site_is_called_as_a_baseline(name: str) -> None:
    with pytest.raises(SpecError, match="name is taken"):
        parse_sites([f"{name}=folder"])
