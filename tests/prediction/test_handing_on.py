"""A model's calibration, profile, provenance and card are exported.

They are in its bundle, and used.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

from bundle_runs import Run, run_all
from made import made_predictions
from oncofed.artifacts.kept_bundle import complete_bundle
from oncofed.artifacts.training_profile import TrainingProfile, write_training_profile
from oncofed.data.register import RegisterOptions, register
from oncofed.errors import SpecError
from oncofed.prediction.evaluation.evaluate import EvaluationRequest, EvaluationResult, evaluate, write_cases
from oncofed.prediction.export import to_onnx
from oncofed.prediction.export.export import export
from oncofed.prediction.model import load_model
from oncofed.prediction.trust.checks import TrustChecks
from oncofed.tasks.calibration import Calibration
from synthetic import make_textures
from trained import CLASSIFIER, make_run

CPU = torch.device("cpu")
TEMPERATURE = 5.0


def _calibrated(folder: Path, temperature: float | None = TEMPERATURE) -> Path:
    """Return a run's folder with all records of a model."""
    make_run(folder, CLASSIFIER)
    model = folder / "model"
    if temperature:
        said = {"temperature": temperature, "patients": 20, "sites": ["a"], "log_loss": (1.0, 0.5)}
        Calibration.model_validate({"schema": 1, **said}).write(model)
    write_training_profile(model, TrainingProfile(sites=1, patients=9, traits={}))
    (model / "card.md").write_text("# A card\n")
    (model / "card.json").write_text("{}\n")
    return folder


def _dataset(folder: Path) -> tuple[Path, Path]:
    """Return images, and the same as a registered dataset."""
    images = make_textures(folder / "images", ["broad", "narrow"], each=6, colours=1)
    register(RegisterOptions(images, "stripes", folder / "dataset", "classification"))
    return images, folder / "dataset"


def _evaluated(model: Path, dataset: Path, out: Path) -> tuple[EvaluationResult, dict[str, float]]:
    """Return the evaluation, and the second class's probability by case."""
    found = evaluate(EvaluationRequest(load_model(model), dataset, "all"), CPU)
    out.mkdir()
    return found, _of_second_class(write_cases(found, out))


def _of_second_class(table: Path) -> dict[str, float]:
    """Return the second class's probability by image name.

    With or without its folder's.
    """
    rows = csv.DictReader(table.open())
    return {Path(row["case"]).stem: float(row["probability.narrow"]) for row in rows}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a run's folder and its model's bundle, which took a process of MONAI's to write."""
    folder = tmp_path_factory.mktemp("exported")
    run = _calibrated(folder / "run")
    return run, export(load_model(run), "bundle", folder / "out").folder


def test_bundle_prediction_and_evaluation_agree_on_a_calibrated_model(
    exported: tuple[Path, Path], tmp_path: Path
) -> None:
    run, bundle = exported
    images, dataset = _dataset(tmp_path)
    found, scored = _evaluated(run, dataset, tmp_path / "scored")
    model = load_model(run)
    made_predictions(model, images, tmp_path / "predicted", less=("evidence",))
    predicted = _of_second_class(tmp_path / "predicted" / "classes.csv")
    assert scored == pytest.approx(predicted, abs=1e-5)

    flat = tmp_path / "flat"
    flat.mkdir()
    for path in images.rglob("*.png"):
        (flat / path.name).write_bytes(path.read_bytes())
    alone = Run(str(bundle), str(flat), str(tmp_path / "answers"))
    run_all(tmp_path, [alone])
    answered = {Path(name).stem: shares[1] for name, shares in alone.probabilities.items()}
    assert answered == pytest.approx(predicted, abs=1e-5)
    assert json.loads((tmp_path / "answers" / "predictions.json").read_text())["temperature"] == TEMPERATURE

    again, by_bundle = _evaluated(bundle, dataset, tmp_path / "by-bundle")
    assert by_bundle == pytest.approx(scored, abs=1e-5)
    assert again.scores.extra_metrics["calibration_error"] == pytest.approx(
        found.scores.extra_metrics["calibration_error"], abs=1e-5
    )
    _, plain = _evaluated(_calibrated(tmp_path / "plain", None), dataset, tmp_path / "plainly")
    assert max(abs(plain[case] - scored[case]) for case in scored) > 0.01


def test_an_evaluation_says_which_probabilities_it_scored(tmp_path: Path) -> None:
    _, dataset = _dataset(tmp_path)
    for name, temperature, words in (("run", 5.0, "temperature, 5"), ("plain", None, "not calibrated")):
        found, _ = _evaluated(_calibrated(tmp_path / name, temperature), dataset, tmp_path / f"{name}-out")
        assert json.loads(found.record.to_json())["temperature"] == temperature
        assert any(words in remark for remark in found.record.remarks)


def test_a_bundle_has_the_runs_records_of_its_model(exported: tuple[Path, Path], tmp_path: Path) -> None:
    run, bundle = exported
    model = load_model(bundle)
    assert model.temperature == TEMPERATURE
    assert model.provenance == load_model(run).provenance != {}
    assert TrustChecks(model, CPU).profile is not None
    assert (bundle / "docs" / "card.md").read_text() == "# A card\n"
    once_more = export(model, "bundle", tmp_path / "again").folder
    for name in ("calibration.json", "training_profile.json", "provenance.json", "docs/card.json"):
        assert (once_more / name).read_bytes() == (bundle / name).read_bytes()
    assert json.loads((once_more / "configs" / "inference.json").read_text())["temperature"] == TEMPERATURE


def test_provenance_of_other_weights_is_neither_copied_nor_trusted(tmp_path: Path) -> None:
    run, other = _calibrated(tmp_path / "run"), tmp_path / "other"
    model = load_model(run)
    other.mkdir()
    said = json.loads((run / "provenance.json").read_text())
    said["provenance"]["model"] = "0" * 64
    (other / "provenance.json").write_text(json.dumps(said))
    bundle = model.job.plan().write_bundle(other, "A", model.weights)
    assert bundle
    complete_bundle(bundle, [other])
    assert not (bundle / "provenance.json").exists()
    (bundle / "provenance.json").write_text(json.dumps(said))
    with pytest.raises(SpecError, match="not those that"):
        load_model(bundle)


def test_onnx_says_that_its_temperature_is_not_applied(tmp_path: Path) -> None:
    model = load_model(_calibrated(tmp_path / "run"))
    to_onnx._describe(model, tmp_path, (2, 1, 32, 32))
    said = json.loads((tmp_path / to_onnx.DESCRIPTION_FILE).read_text())
    assert said["temperature"] == TEMPERATURE
    assert "neither temperature" in said["output"]
