"""Predictions and scores of patients with several slides, from registered features."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from made import COLOURS, made_model
from oncofed.data.features import write_features
from oncofed.data.features.survey import FeatureOptions
from oncofed.data.register import RegisterOptions, register
from oncofed.errors import SpecError
from oncofed.prediction.evaluation.evaluate import EvaluationRequest, evaluate
from oncofed.prediction.model import TrainedModel
from oncofed.prediction.outputs.registry import select_outputs
from oncofed.prediction.run import Options, predict
from oncofed.prediction.sources import gather
from slide_features import TILE, made_bag

pytest.importorskip("h5py")

CPU = torch.device("cpu")
TASK = """{type: slide_classification, classes: {0: normal, 1: tumour}, bag: BAG,
  encoder: {network: lab-encoder, features: 8}}"""
MIL = "{network: attention_mil, arguments: {hidden: 8, attention: 4}}"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four patients with two slides each; those of the first contradict each other."""
    folder = tmp_path_factory.mktemp("features")
    (folder / "in").mkdir()
    rows = ["image,label,patient"]
    for number in range(8):
        write_features(folder / "in" / f"s{number:02}.h5", made_bag(seed=number))
        label = "tumour" if number // 2 % 2 or number == 1 else "normal"
        rows.append(f"s{number:02}.h5,{label},P{number // 2}")
    table = folder / "in" / "labels.csv"
    table.write_text("\n".join(rows))
    stating = FeatureOptions()
    register(
        RegisterOptions(folder / "in", "slides", folder / "set", "slides", table=table, workers=1, features=stating)
    )
    return folder / "set"


def model_of(folder: Path, bag: str) -> TrainedModel:
    return made_model(folder / bag, TASK.replace("BAG", bag), MIL, f"{COLOURS}, patch: [{TILE}, {TILE}]")


def test_each_patient_has_one_answer_and_a_map_of_each_slide(dataset: Path, tmp_path: Path) -> None:
    model, out = model_of(tmp_path, "patient"), tmp_path / "out"
    sources = gather([dataset], out, model.job, tmp_path)
    names = {source.case.parts[0].name: source.name for source in sources.cases}
    assert names == {f"s{2 * n:02}": f"patient_{sources.cases[n].case.patient[:12]}" for n in range(4)}
    assert [source.labelled for source in sources.cases] == [False, *[True] * 3], "the first contradicts itself"
    found = predict(
        model, gather([dataset], out, model.job, tmp_path, only=["s03"]), out, CPU, Options(select_outputs())
    )
    one = names["s02"]
    assert found.made == [one]
    files = {path.name for path in (out / "cases" / one).iterdir()}
    assert files >= {f"{one}_s0{n}_{end}" for n in (2, 3) for end in ("attention.tif", "slide.geojson")}
    said = json.loads((out / "cases" / one / f"{one}_classes.json").read_text())
    assert said["probability.normal"] + said["probability.tumour"] == pytest.approx(1)


def test_patients_are_scored_once_and_contradictions_are_named(dataset: Path, tmp_path: Path) -> None:
    model = model_of(tmp_path, "patient")
    result = evaluate(EvaluationRequest(model, dataset, "all"), CPU)
    assert len(result.scored_cases) == result.patients == 3
    assert [problem.case for problem in result.set_aside] == ["s00", "s01"]
    assert "2 slides of its patient state different classes (normal, tumour)" in result.set_aside[0].what
    with pytest.raises(SpecError, match="one of the models answers for slides, the other for patients"):
        evaluate(EvaluationRequest(model, dataset, "all", against=model_of(tmp_path, "slide")), CPU)
