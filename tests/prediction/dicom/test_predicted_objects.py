"""DICOM objects of ``predict`` match its NIfTI files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from PIL import Image

from dicoms import OBLIQUE, make_series, make_xray, volume
from oncofed.data.inputs import Prepared
from oncofed.data.manifest import read_manifest
from oncofed.data.register import RegisterOptions, register
from oncofed.prediction.dicom.writers import coding_notes
from oncofed.prediction.model import load_model
from oncofed.prediction.outputs import case_rows as case_rows_module
from oncofed.prediction.outputs.measurements import measure
from oncofed.prediction.outputs.registry import select_outputs
from oncofed.prediction.predictions import Predictions
from oncofed.prediction.run import Options, predict
from oncofed.prediction.sources import gather
from oncofed.tasks.inferred import LabelMap, target_grid
from synthetic import JOB
from trained import FLAT, make_run

SHAPE = (24, 20, 16)
XRAY = FLAT.replace("modality: microscopy", "modality: xray")


def _predict(run: Path, source: Path, out: Path, structures: bool = False) -> tuple[Predictions, list[str]]:
    model = load_model(run)
    sources = gather([source], out, model.job, out.parent / "datasets", workers=1)
    options = Options(select_outputs(["structures"] if structures else ()))
    return predict(model, sources, out, torch.device("cpu"), options), coding_notes(model, sources.cases)


def _items(dataset: pydicom.Dataset) -> Iterator[pydicom.Dataset]:
    """All items of a report's content."""
    for item in dataset.get("ContentSequence", ()):
        yield item
        yield from _items(item)


def _volumes(report: pydicom.Dataset) -> list[float]:
    """Volumes in a report, in its order."""
    return [
        float(item.MeasuredValueSequence[0].NumericValue)
        for item in _items(report)
        if item.ValueType == "NUM" and item.ConceptNameCodeSequence[0].CodeMeaning == "Volume"
    ]


def test_the_objects_of_a_volume_hold_what_its_nifti_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []
    monkeypatch.setattr(case_rows_module, "measure", lambda *given: measured.append(given) or measure(*given))
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
        (entry,) = register(RegisterOptions(make, "demo", read)).entries
        names = {int(value): name for value, name in read_manifest(read).labels.items()}
        again = np.asarray(nib.load(read / str(entry.label)).dataobj)
        for value, name in ((1, "shell"), (2, "core")):
            own = [number for number, known in names.items() if known == name]
            np.testing.assert_array_equal(np.isin(again, own), labels == value)
    said = pydicom.dcmread(report)
    assert said.SeriesDescription.startswith("RESEARCH")
    assert _volumes(said) == pytest.approx([row["volume_ml"] for row in record["figures"]], rel=1e-5)


@pytest.mark.parametrize("tilt", [0.6, -1.7, 4.0])
def test_outputs_of_a_tilted_gantry_cover_acquired_pixels_only(
    tilt: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    everywhere = LabelMap(torch.full((1, 1, 1), 1, dtype=torch.uint8), np.eye(4))

    def infer_all(network: object, prepared: list[Prepared], *_: object, **__: object) -> list[LabelMap]:
        grids = [target_grid(one) for one in prepared]
        return [LabelMap(everywhere.values.expand(grid.shape).clone(), grid.affine) for grid in grids]

    make_series(tmp_path / "in", volume(SHAPE), modality="CT", tilt=tilt)
    model = load_model(make_run(tmp_path / "run", JOB.replace("modality: mri", "modality: ct")))
    monkeypatch.setattr(model.task, "infer_all", infer_all)
    sources = gather([tmp_path / "in"], tmp_path / "out", model.job, tmp_path / "sets", workers=1)
    options = Options(select_outputs(["structures"]), ensemble=False)
    (record,) = predict(model, sources, tmp_path / "out", torch.device("cpu"), options).done
    assert (record["missing"], len(record["notes"])) == ({}, 1)
    folder = tmp_path / "out" / "cases" / record["name"]
    labels = np.asarray(nib.load(folder / record["files"]["labels"][0]).dataobj)
    seg = pydicom.dcmread(folder / record["files"]["dicom"][0])
    every = int(np.prod(SHAPE))
    assert labels.size > every, "the straightened volume is larger"
    assert ((labels > 0).sum(), seg.pixel_array.sum(), record["figures"][0]["voxels"]) == (every, every, every)
    report = pydicom.dcmread(folder / record["files"]["dicom"][1])
    assert _volumes(report)[0] == pytest.approx(every * 0.8 * 0.7 * 2.5 / 1000, rel=1e-5)


def test_an_x_ray_gets_a_seg_and_no_contours(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 4000, (33, 21)).astype(np.uint16)
    make_xray(tmp_path / "in", pixels, PatientOrientation=["R", "H"], FrameOfReferenceUID="1.2.3")
    run = make_run(tmp_path / "run", XRAY)
    found, _ = _predict(run, tmp_path / "in", tmp_path / "out", structures=True)
    (record,) = found.done
    assert list(record["missing"]) == ["structures"]
    assert "flat image has no place in space" in record["missing"]["structures"]
    folder = tmp_path / "out" / "cases" / record["name"]
    labels = np.asarray(Image.open(folder / record["files"]["labels"][0]))
    seg = pydicom.dcmread(folder / record["files"]["dicom"][0])
    # The image is shown turned by half a turn; the object lies on the pixels as they are stored.
    np.testing.assert_array_equal(seg.pixel_array > 0, labels[::-1, ::-1] > 0)


@pytest.mark.parametrize(("factor", "expected"), [(None, 0), (1.5, 3)])
def test_lengths_on_the_detector_are_not_reported_as_the_patients(
    factor: float | None, expected: int, tmp_path: Path
) -> None:
    pixels = np.random.default_rng(0).integers(0, 4000, (33, 21)).astype(np.uint16)
    more = {} if factor is None else {"EstimatedRadiographicMagnificationFactor": factor}
    make_xray(tmp_path / "in", pixels, **more)
    found, _ = _predict(make_run(tmp_path / "run", XRAY), tmp_path / "in", tmp_path / "out")
    (record,) = found.done
    (row,) = record["figures"]
    assert row["area_mm2"] == pytest.approx(row["voxels"] * 0.2 * 0.1 / (factor or 1) ** 2, rel=1e-3)
    assert [("detector alone" in note) for note in record["notes"]] == [factor is None]
    report = pydicom.dcmread(tmp_path / "out" / "cases" / record["name"] / record["files"]["dicom"][1])
    assert sum(item.get("ValueType") == "NUM" for item in _items(report)) == expected


def test_images_that_are_not_dicom_get_no_dicom_objects(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    nib.save(nib.Nifti1Image(volume(SHAPE), np.eye(4)), tmp_path / "in" / "a.nii")
    found, notes = _predict(make_run(tmp_path / "run"), tmp_path / "in", tmp_path / "out", structures=True)
    assert list(found.done[0]["files"]) == ["labels"]
    assert notes == []
    assert "dicom" not in json.loads((tmp_path / "out" / "predictions.json").read_text())["cases"][0]["files"]
