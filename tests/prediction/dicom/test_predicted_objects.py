"""``predict`` writes DICOM objects of DICOM images, which lie where its NIfTI lies."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from PIL import Image

from dicoms import OBLIQUE, make_series, make_xray, volume
from oncofed.data.manifest import read_manifest
from oncofed.data.register import Request, register
from oncofed.prediction import figures
from oncofed.prediction.dicom.writers import notes_of
from oncofed.prediction.model import load_model
from oncofed.prediction.outputs.choice import chosen_outputs
from oncofed.prediction.outputs.volumes import measure
from oncofed.prediction.run import Options, Predictions, predict
from oncofed.prediction.sources import gather
from trained import FLAT, make_run

SHAPE = (24, 20, 16)


def _predict(run: Path, source: Path, out: Path, structures: bool = False) -> tuple[Predictions, list[str]]:
    model = load_model(run)
    sources = gather([source], out, model.job, out.parent / "datasets", workers=1)
    options = Options(chosen_outputs(["structures"] if structures else ()))
    return predict(model, sources, out, torch.device("cpu"), options), notes_of(model, sources.cases)


def test_the_objects_of_a_volume_hold_what_its_nifti_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []
    monkeypatch.setattr(figures, "measure", lambda *given: measured.append(given) or measure(*given))
    make_series(tmp_path / "in", volume(SHAPE), orientation=OBLIQUE, names=lambda number: f"{number * 5 % 16}.dcm")
    found, notes = _predict(make_run(tmp_path / "run"), tmp_path / "in", tmp_path / "out", structures=True)
    (record,) = found.done
    assert record["missing"] == {}
    assert len(measured) == 1, "a case is measured once for all that is written of it"
    (note,) = notes
    assert note.startswith("no SNOMED CT code is known for shell, core: coded by name in 99ONCOFED")
    folder = tmp_path / "out" / "cases" / record["name"]
    labels = np.asarray(nib.load(folder / record["files"]["labels"][0]).dataobj)
    assert labels.any()
    seg, report = (folder / name for name in record["files"]["dicom"])
    (structures,) = (folder / name for name in record["files"]["structures"])
    for file in (seg, structures):
        read = tmp_path / file.stem
        make = tmp_path / f"in-{file.stem}"
        make.mkdir()
        for path in (*(tmp_path / "in").iterdir(), file):
            (make / path.name).symlink_to(path)
        (entry,) = register(Request(make, "demo", read)).entries
        names = {int(value): name for value, name in read_manifest(read).labels.items()}
        again = np.asarray(nib.load(read / str(entry.label)).dataobj)
        for value, name in ((1, "shell"), (2, "core")):
            own = [number for number, known in names.items() if known == name]
            np.testing.assert_array_equal(np.isin(again, own), labels == value)
    said = pydicom.dcmread(report)
    assert said.SeriesDescription.startswith("RESEARCH")
    volumes = [
        float(item.MeasuredValueSequence[0].NumericValue)
        for container in said.ContentSequence
        if container.ValueType == "CONTAINER"
        for group in container.ContentSequence
        for item in group.ContentSequence
        if item.ValueType == "NUM" and item.ConceptNameCodeSequence[0].CodeMeaning == "Volume"
    ]
    assert volumes == pytest.approx([row["volume_ml"] for row in record["figures"]], rel=1e-5)


def test_of_an_x_ray_a_seg_is_written_and_no_contours(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 4000, (33, 21)).astype(np.uint16)
    make_xray(tmp_path / "in", pixels, PatientOrientation=["R", "H"], FrameOfReferenceUID="1.2.3")
    run = make_run(tmp_path / "run", FLAT.replace("modality: microscopy", "modality: xray"))
    found, _ = _predict(run, tmp_path / "in", tmp_path / "out", structures=True)
    (record,) = found.done
    assert list(record["missing"]) == ["structures"]
    assert "flat image has no place in space" in record["missing"]["structures"]
    folder = tmp_path / "out" / "cases" / record["name"]
    labels = np.asarray(Image.open(folder / record["files"]["labels"][0]))
    seg = pydicom.dcmread(folder / record["files"]["dicom"][0])
    # The image is shown turned by half a turn; the object lies on the pixels as they are stored.
    np.testing.assert_array_equal(seg.pixel_array > 0, labels[::-1, ::-1] > 0)


def test_of_other_images_nothing_of_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    nib.save(nib.Nifti1Image(volume(SHAPE), np.eye(4)), tmp_path / "in" / "a.nii")
    found, notes = _predict(make_run(tmp_path / "run"), tmp_path / "in", tmp_path / "out", structures=True)
    assert list(found.done[0]["files"]) == ["labels"]
    assert notes == []
    assert "dicom" not in json.loads((tmp_path / "out" / "predictions.json").read_text())["cases"][0]["files"]
