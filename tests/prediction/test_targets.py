"""A model with named targets is used: predicted, evaluated, compared and shown."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from made import COLOURS, made_model, made_predictions
from oncofed.errors import DataError, SpecError
from oncofed.prediction.covariate_table import TableReading, table_notes, with_table
from oncofed.prediction.evaluation.evaluate import EvaluationRequest, evaluate, write_cases
from oncofed.prediction.evaluation.page import write_page
from oncofed.prediction.export.export import export
from oncofed.prediction.model import TrainedModel, load_model
from oncofed.prediction.outputs.case_rows import display_table, short_rows
from oncofed.prediction.outputs.page import write_page as write_predictions_page
from oncofed.prediction.predictions import Predictions
from oncofed.prediction.run import Options, predict
from oncofed.prediction.sources import Sources, gather
from oncofed.tasks.calibration import Calibration
from oncofed.tasks.targets import TargetsTask
from synthetic import make_slides
from targets_made import JOB, make_dataset
from trained import make_run

CPU = torch.device("cpu")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make_dataset(tmp_path / "set")


@pytest.fixture
def model(tmp_path: Path) -> TrainedModel:
    return load_model(make_run(tmp_path / "run", JOB))


def predicted(model: TrainedModel, inputs: Path, out: Path) -> Predictions:
    sources = gather([inputs], out, model.job, out.parent)
    found = predict(model, sources, out, CPU, Options())
    write_predictions_page(found, sources, model, out, workers=1)
    return found


def test_each_case_has_its_answers_by_name_beside_what_it_states(
    model: TrainedModel, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert len(predicted(model, data, out).made) == 24
    rows = {row["case"]: row for row in csv.DictReader((out / "targets.csv").open())}
    entries = json.loads((data / "dataset.json").read_text())["training"]
    task = model.task
    assert isinstance(task, TargetsTask)
    for entry in entries[:5]:
        row = rows[entry["name"]]
        record = json.loads((out / "cases" / entry["name"] / f"{entry['name']}_targets.json").read_text())["targets"]
        assert row["lump.stated"] == entry["targets"].get("lump", "")
        assert row["grade.stated"] == entry["targets"]["grade"]
        assert row["size.stated"] == f"{10 * entry['targets']['size']:g} mm", "stated in cm, answered in mm"
        assert record["size"]["numbers"]["value_mm"]["unit"] == "mm"
        assert float(row["size.value_mm"]) == record["size"]["numbers"]["value_mm"]["value"]
        risk = record["death"]["numbers"]["risk"]
        assert risk["title"] == "risk of the event by 24 months"
        assert risk["value"] == pytest.approx(1 - record["death"]["numbers"]["free_at_24"]["value"])
        assert record["lump"]["answer"] in ("absent", "present")
    page = (out / "predictions.html").read_text()
    assert "death, risk of the event by 24 months" in page
    record = json.loads((out / "cases" / entries[0]["name"] / "case.json").read_text())
    headings, cells = display_table(short_rows(record))
    table = dict(zip(headings, zip(*cells, strict=True), strict=True))
    assert {"lump", "grade", "grade, stated", "size (mm)", "death, risk of the event by 24 months"} <= table.keys()
    assert table["lump"][0] in ("absent", "present")
    assert float(table["size (mm)"][0]) == pytest.approx(float(rows[record["name"]]["size.value_mm"]), rel=0.01)
    assert not any(cell == "–" for row in cells for cell in row)
    assert "probability of no event by 4 months" not in page, "the curve is in the files"


def test_images_without_targets_are_predicted_alike(model: TrainedModel, data: Path, tmp_path: Path) -> None:
    stated, bare = tmp_path / "stated", tmp_path / "bare"
    predicted(model, data, stated)
    assert len(predicted(model, data / "images", bare).made) == 24
    one, other = (list(csv.DictReader((out / "targets.csv").open())) for out in (stated, bare))
    assert not any("stated" in name for name in other[0])
    assert [row["death.risk"] for row in one] == [row["death.risk"] for row in other]


def test_targets_of_another_kind_are_left_out_with_a_note(model: TrainedModel, data: Path, tmp_path: Path) -> None:
    values = json.loads((data / "dataset.json").read_text())
    values["targets"]["size"] = {"kind": "class"}
    (data / "dataset.json").write_text(json.dumps(values))
    found = predicted(model, data, tmp_path / "out")
    assert len(found.made) == 24
    assert any("target size is of kind class in the dataset, expected value" in note for note in found.notes)


def test_findings_are_said_from_the_learned_thresholds(model: TrainedModel, data: Path, tmp_path: Path) -> None:
    never = {"findings": {"striped": 1.0, "bright": 0.0}}
    Calibration(patients=20, sites=["a"], thresholds=never).write(model.folder / "model")
    predicted(load_model(model.folder), data, tmp_path / "out")
    rows = list(csv.DictReader((tmp_path / "out" / "targets.csv").open()))
    assert {row["findings.answer"] for row in rows} == {"bright"}


def test_models_of_the_run_that_differ_are_told_by_target(model: TrainedModel, data: Path, tmp_path: Path) -> None:
    alike, away = (dict(model.weights) for _ in range(2))
    last = [name for name in away if name.endswith("out.bias")]
    assert last, list(away)[-3:]
    away[last[0]] = away[last[0]] + torch.tensor([0.0, 40.0, *[0.0] * (len(away[last[0]]) - 2)])
    folder = model.folder / "model" / "baselines"
    folder.mkdir()
    for name, weights in (("alike", alike), ("away", away)):
        save_file(weights, folder / f"{name}.safetensors")
    predicted(load_model(model.folder), data, tmp_path / "out")
    trust = json.loads((tmp_path / "out" / "cases" / "01" / "case.json").read_text())["trust"]
    assert trust["disagreement_by_class"]["lump"] > 0.2
    assert trust["disagreement_by_class"]["death"] == 0
    assert trust["members"] == ["alike", "away"]


def test_targets_are_scored_with_intervals_and_shown(model: TrainedModel, data: Path, tmp_path: Path) -> None:
    found = evaluate(EvaluationRequest(model, data, split="all"), CPU)
    names = {"lump", "findings", "findings.striped", "findings.bright", "grade", "size", "death"}
    assert set(found.scores.by_class) == names
    assert found.record.scores.by_class.keys() == names
    for name, (low, high) in found.record.scores.intervals.items():
        assert low <= found.scores.by_class[name] <= high
    assert {"size", "death"} <= set(found.record.scores.intervals)
    assert found.record.scores.mean == pytest.approx(np.mean([found.scores.by_class[n] for n in model.task.heads]))  # type: ignore[attr-defined]
    assert "22" not in json.loads(found.record.to_json())["scores"]["by_class"], "no case is named"
    scores = [one.score for one in found.scored_cases]
    assert scores == sorted(scores), "the worst first"  # type: ignore[type-var]
    out = tmp_path / "out"
    out.mkdir()
    page = write_page(found, model, CPU, out, 1).read_text()
    assert "size, Lin&#39;s concordance" in page
    assert "mean absolute error of size (mm)" in page
    rows = list(csv.DictReader(write_cases(found, out).open()))
    assert {row["death"] for row in rows if row["death"].startswith("no event by ")}


def test_a_figure_of_fewer_than_five_patients_stays(model: TrainedModel, data: Path) -> None:
    values = json.loads((data / "dataset.json").read_text())
    for number, entry in enumerate(values["training"]):
        entry["targets"]["findings"] = {"striped": number < 3, "bright": bool(number % 2)}
        if number > 3:
            entry["targets"].pop("size")
    (data / "dataset.json").write_text(json.dumps(values))
    found = evaluate(EvaluationRequest(model, data, split="all"), CPU)
    told = found.record.scores
    assert {"size", "findings.striped"} <= set(found.scores.by_class), "the site sees them"
    for figures in (told.by_class, told.intervals):
        assert not {"size", "findings.striped"} & set(figures)
    assert not any(name.endswith((".size", ".striped")) for name in told.more)


def test_two_models_are_compared_on_the_same_patients(model: TrainedModel, data: Path, tmp_path: Path) -> None:
    other = load_model(make_run(tmp_path / "other", JOB.replace("seed: 3", "seed: 4")))
    found = evaluate(EvaluationRequest(model, data, split="all", against=other, margin=0.2), CPU).comparison
    assert found
    assert found.patients == 24
    assert found.interval
    assert found.interval[0] <= found.difference <= found.interval[1]  # type: ignore[operator]


def test_models_that_ask_otherwise_are_not_compared(model: TrainedModel, data: Path, tmp_path: Path) -> None:
    other = load_model(make_run(tmp_path / "other", JOB.replace("horizon: 24", "horizon: 12")))
    with pytest.raises(SpecError, match="the models answer death otherwise"):
        evaluate(EvaluationRequest(model, data, against=other), CPU)
    heavier = JOB.replace("range: [0, 40]}", "range: [0, 40], weight: 2}").replace("seed: 3", "seed: 4")
    assert evaluate(
        EvaluationRequest(model, data, split="all", against=load_model(make_run(tmp_path / "heavier", heavier))), CPU
    ).comparison


def test_a_dataset_without_the_targets_is_refused(model: TrainedModel, data: Path) -> None:
    values = json.loads((data / "dataset.json").read_text())
    values["training"] = [{**entry, "targets": {}} for entry in values["training"]]
    (data / "dataset.json").write_text(json.dumps(values))
    with pytest.raises(DataError, match="none of its 24 cases has any of the targets lump, findings, grade"):
        evaluate(EvaluationRequest(model, data), CPU)


def test_a_slide_has_its_answers_and_where_they_come_from(tmp_path: Path) -> None:
    pytest.importorskip("openslide")
    targets = "{type: slide_targets, targets: [{name: grade, kind: grade, grades: [low, middle, high]}]}"
    cut = f"{COLOURS}, patch: [64, 64], spacing: [0.001, 0.001]"
    mil = "{network: attention_mil, arguments: {hidden: 8, attention: 4}}"
    model = made_model(tmp_path / "run", targets, mil, cut)
    make_slides(tmp_path / "in", 1, side=512)
    found = made_predictions(model, tmp_path / "in", tmp_path / "out")
    (name,) = found.made
    folder = tmp_path / "out" / "cases" / name
    said = json.loads((folder / f"{name}_targets.json").read_text())["targets"]["grade"]
    assert said["answer"] in ("low", "middle", "high")
    whole = json.loads((folder / f"{name}_slide.geojson").read_text())["features"][0]["properties"]
    assert whole["classification"]["name"] == f"grade: {said['answer']}"
    assert (folder / f"{name}_attention.tif").is_file()
    rows = list(csv.DictReader((folder / f"{name}_tiles.csv").open()))
    assert sum(float(row["attention"]) for row in rows) == pytest.approx(1, abs=1e-3)


WITH_TABLE = JOB.replace(
    "patch: [32, 32]}",
    "patch: [32, 32],\n  covariates: [{name: age, unit: years, range: [0, 120]}, {name: sex, categories: [F, M]}]}",
)


def test_a_table_beside_the_images_is_read_and_changes_the_answers(data: Path, tmp_path: Path) -> None:
    model = load_model(make_run(tmp_path / "tabular", WITH_TABLE))
    table = tmp_path / "table.csv"
    out = tmp_path / "out"

    def answers(rows: str) -> tuple[list[str], dict[str, str], Predictions]:
        table.write_text(f"case,age,sex\n{rows}")
        sources = gather([data / "images"], out, model.job, tmp_path, only=["0[0-3]"])
        sources = with_table(sources, table, TableReading(model.job.data.covariates))
        notes = table_notes(sources, model.job.data.covariates)
        found = predict(model, sources, out, CPU, Options())
        told = {row["case"]: row["death.risk"] for row in csv.DictReader((out / "targets.csv").open())}
        return notes, told, found

    notes, first, _ = answers("00,60,F\n01,60,F\n02,60,F\n")
    assert notes == ["1 of 4 cases state none of age, sex: taken as missing (--table)"]
    _, second, found = answers("00,60,F\n01,10,M\n02,60,F\n")
    assert found.made == ["01"], "the others are as they were"
    assert second["01"] != first["01"]
    assert {case: second[case] for case in ("00", "02", "03")} == {case: first[case] for case in ("00", "02", "03")}
    _, _, found = answers("00,600,F\n01,10,M\n")
    (bad,) = found.set_aside
    assert (bad.name, bad.reason) == (
        "00",
        "column age: found 600, expected 0 to 120 years. Correct the table, or widen the range",
    )


def test_a_model_over_a_table_has_no_bundle_that_answers(tmp_path: Path, model: TrainedModel) -> None:
    tabular = load_model(make_run(tmp_path / "tabular", WITH_TABLE))
    assert "no bundle reads a table" in export(tabular, "bundle", tmp_path / "out").agreement
    inference = (tmp_path / "out" / "bundle" / "configs" / "inference.json").read_text()
    assert "no bundle reads a table" in inference
    with pytest.raises(SpecError, match="reads columns of a table beside the image"):
        export(tabular, "onnx", tmp_path / "out")
    with pytest.raises(SpecError, match="the job reads no columns of a table"):
        with_table(Sources(), tmp_path / "table.csv", TableReading(model.job.data.covariates))
