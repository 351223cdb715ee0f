from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import pickle
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import save_file
from typer.testing import CliRunner

from oncofed.cli.main import app
from oncofed.errors import SpecError, TrainingError
from oncofed.job.spec import JobSpec, parse_job
from oncofed.models.weights import digest_of
from oncofed.prediction.bundles import is_bundle, read_own_bundle
from oncofed.prediction.export import export as exporting
from oncofed.prediction.export.export import export
from oncofed.prediction.model import TrainedModel, load_model
from synthetic import write_job

CPU = torch.device("cpu")
needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="needs pip install 'oncofed[onnx]'",
)
JOBS: dict[str, dict[str, Any]] = {
    "volumes": {
        "task": {"type": "segmentation", "classes": {1: "a", 2: "b"}},
        "data": {"spacing": [2, 2, 2], "patch": [16, 16, 16], "spacing_range": [1, 3]},
        "model": {"network": "unet", "channels": [4, 8]},
    },
    "objects": {
        "task": {"type": "objects"},
        "data": {"patch": [32, 32], "channels": ["red", "green", "blue"], "modality": "microscopy"},
        "model": {"network": "unet", "channels": [4, 8]},
    },
    "classes": {
        "task": {"type": "classification", "classes": {0: "a", 1: "b"}},
        "data": {"patch": [32, 32], "spacing": [0.2, 0.2], "modality": "xray"},
        "model": {"network": "vit", "arguments": {"hidden_size": 24, "mlp_dim": 48, "num_layers": 1, "num_heads": 2}},
    },
    "slides": {
        "task": {"type": "slide_classification", "classes": {0: "a", 1: "b"}},
        "data": {"patch": [64, 64], "channels": ["red", "green", "blue"], "modality": "microscopy"},
        "model": {"network": "attention_mil"},
    },
    "targets": {
        "targets": [
            {"name": "lump", "kind": "class", "classes": ["absent", "present"]},
            {"name": "findings", "kind": "labels", "findings": ["mass", "$effusion"], "weight": 0.5},
            {"name": "grade", "kind": "grade", "grades": ["low", "middle", "high"]},
            {"name": "age", "kind": "value", "unit": "years", "range": [0, 120], "loss": "gaussian"},
            {"name": "death", "kind": "survival", "unit": "months", "horizon": 24},
        ],
        "data": {"patch": [32, 32], "modality": "xray"},
        "model": {"network": "resnet18"},
    },
    "slides_with_targets": {
        "targets": [{"name": "lump", "kind": "class", "classes": ["absent", "present"]}],
        "data": {"patch": [64, 64], "channels": ["red", "green", "blue"], "modality": "microscopy"},
        "model": {"network": "attention_mil"},
    },
}

JOBS["stained"] = {
    "task": {"type": "classification", "classes": {0: "a", 1: "b"}},
    "data": {**JOBS["slides"]["data"], "patch": [32, 32], "stain": {"augment": "randstainna"}},
    "model": {"network": "resnet18"},
}
JOBS["attending"] = {**JOBS["slides_with_targets"], "model": {"network": "transmil", "arguments": {"hidden": 16}}}
JOBS["regions"] = {
    "task": {"type": "slide_segmentation", "classes": {1: "tumour"}, "undrawn": "background"},
    "data": {**JOBS["slides"]["data"], "spacing": [0.0005, 0.0005], "patch": [32, 32]},
    "model": {"network": "unet", "channels": [4, 8], "residual_units": 0},
}


def _model(name: str, folder: Path) -> TrainedModel:
    job = JobSpec.model_validate(
        {"schema": 1, "name": name, "title": name, **JOBS[name], "data": {"dataset": "demo", **JOBS[name]["data"]}}
    )
    weights = job.plan().initial_weights()
    return TrainedModel(folder, job, weights, digest_of(weights, hashlib.sha256).hexdigest())


@pytest.mark.parametrize("name", ["classes", "slides", "targets", "slides_with_targets", "attending", "stained"])
def test_a_bundle_is_tried_with_monai_alone_and_read_back(tmp_path: Path, name: str) -> None:
    model = _model(name, tmp_path)
    done = export(model, "bundle", tmp_path / "out")
    assert done.folder == tmp_path / "out" / "bundle"
    assert "example" in done.agreement
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["bundle"]
    assert len(list((done.folder / "example" / "answers").iterdir())) == 1
    assert is_bundle(done.folder)
    job, weights, digest = read_own_bundle(done.folder)
    assert job.model_dump() == model.job.model_dump()
    assert digest == model.digest == done.digest
    assert all(torch.equal(value, weights[key]) for key, value in model.weights.items())


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    model = _model("volumes", tmp_path)
    written = model.job.plan().write_bundle(tmp_path, "A", model.weights)
    assert written is not None
    return written


def test_a_bundle_that_a_site_kept_is_a_job_of_the_same_plan(bundle: Path, tmp_path: Path) -> None:
    assert read_own_bundle(bundle)[0].plan() == _model("volumes", tmp_path).job.plan()


def test_other_weights_than_the_bundle_was_written_with_are_refused(bundle: Path) -> None:
    file = bundle / "models" / "model.pt"
    stored = torch.load(file, weights_only=True)
    first = next(iter(stored))
    torch.save({**stored, first: stored[first] + 1}, file)
    with pytest.raises(SpecError, match="not those that the bundle was written with"):
        read_own_bundle(bundle)
    del stored[first]
    torch.save(stored, file)
    with pytest.raises(SpecError, match="is missing"):
        read_own_bundle(bundle)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(SpecError, match="cut off"):
        read_own_bundle(bundle)


@pytest.mark.attack(
    "a bundle whose weights are a pickle that runs a command, or whose job names another's class",
    by="the reader of bundles",
    logged="the error of the command",
)
def test_nothing_of_a_bundle_runs(bundle: Path, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "evil",))

    (bundle / "models" / "model.pt").write_bytes(pickle.dumps({"a": Evil()}, protocol=2))
    (bundle / "configs" / "inference.json").write_text(json.dumps({"imports": ["$import this"], "run": "$1/0"}))
    with pytest.raises(SpecError, match="as tensors alone"):
        read_own_bundle(bundle)
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "another's can be trained on"),
        ("{", "cut off"),
        ("[]", "cut off"),
        ('{"weights": "0", "job": {}}', "Field required"),
    ],
)
def test_the_bundle_of_others_or_a_damaged_one_is_refused(bundle: Path, content: str | None, why: str) -> None:
    (bundle / "oncofed.json").unlink()
    if content is not None:
        (bundle / "oncofed.json").write_text(content)
    with pytest.raises(SpecError, match=why):
        read_own_bundle(bundle)


def test_an_export_with_other_answers_is_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(bundle: Path, images: Path, answers: Path, more: dict[str, Any]) -> None:
        image = nib.load(images / "example.nii.gz")
        answers.mkdir()
        nib.save(nib.Nifti1Image(np.full(image.shape, 3, np.uint8), image.affine), answers / "example_seg.nii.gz")

    monkeypatch.setattr(exporting, "_run_alone", wrong)
    with pytest.raises(TrainingError, match="otherwise for 12167 of the example's 12167 voxels"):
        export(_model("volumes", tmp_path), "bundle", tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_an_export_that_does_not_run_is_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "_ALONE", "raise RuntimeError('a package is missing')")
    with pytest.raises(TrainingError, match="does not run with MONAI alone: a package is missing"):
        export(_model("volumes", tmp_path), "bundle", tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_models_that_cannot_be_exported_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model("volumes", tmp_path)
    (tmp_path / "out" / "bundle").mkdir(parents=True)
    with pytest.raises(SpecError, match="is there already"):
        export(model, "bundle", tmp_path / "out")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find(name))
    with pytest.raises(SpecError, match=r"oncofed\[onnx\]"):
        export(model, "onnx", tmp_path / "out")


def test_a_bundle_of_regions_on_slides_says_what_monai_lacks(tmp_path: Path) -> None:
    done = export(_model("regions", tmp_path), "bundle", tmp_path / "out")
    assert "answers nothing: MONAI's readers give no slide's pixels" in done.agreement
    assert "refuse" in (done.folder / "configs" / "train.json").read_text()


@needs_onnx
@pytest.mark.parametrize("name", ["volumes", "slides", "targets", "stained"])
def test_onnx_runtime_answers_as_pytorch_for_any_batch(tmp_path: Path, name: str) -> None:
    onnxruntime = importlib.import_module("onnxruntime")
    model = _model(name, tmp_path)
    done = export(model, "onnx", tmp_path / "out")
    example = load_file(done.folder / "example.safetensors")
    session = onnxruntime.InferenceSession(str(done.folder / "model.onnx"), providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    found = session.run(None, {key: example[key] for key in names})[0]
    np.testing.assert_allclose(found, example["pred"], atol=1e-4)
    three = {key: np.concatenate([example[key], example[key][:1]]) for key in names}
    found = session.run(None, three)[0]
    with torch.no_grad():
        expected = model.network(CPU)(*(torch.from_numpy(three[key]) for key in names)).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4)
    said = json.loads((done.folder / "model.json").read_text())
    assert said["weights"] == model.digest
    assert "Research only" in said["intended_use"]
    if name == "targets":
        assert said["targets"]["age"]["numbers"]["value_years"]["unit"] == "years"
        assert [step["operation"] for step in said["targets"]["death"]["steps"]][-1] == "cumulative_product"
        assert said["output"].startswith("the outputs of all targets side by side")


def test_the_command_says_what_it_wrote(tmp_path: Path) -> None:
    job = write_job(tmp_path / "run")
    (tmp_path / "run" / "model").mkdir()
    weights = parse_job(job).plan().initial_weights()
    save_file(weights, tmp_path / "run" / "model" / "model.safetensors")
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["export", str(tmp_path / "run"), "--to", "bundle", "--out", str(out), "--json"])
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert said["folder"] == str(out / "bundle")
    assert said["weights"] == load_model(tmp_path / "run").digest
