"""Prediction case by case.

Files written, files rewritten, and the state after a process was killed.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from dicoms import make_series
from oncofed.data.case import Case
from oncofed.data.cases import Cases
from oncofed.errors import DataError, SpecError
from oncofed.job.spec import JobSpec
from oncofed.prediction import results_folder
from oncofed.prediction.case_prediction import CasePrediction
from oncofed.prediction.model import TrainedModel, load_model
from oncofed.prediction.outputs import labels
from oncofed.prediction.outputs import registry as outputs
from oncofed.prediction.outputs.registry import Output, select_outputs
from oncofed.prediction.predictions import Predictions
from oncofed.prediction.run import Options, predict
from oncofed.prediction.sources import gather
from oncofed.tasks.inferred import LabelMap
from oncofed.training import Trainer
from synthetic import make_nuclei, make_site, make_textures
from trained import CLASSIFIER, FLAT, NUCLEI, make_run

CPU = torch.device("cpu")


@pytest.fixture
def model(tmp_path: Path) -> TrainedModel:
    return load_model(make_run(tmp_path / "run"))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return make_site(tmp_path / "site", 3) / "imagesTr"


def go(model: TrainedModel, inputs: Path, out: Path, options: Options | None = None) -> Predictions:
    sources = gather([inputs], out, model.job, out.parent / "datasets", workers=1)
    return predict(model, sources, out, CPU, options)


def contents(out: Path) -> dict[str, str]:
    """SHA-256 of all files that a user sees."""
    files = [path for path in out.rglob("*") if path.is_file() and ".inputs" not in path.parts]
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_each_case_has_a_folder_with_its_labels_and_all_is_in_one_file(
    model: TrainedModel, images: Path, tmp_path: Path
) -> None:
    found = go(model, images, tmp_path / "out")
    assert (found.made, found.kept, found.set_aside) == (["case_0", "case_1", "case_2"], [], [])
    said = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert said["complete"]
    assert said["model"]["digest"] == model.digest
    assert "Research only" in said["research_only"]
    case = said["cases"][1]
    assert (case["name"], case["files"]) == ("case_1", {"labels": ["case_1_seg.nii.gz"]})
    written = nib.load(tmp_path / "out" / case["folder"] / "case_1_seg.nii.gz")
    values = np.asarray(written.dataobj)
    assert {row["name"]: row["voxels"] for row in case["figures"]} == {
        "shell": (values == 1).sum(),
        "core": (values == 2).sum(),
    }
    with (tmp_path / "out" / "measurements.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["case"], row["name"]) for row in rows[:2]] == [("case_0", "shell"), ("case_0", "core")]
    assert float(rows[2]["volume_ml"]) == pytest.approx((values == 1).sum() / 1000)


def test_the_labels_are_those_that_scoring_computes(tmp_path: Path) -> None:
    model = load_model(make_run(tmp_path / "run"))
    site = make_site(tmp_path / "site", 4)
    sources = gather([site], tmp_path / "out", model.job, tmp_path / "datasets")
    predict(model, sources, tmp_path / "out", CPU)
    cases = [source.case for source in sources.cases]
    scored = model.task.evaluate(model.network(CPU), cases, CPU, detailed=True)
    for source, (name, figures) in zip(sources.cases, scored.by_case, strict=True):
        assert source.name == name
        written = np.asarray(nib.load(next((tmp_path / "out/cases" / name).glob("*.nii.gz"))).dataobj)
        own = model.task.score(written, source.case.read_label().values[..., 0])  # type: ignore[attr-defined]
        for label, value in own.items():
            assert value == pytest.approx(figures[f"dice.{label}"], abs=1e-6)


@pytest.mark.parametrize("units", ["mm", "micron"])
def test_labels_lie_on_the_images_own_grid(model: TrainedModel, tmp_path: Path, units: str) -> None:
    affine = np.array([[-0.7, 0.1, 0, 3], [0.1, 0.9, 0.2, -4], [0, -0.2, 1.2, 5], [0, 0, 0, 1]])
    affine[:3] *= 1 if units == "mm" else 1000
    image = nib.Nifti1Image(np.random.default_rng(0).normal(size=(20, 17, 14)).astype(np.float32), affine)
    image.header.set_xyzt_units(units)
    image.header["descrip"] = b"Patient Doe"
    image.set_sform(affine, 1)
    image.set_qform(affine, 0)
    nib.save(image, tmp_path / "a.nii")
    go(model, tmp_path / "a.nii", tmp_path / "out")
    written = nib.load(tmp_path / "out/cases/a/a_seg.nii.gz")
    assert np.array_equal(written.affine, nib.load(tmp_path / "a.nii").affine)
    assert written.shape == image.shape
    assert written.header.get_xyzt_units()[0] == units
    assert written.header["sform_code"] == 1
    assert written.get_data_dtype() == np.uint8
    assert b"Doe" not in written.header.binaryblock
    figures = json.loads((tmp_path / "out/cases/a/case.json").read_text())["figures"]
    volume = abs(np.linalg.det([[-0.7, 0.1, 0], [0.1, 0.9, 0.2], [0, -0.2, 1.2]])) / 1000
    assert figures[0]["volume_ml"] == pytest.approx(figures[0]["voxels"] * volume)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_labels_of_other_formats_lie_on_their_grid_for_another_reader(
    model: TrainedModel, tmp_path: Path, suffix: str
) -> None:
    sitk = pytest.importorskip("SimpleITK")
    values = np.random.default_rng(0).normal(size=(14, 17, 20)).astype(np.float32)
    image = sitk.GetImageFromArray(values)
    image.SetSpacing((0.7, 0.9, 1.3))
    image.SetOrigin((5.0, -6, 7))
    image.SetDirection((0.0, -1, 0, 1, 0, 0, 0, 0, 1))
    sitk.WriteImage(image, tmp_path / f"a{suffix}")
    go(model, tmp_path / f"a{suffix}", tmp_path / "out")
    written = sitk.ReadImage(tmp_path / "out/cases/a/a_seg.nii.gz")
    assert written.GetSize() == image.GetSize()
    for what in ("GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(written, what)() == pytest.approx(getattr(image, what)(), abs=1e-5)


def test_a_sheared_grid_has_no_quaternion(tmp_path: Path) -> None:
    affine = np.array([[1, 0.4, 0, 0], [0, 1, 0.3, 0], [0, 0, 2.0, 0], [0, 0, 0, 1]])
    written = labels.labels_image(np.zeros((3, 4, 5), np.uint8), affine, tmp_path / "a.mha")
    assert np.allclose(written.affine, affine)
    assert (written.header["qform_code"], written.header["sform_code"]) == (0, 1)


def test_a_flat_image_gets_labels_of_its_size(tmp_path: Path) -> None:
    model = load_model(make_run(tmp_path / "run", FLAT))
    pixels = np.random.default_rng(0).integers(0, 255, (21, 35, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a b.png")
    go(model, tmp_path / "a b.png", tmp_path / "out")
    with Image.open(tmp_path / "out/cases/a b/a b_seg.png") as written:
        assert written.size == (35, 21)
        values = np.asarray(written)
    (figures,) = json.loads((tmp_path / "out/cases/a b/case.json").read_text())["figures"]
    assert figures["area_px"] == (values == 1).sum()


def test_a_classification_takes_images_at_once_and_says_probabilities(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(make_run(tmp_path / "run", CLASSIFIER))
    folder = make_textures(tmp_path / "in", ["broad", "narrow"], 3, colours=1)
    batches: list[int] = []
    forward = type(model.task)._scores

    def counted(self: object, network: torch.nn.Module, prepared: list[object], device: torch.device) -> object:
        batches.append(len(prepared))
        return forward(self, network, prepared, device)  # type: ignore[arg-type]

    monkeypatch.setattr(type(model.task), "_scores", counted)
    found = go(model, folder, tmp_path / "out", Options(batch=4))
    assert batches == [4, 2]
    shares = [row["probability"] for row in found.done[0]["figures"]]
    assert sum(shares) == pytest.approx(1)
    alone = go(model, folder, tmp_path / "alone", Options(batch=1))
    for one, other in zip(found.done, alone.done, strict=True):
        assert one["figures"][0]["probability"] == pytest.approx(other["figures"][0]["probability"], abs=1e-5)


def test_objects_are_counted(tmp_path: Path) -> None:
    model = load_model(make_run(tmp_path / "run", NUCLEI))
    found = go(model, make_nuclei(tmp_path / "in", 2) / "images", tmp_path / "out")
    assert [row["name"] for record in found.done for row in record["figures"]] == ["nucleus", "nucleus"]


def test_existing_results_are_not_made_again(model: TrainedModel, images: Path, tmp_path: Path) -> None:
    go(model, images, tmp_path / "out")
    before = contents(tmp_path / "out")
    again = go(model, images, tmp_path / "out")
    assert (again.made, again.kept) == ([], ["case_0", "case_1", "case_2"])
    assert contents(tmp_path / "out") == before


def test_an_image_that_changed_and_a_file_that_was_lost_are_made_again(
    model: TrainedModel, images: Path, tmp_path: Path
) -> None:
    go(model, images, tmp_path / "out")
    before = contents(tmp_path / "out")
    shutil.copy(images / "case_0.nii.gz", images / "case_1.nii.gz")
    (tmp_path / "out/cases/case_2/case_2_seg.nii.gz").unlink()
    again = go(model, images, tmp_path / "out")
    assert (again.made, again.kept) == (["case_1", "case_2"], ["case_0"])
    after = contents(tmp_path / "out")
    assert after["cases/case_2/case_2_seg.nii.gz"] == before["cases/case_2/case_2_seg.nii.gz"]
    assert after["cases/case_1/case_1_seg.nii.gz"] == before["cases/case_0/case_0_seg.nii.gz"]


def test_another_model_is_refused_and_other_options_are_made_again(
    model: TrainedModel, images: Path, tmp_path: Path
) -> None:
    go(model, images, tmp_path / "out")
    with pytest.raises(SpecError, match=r"out: holds predictions of another model \(.*Name another --out"):
        go(replace(model, digest="0" * 64), images, tmp_path / "out")
    bare = go(model, images, tmp_path / "out", Options(outputs=()))
    assert (bare.made, bare.kept) == (["case_0", "case_1", "case_2"], [])
    assert not list((tmp_path / "out").rglob("*.nii.gz"))
    with pytest.raises(SpecError, match="no such output"):
        select_outputs(["holograms"])


class Killed(BaseException):
    """As a process ends that is killed: nothing catches it."""


@pytest.mark.parametrize("when", ["inferring", "writing", "renaming"])
def test_a_killed_prediction_resumes_to_the_same_bytes(
    model: TrainedModel, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    go(model, images, tmp_path / "whole")
    stops: dict[str, tuple[object, str]] = {
        "inferring": (type(model.task), "infer_with_entropy"),
        "writing": (nib, "save"),
        "renaming": (results_folder, "_flush"),
    }
    place, name = stops[when]
    usual: Callable[..., object] = getattr(place, name)
    calls: list[int] = []

    def killed(*arguments: object, **named: object) -> object:
        calls.append(1)
        if len(calls) == 2:
            if when == "writing":
                Path(arguments[1]).write_bytes(b"\x1f\x8b half")  # type: ignore[arg-type]
            raise Killed
        return usual(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(place, name, killed)
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)  # nor does it tidy up
        with pytest.raises(Killed):
            go(model, images, tmp_path / "out")
    assert not json.loads((tmp_path / "out/predictions.json").read_text())["complete"]
    whole = [path.name for path in (tmp_path / "out/cases").iterdir() if not path.name.startswith(".")]
    assert whole == ["case_0"]
    again = go(model, images, tmp_path / "out")
    assert (again.made, again.kept) == (["case_1", "case_2"], ["case_0"])
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_full_disk_leaves_whole_cases_alone(
    model: TrainedModel, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual, calls = nib.save, []

    def full(image: object, path: Path) -> None:
        calls.append(path)
        if len(calls) == 3:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        usual(image, path)

    monkeypatch.setattr(nib, "save", full)
    with pytest.raises(OSError, match="No space left"):
        go(model, images, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out/cases").iterdir()) == ["case_0", "case_1"]
    assert not json.loads((tmp_path / "out/predictions.json").read_text())["complete"]


def test_a_case_that_cannot_be_read_any_more_is_set_aside(model: TrainedModel, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    sources = gather([images], out, model.job, tmp_path / "datasets", workers=1)
    (images / "case_1.nii.gz").write_bytes(b"")
    found = predict(model, sources, out, CPU)
    assert found.made == ["case_0", "case_2"]
    assert [bad.name for bad in found.set_aside] == ["case_1"]
    assert "is empty (0 bytes)" in found.set_aside[0].reason
    with (out / "set_aside.csv").open() as file:
        assert [row["name"] for row in csv.DictReader(file)] == ["case_1"]


def test_an_unreadable_batch_is_skipped(tmp_path: Path) -> None:
    model = load_model(make_run(tmp_path / "run", CLASSIFIER))
    folder = make_textures(tmp_path / "in", ["broad"], 3, colours=1)
    sources = gather([folder], tmp_path / "out", model.job, tmp_path / "datasets", workers=1)
    for path in sorted(folder.rglob("*.png"))[:2]:
        path.write_bytes(b"")
    found = predict(model, sources, tmp_path / "out", CPU, Options(batch=2))
    assert (len(found.made), len(found.set_aside)) == (1, 2)


def test_an_impossible_output_is_reported_and_the_others_are_written(
    model: TrainedModel, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(predicted: CasePrediction, model: TrainedModel, folder: Path) -> list[Path]:
        raise DataError("its series has no positions")

    table = {**outputs.OUTPUTS, LabelMap: (*outputs.OUTPUTS[LabelMap], Output("odd", refuse))}
    monkeypatch.setattr(outputs, "OUTPUTS", table)
    found = go(model, images, tmp_path / "out", Options(outputs=("labels", "odd")))
    assert found.done[0]["missing"] == {"odd": "its series has no positions"}
    assert found.done[0]["files"] == {"labels": ["case_0_seg.nii.gz"]}


def test_dicom_objects_are_written_for_dicom_images_only(
    model: TrainedModel, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, int]] = []

    def note(predicted: CasePrediction, model: TrainedModel, folder: Path) -> list[Path]:
        seen.append((predicted.source.name, len(predicted.source.series)))
        return []

    table = {**outputs.OUTPUTS, LabelMap: (Output("on-series", note, of_dicom=True),)}
    monkeypatch.setattr(outputs, "OUTPUTS", table)
    make_series(tmp_path / "pacs")
    sources = gather([images, tmp_path / "pacs"], tmp_path / "out", model.job, tmp_path / "datasets", workers=1)
    predict(model, sources, tmp_path / "out", CPU, Options(outputs=("on-series",)))
    ((name, files),) = seen
    assert files == 8
    assert name not in {"case_0", "case_1", "case_2"}


def test_two_processes_do_not_write_into_one_folder(model: TrainedModel, images: Path, tmp_path: Path) -> None:
    with (
        results_folder.ResultsFolder(tmp_path / "out").locked(),
        pytest.raises(SpecError, match="another oncofed predict works in it"),
    ):
        go(model, images, tmp_path / "out")


def test_predictions_have_the_scores_of_the_trainers_evaluation(tmp_path: Path, spec: JobSpec) -> None:
    """The cases have other voxel sizes than the job's."""
    job = spec.changed({"data": {"spacing": [1.3, 1.1, 0.9]}, "training": {"steps_per_round": 3}})
    site = make_site(tmp_path / "site", 6)
    sources = gather([site], tmp_path / "out", job, tmp_path / "datasets")
    cases: list[Case] = [source.case for source in sources.cases]
    trainer = Trainer(job.plan(), Cases(tuple(cases[:4]), (cases[4],), (cases[5],)), "east", CPU)
    trainer.prepare()
    trainer.train(3)
    weights = trainer.weights()
    model = TrainedModel(tmp_path, job, weights, "0" * 64)
    reported = trainer.evaluate(trainer.cases.test, None, True)
    predict(model, replace(sources, cases=sources.cases[5:]), tmp_path / "out", CPU)
    written = np.asarray(nib.load(next((tmp_path / "out/cases").rglob("*.nii.gz"))).dataobj)
    own = model.task.score(written, cases[5].read_label().values[..., 0])  # type: ignore[attr-defined]
    assert own == pytest.approx(reported.by_class, abs=1e-6)
