"""Evaluation of a model on a dataset.

Which cases are scored, what may be shared, and what is refused.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from oncofed.artifacts.provenance import write_provenance
from oncofed.data.cases import usable_cases
from oncofed.data.register import RegisterOptions, register
from oncofed.data.slides import TileSpec
from oncofed.errors import DataError, SpecError
from oncofed.job.spec import parse_job
from oncofed.prediction.evaluation.caveats import of_attention
from oncofed.prediction.evaluation.evaluate import EvaluationRequest, EvaluationResult, evaluate, write_cases
from oncofed.prediction.evaluation.page import write_page
from oncofed.prediction.evaluation.subgroup_columns import parse_column_choices
from oncofed.prediction.model import TrainedModel, load_model
from oncofed.report.evaluation import read_evaluation
from synthetic import JOB, make_site, make_slides, make_textures, write_job
from trained import SLIDES, make_run

CPU = torch.device("cpu")
XRAY = """\
schema: 1
name: stripes
title: Stripes
data: {dataset: stripes, modality: xray, channels: [grey], patch: [32, 32]}
task: {type: classification, classes: {0: thin, 1: wide}}
model:
  network: densenet121
  arguments: {init_features: 8, growth_rate: 8, block_config: [1, 1]}
seed: 3
"""


def _run(folder: Path, text: str = JOB, dataset: Path | None = None) -> TrainedModel:
    """Return the model of an untrained run.

    Its weights are those of the job's seed.
    """
    job = parse_job(write_job(folder, text))
    weights = job.plan().initial_weights()
    (folder / "model").mkdir()
    save_file(weights, folder / "model" / "model.safetensors")
    digest = hashlib.sha256((dataset / "dataset.json").read_bytes()).hexdigest() if dataset else None
    facts = {"job": job.name, "sites": {"east": {"train": 9, "dataset": digest}} if dataset else {}}
    write_provenance(folder / "provenance.json", weights, facts, folder)
    return load_model(folder)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Twenty cases of fifteen patients, with columns of a table.

    Also with a scanner's vendor.
    """
    folder = make_site(tmp_path / "data", 20)
    values = json.loads((folder / "dataset.json").read_text())
    for n, entry in enumerate(values["training"]):
        entry |= {"name": f"case_{n}", "patient": f"p{n % 15}", "vendor": "Siemens" if n % 15 < 8 else "GE"}
        entry["tags"] = {"stage": str(n % 2)} if n != 4 else {}
    (folder / "dataset.json").write_text(json.dumps(values))
    return folder


def _evaluate(model: TrainedModel, folder: Path, by: str = "", **more: Any) -> EvaluationResult:
    return evaluate(EvaluationRequest(model, folder, by=tuple(parse_column_choices([by] if by else [])), **more), CPU)


def test_held_out_patients_have_the_scores_of_the_runs_own_test(tmp_path: Path, data: Path) -> None:
    model = _run(tmp_path / "run", dataset=data)
    found = _evaluate(model, data)
    plan = model.job.plan()
    test = usable_cases(data, plan.data, plan.supervision(), plan.seed, "here").cases.test
    expected = model.task.evaluate(model.network(CPU), test, CPU, detailed=True)
    assert {one.case.name for one in found.scored_cases} == {case.name for case in test}
    assert found.scores.mean == pytest.approx(expected.mean, abs=1e-6)
    assert found.scores.by_class == pytest.approx(expected.by_class, abs=1e-6)
    assert found.interval == expected.interval
    assert (found.record.split, found.record.model) == ("test", model.digest)
    assert not any("trained" in remark for remark in found.record.remarks)


def test_scores_by_subgroup_and_files_that_stay_or_may_go(tmp_path: Path, data: Path) -> None:
    model, out = _run(tmp_path / "run"), tmp_path / "out"
    out.mkdir()
    [stage] = _evaluate(model, data, "stage", split="all").record.subgroups
    found = _evaluate(model, data, "vendor", split="all")
    [vendor] = found.record.subgroups
    assert {group.name: (group.patients, group.cases) for group in vendor.groups} == {"Siemens": (8, 13), "GE": (7, 7)}
    assert [one.reference for one in vendor.differences] == ["Siemens"]
    assert {group.name for group in stage.groups} == {"0", "1"}
    assert stage.withheld_groups == 1  # one case without a stage
    both = _evaluate(model, data, "vendor,stage", split="all").record
    # Siemens and all, less both stages, is three patients and one image of a fourth.
    assert [[group.name for group in column.groups] for column in both.subgroups] == [[], ["0", "1"]]
    assert any(remark.startswith("3 of 5 groups withheld") for remark in both.remarks)
    handed_on = found.record.write(out).read_text()
    assert read_evaluation(out / "evaluation.json") == found.record
    assert not re.search(r"case_|p\d+\"|imagesTr", handed_on)
    table = write_cases(found, out)
    assert stat.S_IMODE(table.stat().st_mode) == 0o600
    rows = list(csv.DictReader(table.open(encoding="utf-8")))
    assert len(rows) == 20
    scores = [float(row["score"]) for row in rows]
    assert scores == sorted(scores)
    assert {row["list"] for row in rows} == {"test", "validation", "training"}
    assert float(rows[0]["dice.shell"]) == pytest.approx(found.scored_cases[0].figures["dice.shell"], rel=1e-4)
    page = write_page(found, model, CPU, out, 2).read_text()
    assert page.count("<svg") == 2
    assert f"<h3>{rows[0]['case']}:" in page
    assert "stays at the site" in page
    for source in ("<script", "<link", "src=", "@import"):
        assert source not in page


def test_training_cases_are_reported(tmp_path: Path, data: Path) -> None:
    [known] = _evaluate(_run(tmp_path / "a", dataset=data), data, "stage", split="all").record.remarks[:1]
    assert re.search(r"1\d of 20 cases were trained on or chose the best round at east", known)
    other = make_site(tmp_path / "other", 6, seed=9)
    model = _run(tmp_path / "b", dataset=other)
    assert "no site of the run had this dataset as it is now" in _evaluate(model, data).record.remarks[0]
    assert "nothing says" in _evaluate(_run(tmp_path / "c"), data, split="all").record.remarks[0]


def test_by_default_only_columns_that_distinguish_cases_are_shown(tmp_path: Path, data: Path) -> None:
    found = _evaluate(_run(tmp_path / "run"), data, split="all")
    assert [column.column for column in found.record.subgroups] == ["vendor"]  # all slices are thin
    assert {"vendor", "slices", "size", "volume_ml", "stage"} <= set(found.columns)
    assert "1 difference between groups looked at" in " ".join(found.record.remarks)
    [one] = _evaluate(_run(tmp_path / "b"), data, "slices", split="all").record.subgroups
    assert [group.patients for group in one.groups] == [15]


def test_columns_of_a_table_and_rows_of_no_case(tmp_path: Path, data: Path) -> None:
    table = tmp_path / "ages.csv"
    lines = ["patient;Größe", *(f"p{n};{n},5" for n in range(15)), "p99;1"]
    table.write_bytes("\n".join(lines).encode("cp1252"))
    found = _evaluate(_run(tmp_path / "run"), data, "größe:0-7.5,7.5-", split="all", table=table)
    [column] = found.record.subgroups
    assert {g.name: g.patients for g in column.groups} == {"0 to below 7.5": 7, "7.5 and above": 8}
    assert "1 row of the table are of no case that was scored" in found.record.remarks
    with pytest.raises(SpecError, match="no column 'weight'; known are größe, size, slices, stage, vendor, volume_ml"):
        _evaluate(_run(tmp_path / "b"), data, "weight", split="all", table=table)


def test_two_models_on_the_same_patients(tmp_path: Path, data: Path) -> None:
    model = _run(tmp_path / "a")
    seeded = _run(tmp_path / "b", JOB.replace("seed: 3", "seed: 4\nevaluation: {margin: 0.2}"))
    other = _evaluate(seeded, data, split="all", against=model).record
    assert other.comparison
    assert (other.comparison.patients, other.comparison.interval is None) == (15, False)
    assert any("rests on 15 patients" in remark for remark in other.remarks)
    assert (other.comparison.margin, other.comparison.other_model) == (0.2, model.digest)
    assert any("deals patients otherwise" in remark for remark in other.remarks)
    few = _evaluate(model, data, against=seeded, margin=0.1).record  # three patients
    assert few.scores.patients is None
    assert few.comparison
    assert (few.comparison.patients, few.comparison.mean, few.comparison.not_inferior) == (None, None, None)
    assert any("fewer than 5 patients" in remark for remark in few.remarks)


def test_models_that_cannot_be_compared_are_refused(tmp_path: Path, data: Path) -> None:
    model = _run(tmp_path / "a")
    other = _run(tmp_path / "b", JOB.replace("{1: shell, 2: core}", "{1: core, 2: shell}"))
    with pytest.raises(SpecError, match="answer different questions: balls tells shell, core"):
        _evaluate(model, data, against=other)
    with pytest.raises(SpecError, match="the same model"):
        _evaluate(model, data, against=_run(tmp_path / "again"))
    with pytest.raises(SpecError, match="--margin is for two models"):
        _evaluate(model, data, margin=0.1)


def test_a_classification_is_evaluated_and_its_worst_are_the_least_sure(tmp_path: Path) -> None:
    images = make_textures(tmp_path / "in", ["thin", "wide"], each=12, colours=1)
    register(RegisterOptions(images, "stripes", tmp_path / "set", "classification"))
    found = _evaluate(_run(tmp_path / "run", XRAY), tmp_path / "set", split="all")
    assert found.record.metric == "auroc"
    assert found.record.scores.mean is not None
    assert [one.score for one in found.scored_cases] == [
        one.figures[f"probability.{one.figures['class']}"] for one in found.scored_cases
    ]
    out = tmp_path / "out"
    out.mkdir()
    assert write_page(found, _run(tmp_path / "b", XRAY), CPU, out, 1).read_text().count("<svg") == 1


def test_other_or_missing_labels_are_refused_with_a_reason(tmp_path: Path, data: Path) -> None:
    model = _run(tmp_path / "a")
    values = json.loads((data / "dataset.json").read_text())
    (data / "dataset.json").write_text(json.dumps({**values, "labels": {"0": "background", "1": "liver", "2": "core"}}))
    with pytest.raises(DataError, match="its label 'liver' is none of the job's"):
        _evaluate(model, data)
    unlabelled = [{**entry, "label": None} for entry in values["training"]]
    (data / "dataset.json").write_text(json.dumps({**values, "training": unlabelled}))
    with pytest.raises(DataError, match="none of its 20 cases has a mask as label, by which the job balls is scored"):
        _evaluate(model, data)
    images = make_textures(tmp_path / "in", ["shell", "core"], each=4, colours=1)
    register(RegisterOptions(images, "flat", tmp_path / "flat", "classification"))
    with pytest.raises(DataError, match="has a mask as label"):
        _evaluate(model, tmp_path / "flat")


def test_bad_cases_are_set_aside_and_a_dataset_of_them_alone_is_refused(tmp_path: Path, data: Path) -> None:
    model = _run(tmp_path / "a")
    (data / "imagesTr" / "case_3.nii.gz").write_bytes(b"no image")
    found = _evaluate(model, data, split="all")
    assert [problem.case for problem in found.set_aside] == ["case_3"]
    assert (found.record.set_aside, found.record.scores.cases) == (1, 19)
    for image in (data / "imagesTr").iterdir():
        image.write_bytes(b"no image")
    with pytest.raises(DataError, match="none of its 20 cases fits the job"):
        _evaluate(model, data, split="all")


def test_a_list_that_the_dataset_lacks_names_the_others(tmp_path: Path) -> None:
    folder = make_site(tmp_path / "two", 2)
    with pytest.raises(DataError, match=r"it has no test case, found 0 test, 0 validation, 2 training.*--split all"):
        _evaluate(_run(tmp_path / "a"), folder)


def test_slides_are_answered_again_without_the_tiles_attended_to(tmp_path: Path) -> None:
    make_slides(tmp_path / "in", 6, side=512)
    table = tmp_path / "in" / "labels.csv"
    tiles = TileSpec(128, 1.0, 0.25)
    register(RegisterOptions(tmp_path / "in", "slides", tmp_path / "set", "slides", table=table, tiles=tiles))
    (tmp_path / "run").mkdir()
    model = load_model(make_run(tmp_path / "run", SLIDES))
    found = _evaluate(model, tmp_path / "set", split="all")
    attention = found.record.attention
    assert attention
    assert attention.patients == 6
    assert all(0 <= moved <= 1 for curve in attention.moved.values() for moved in curve)
    assert found.record.write(tmp_path)
    assert read_evaluation(tmp_path / "evaluation.json").attention == attention
    assert "Does the answer rest on what it attended to?" in write_page(found, model, CPU, tmp_path, 0).read_text()
    assert "P1" not in found.record.to_json()
    # Of four patients the test is left out, and the page says so.
    four = sorted({one.case.patient for one in found.scored_cases})[:4]
    left_out = of_attention(model.job, [one.case for one in found.scored_cases if one.case.patient in four])
    assert left_out == [
        "whether answers rest on what attention shows was not tested: there are fewer than 5 test patients"
    ]
