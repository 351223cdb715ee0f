"""Boxes as files: corners in voxels, centres and sizes in mm, markups for 3D Slicer, and the whole command."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from nibabel.affines import apply_affine

from oncofed.errors import SpecError
from oncofed.prediction.export.export import export
from oncofed.prediction.model import TrainedModel, load_model
from oncofed.prediction.outputs.boxes import box_table, markups
from oncofed.prediction.run import predict
from oncofed.prediction.sources import gather
from oncofed.tasks.inferred import FoundBoxes
from synthetic import make_lesions
from trained import make_run

# Stored axes point to the back, to the left and up.
AFFINE = np.array([[0, -2.0, 0, 30], [-1.0, 0, 0, 4], [0, 0, 1.5, -7], [0, 0, 0, 1]])
FOUND = FoundBoxes(
    np.array([[4.0, 2, 1, 8, 3, 3], [0, 0, 0, 1, 1, 1]]), np.array([0.75, 0.1]), np.array([1, 2]), AFFINE, (9, 9, 9)
)
NAMES = {1: "nodule", 2: "node"}


def test_a_volumes_boxes_in_voxels_and_mm() -> None:
    columns, rows = box_table(FOUND, NAMES, None)
    first = dict(zip(columns, rows[0], strict=True))
    assert (first["number"], first["class"], first["score"]) == (1, "nodule", 0.75)
    assert [first[f"{end}_{axis}_voxel"] for end in ("low", "high") for axis in "xyz"] == [4, 2, 1, 8, 3, 3]
    right, anterior, superior = apply_affine(AFFINE, np.array([6, 2.5, 2]) - 0.5)
    assert [first[f"centre_{axis}_mm_lps"] for axis in "xyz"] == [-right, -anterior, superior]
    assert [first[f"size_{axis}_mm"] for axis in "xyz"] == [4, 2, 3], "along the stored axes"
    assert rows[1][1] == "node"


def test_a_flat_images_boxes_have_mm_where_it_says_how_large_its_pixels_are() -> None:
    flat = replace(FOUND, corners=FOUND.corners[:, [0, 1, 3, 4]], affine=np.eye(4), shape=(9, 9))
    columns, rows = box_table(flat, NAMES, [0.5, 0.2])
    assert columns[3:] == ["low_x_px", "low_y_px", "high_x_px", "high_y_px", "size_x_mm", "size_y_mm"]
    assert rows[0][-2:] == pytest.approx([2, 0.2])
    assert len(box_table(flat, NAMES, None)[0]) == 7


def test_the_regions_of_slicer_cover_the_same_voxels() -> None:
    region = markups(FOUND, NAMES)["markups"][0]
    turn = np.array(region["orientation"]).reshape(3, 3)
    ends = [np.array(region["center"]) + turn @ (sign * np.array(region["size"]) / 2) for sign in (-1, 1)]
    voxels = apply_affine(np.linalg.inv(AFFINE), np.array(ends) * [-1, -1, 1]) + 0.5
    assert voxels.ravel() == pytest.approx(FOUND.corners[0])
    assert (region["coordinateSystem"], region["label"]) == ("LPS", "nodule 1: 0.75")


JOB = """\
schema: 1
name: balls
title: Bright balls
data: {dataset: balls, patch: [16, 16, 8], max_bad_share: 1}
task: {type: detection, classes: {1: lesion}, least_score: 0}
model: {network: retinanet, channels: [8, 16], arguments: {features: 8, sides: [4, 6]}}
"""


@pytest.fixture
def model(tmp_path: Path) -> TrainedModel:
    """Return an untrained model, which finds boxes anywhere."""
    return load_model(make_run(tmp_path / "run", JOB))


def test_predict_writes_tables_markups_and_labels(model: TrainedModel, tmp_path: Path) -> None:
    images, out = make_lesions(tmp_path / "set", 3, side=24) / "imagesTr", tmp_path / "out"
    sources = gather([images], out, model.job, tmp_path / "datasets", workers=1)
    found = predict(model, sources, out, torch.device("cpu"))
    assert [record["name"] for record in found.now] == ["case_0", "case_1", "case_2"]
    folder = out / "cases" / "case_1"
    with (folder / "case_1_boxes.csv").open() as file:
        rows = list(csv.DictReader(file))
    regions = json.loads((folder / "case_1_boxes.mrk.json").read_text())["markups"]
    assert len(rows) == len(regions) > 0
    likely = [row for row in rows if float(row["score"]) >= 0.5]
    labels = np.asarray(nib.load(folder / "case_1_seg.nii.gz").dataobj)
    assert labels.shape == (24, 24, 12)
    assert bool(labels.any()) == bool(likely)
    (counted,) = found.now[1]["figures"]
    assert (counted["name"], counted["objects"]) == ("lesion", len(likely))


def test_predict_writes_a_table_and_labels_of_flat_images(tmp_path: Path) -> None:
    flat = JOB.replace("patch: [16, 16, 8]", "modality: xray, patch: [16, 16]")
    model = load_model(make_run(tmp_path / "run", flat))
    images, out = make_lesions(tmp_path / "set", 2, side=24, axes=2) / "imagesTr", tmp_path / "out"
    sources = gather([images], out, model.job, tmp_path / "datasets", workers=1)
    (first, _) = predict(model, sources, out, torch.device("cpu")).now
    assert first["files"] == {"boxes": ["case_0_boxes.csv"], "labels": ["case_0_seg.png"]}
    assert (
        (out / "cases" / "case_0" / "case_0_boxes.csv").read_text().startswith("number,class,score,low_x_px,low_y_px")
    )


def test_a_bundle_of_boxes_says_why_it_does_not_answer(model: TrainedModel, tmp_path: Path) -> None:
    done = export(model, "bundle", tmp_path / "exported")
    assert "each window answers for the objects of its own part" in done.agreement
    why = json.loads((done.folder / "configs" / "inference.json").read_text())["why"]
    assert why.startswith("This model answers only with the code of oncofed, which no bundle holds")
    with pytest.raises(SpecError, match="the boxes of windows are joined by code of oncofed"):
        export(model, "onnx", tmp_path / "exported")
