"""A run's report and card name targets with their kinds, units and figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import yaml

from discs import JOB as DISCS
from oncofed.job.card import write_cards
from oncofed.job.outcome import begin_result
from oncofed.job.spec import parse_job
from oncofed.report.html import write_report
from oncofed.report.remarks import remarks
from oncofed.report.result import Result, SiteResult, read_result
from oncofed.tasks.over_sites import PooledTest
from oncofed.tasks.pictures import Picture
from oncofed.tasks.pooled_target import Line, Plot, PooledTarget, Table, TargetFigure
from synthetic import write_job
from targets_made import JOB


def made_result(folder: Path) -> Result:
    spec = parse_job(write_job(folder, JOB))
    result = begin_result(spec, "simulate")
    result.status, result.best_round = "completed", 2
    figures = {"lump": 0.9, "findings": 0.8, "findings.striped": 0.8, "grade": -0.1, "size": 0.7, "death": 0.66}
    result.sites["east"] = SiteResult(
        train_cases=40,
        validation_cases=9,
        test_cases=12,
        federated=0.6,
        by_class={"federated": figures},
        more={"federated": {"mae.size": 3.25, "auprc.findings.striped": 0.71}},
        interval={"federated": (0.5, 0.7)},
        patients={"train": 40, "validation": 9, "test": 12},
        patients_behind={**dict.fromkeys(figures, 12), "mae.size": 12, "auprc.findings.striped": 3},
    )
    result.mean.federated = 0.6
    figure = TargetFigure(title="concordance", value=0.66, patients=12)
    death = PooledTarget(kind="survival", patients=12, figures={"concordance": figure})
    result.pooled_test = PooledTest(patients=12, sites={"east": 12}, targets={"death": death})
    return result


def test_a_result_names_what_each_target_asks(tmp_path: Path) -> None:
    made_result(tmp_path).write(tmp_path)
    found = read_result(tmp_path).targets
    assert {name: one.kind for name, one in found.items()}["findings"] == "labels"
    assert found["grade"].asks == "one of low, middle, high"
    assert found["findings"].asks == "any of striped, bright"
    assert found["size"].asks == "value (mm)"
    assert found["death"].asks == "risk of the event by 24 months"
    assert found["size"].figures["mae.size"] == "mean absolute error of size (mm)"


def test_the_report_has_a_row_for_each_target_and_figure(tmp_path: Path) -> None:
    html = write_report(made_result(tmp_path), {}, tmp_path).read_text()
    for words in (
        "<td>risk of the event by 24 months</td>",
        "size, Lin&#39;s concordance",
        "findings: striped, AUROC",
        "mean absolute error of size (mm)",
        "12 patients state it",
    ):
        assert words in html


def test_a_target_that_a_site_lacks_is_named(tmp_path: Path) -> None:
    result = made_result(tmp_path)
    west = result.sites["east"].model_copy(update={"by_class": {"federated": {"lump": 0.8, "findings.striped": 0.7}}})
    silent = west.model_copy(update={"by_class": {}, "federated": None})
    result.sites |= {"west": west, "north": silent}
    said = [one for one in remarks(result) if "no figure of west" in one]
    assert [one.partition(":")[0] for one in said] == ["grade", "size", "death"]
    assert not any("no figure of" in one and "north" in one for one in remarks(result))
    assert said[0] in write_report(result, {}, tmp_path).read_text()


def test_the_report_says_whose_figures_they_are_and_leaves_out_what_is_empty(tmp_path: Path) -> None:
    result = made_result(tmp_path)
    curves = Plot(title="Survival", x="months", y="share", lines=[Line(name="low", points=[(0.0, 1.0)])])
    at_risk = Table(title="at risk after", columns=["0", "12"], rows={"low": [None, None]})
    assert result.pooled_test is not None
    death = result.pooled_test.targets["death"]
    told = {"sites": ["east", "west"], "withheld": ["north"], "tables": [at_risk], "plots": [curves]}
    result.pooled_test.targets["death"] = death.model_copy(update=told)
    html = write_report(result, {}, tmp_path).read_text()
    assert "12 patients of east, west state it." in " ".join(html.split())
    assert "No figure here rests on north: too few patients, or their policy." in html
    assert "No table “at risk after”" in html
    assert "No plot “Survival”: too few patients." in html
    assert ">few<" not in html


def test_the_card_says_what_is_answered_and_of_how_many_it_is_known(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    result = made_result(tmp_path)
    write_cards(parse_job(tmp_path / "job.yaml"), result, tmp_path)
    card = (tmp_path / "model" / "card.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["pipeline_tag"] == "image-classification"
    assert "| death | survival | risk of the event by 24 months | concordance | 12 |" in card
    assert "| lump | class | one of absent, present | AUROC | not reported |" in card
    assert "It answers lump (class): one of absent, present; findings" in card
    assert "apart, and nothing else" not in card
    assert "for patients like those of the sites" in card
    assert "Classes" not in card
    assert "| east | 12 | 0.600 |" in card
    values = (tmp_path / "model" / "card.json").read_text()
    assert '"mae.size": 3.25' in values
    assert "auprc.findings.striped" not in values.partition('"quantitative_analyses"')[2], "of three patients"


def test_contours_are_named_by_what_is_drawn_beside_targets(tmp_path: Path) -> None:
    result = begin_result(parse_job(write_job(tmp_path, DISCS)), "simulate")
    result.status = "completed"
    mask = np.zeros((8, 8), np.uint8)
    mask[2:6, 2:6] = 1
    html = write_report(result, {"east": Picture(np.zeros((8, 8)), mask, mask)}, tmp_path).read_text()
    assert "solid: rim" in html
    assert "dashed: heart" in html
    assert "solid: disc" not in html
