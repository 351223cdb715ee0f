"""Boxes from a table: LUNA16's columns, corners, classes, and what cannot be used."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine

from commands import oncofed
from oncofed.data.box_tables import state_boxes
from oncofed.data.manifest import read_manifest, write_manifest
from oncofed.data.register import RegisterOptions, register
from oncofed.errors import DataError

SHAPE = (30, 26, 20)
# Axes in another order than the patient's, and turned.
AFFINE = np.array([[0, -1.5, 0, 40], [0.8, 0, 0, -10], [0, 0, 2.5, -100], [0, 0, 0, 1]])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a registered dataset of two volumes; the first has a bright ball around voxel (12, 9, 7)."""
    source = tmp_path / "in"
    source.mkdir()
    places = apply_affine(AFFINE, np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), -1))
    ball = np.linalg.norm(places - apply_affine(AFFINE, [12, 9, 7]), axis=-1) < 5.01
    for number in range(2):
        values = np.random.default_rng(number).normal(0, 1, SHAPE) + (50 * ball if number == 0 else 0)
        nib.save(nib.Nifti1Image(values.astype(np.float32), AFFINE), source / f"1.3.6.{number}.nii.gz")
    register(RegisterOptions(source, "nodules", tmp_path / "set", "segmentation"))
    return tmp_path / "set"


def table(folder: Path, text: str) -> Path:
    path = folder.parent / "annotations.csv"
    path.write_text(text)
    return path


def test_centre_and_diameter_become_the_box_of_the_ball(folder: Path) -> None:
    """In mm as DICOM and as NIfTI have them; the box ends where the ball does."""
    x, y, z = apply_affine(AFFINE, [12, 9, 7])
    rows = {"lps": f"1.3.6.0,{-x},{-y},{z},10", "ras": f"1.3.6.0,{x},{y},{z},10"}
    found = {}
    for coordinates in ("lps", "ras"):
        path = table(folder, f"seriesuid,coordX,coordY,coordZ,diameter_mm\n{rows[coordinates]}\n9.9,1,1,1,4\n")
        told = state_boxes(folder, path, coordinates, "nodule")
        assert (told.cases, told.none, told.boxes, told.unknown) == (1, 0, 1, 1)
        manifest = read_manifest(folder)
        assert manifest.labels["1"] == "nodule"
        one, other = sorted(manifest.entries, key=lambda entry: entry.name or "")
        assert other.boxes is None
        assert one.boxes
        (found[coordinates],) = one.boxes
    assert found["lps"] == found["ras"]
    values = np.asarray(nib.load(next((folder.parent / "in").glob("*.0.nii.gz"))).dataobj)
    bright = np.argwhere(values > 25)
    low, high = np.array(found["lps"].low), np.array(found["lps"].high)
    # The first voxel that is bright is the first whose centre lies in the box, and so is the last.
    assert np.ceil(low - 0.5).tolist() == bright.min(axis=0).tolist()
    assert np.floor(high - 0.5).tolist() == bright.max(axis=0).tolist()
    assert ((high - low) * [0.8, 1.5, 2.5]).tolist() == pytest.approx([10, 10, 10], abs=0.01)


def test_corners_in_voxels_and_classes(folder: Path) -> None:
    text = "image\tlow_x\tlow_y\tlow_z\thigh_x\thigh_y\thigh_z\tclass\n"
    text += "1.3.6.0.nii.gz\t1\t2\t3\t4\t5\t6\tnodule\n1.3.6.0.nii.gz\t7\t2\t3\t9\t5\t6\tnode\n"
    told = state_boxes(folder, table(folder, text), "voxels", rest_has_none=True)
    assert (told.cases, told.none, told.boxes, told.unknown) == (1, 1, 2, 0)
    manifest = read_manifest(folder)
    assert {manifest.labels["1"], manifest.labels["2"]} == {"nodule", "node"}
    one, other = sorted(manifest.entries, key=lambda entry: entry.name or "")
    assert one.boxes
    assert [(box.low, box.high, box.label) for box in one.boxes] == [
        ((1, 2, 3), (4, 5, 6), 1),
        ((7, 2, 3), (9, 5, 6), 2),
    ]
    assert other.boxes == []


def test_boxes_stay_when_the_folder_is_registered_again(folder: Path) -> None:
    path = table(folder, "case,low_x,low_y,low_z,high_x,high_y,high_z\n1.3.6.0,1,2,3,4,5,6\n")
    state_boxes(folder, path, "voxels")
    before = [entry.boxes for entry in read_manifest(folder).entries]
    register(RegisterOptions(folder.parent / "in", "nodules", folder, "segmentation"))
    assert [entry.boxes for entry in read_manifest(folder).entries] == before
    assert any(before)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seriesuid,x\n1.3.6.0,4\n", "found the columns seriesuid, x; expected one of"),
        (
            "seriesuid,coordX,coordY,coordZ,diameter_mm\n7.7,1,1,1,4\n",
            r"none of its 1 rows is of a case of set\. Expected in the column seriesuid .*: 1\.3\.6\.0, 1\.3\.6\.1$",
        ),
        ("seriesuid,coordX,coordY,coordZ,diameter_mm\n1.3.6.0,1,one,1,4\n", r"line 2: coordy is 'one', expected a num"),
        ("seriesuid,coordX,coordY,coordZ,diameter_mm\n1.3.6.0,1,1,1,\n", r"line 2: diameter_mm is '', expected a num"),
        ("seriesuid,coordX,coordY,coordZ,diameter_mm\n1.3.6.0,999,1,1,4\n", r"line 2: the box .* lies outside .*lps\)"),
        ("seriesuid,coordX,coordY,diameter_mm\n1.3.6.0,1,1,4\n", r"line 2: has 2 coordinates, and the image 3 axes: e"),
        (
            "case,low_x,low_y,low_z,high_x,high_y,high_z\n1.3.6.0,0,0,-90,0,9,-80\n",
            r"line 2: the box .* is empty",
        ),
    ],
)
def test_what_cannot_be_used_is_told_with_its_line(folder: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        state_boxes(folder, table(folder, text), "lps")
    assert all(entry.boxes is None for entry in read_manifest(folder).entries), "nothing is written"


def test_a_name_of_two_cases_is_refused(tmp_path: Path) -> None:
    """Files are often called alike in each patient's folder: a box goes to the one that is meant."""
    for number in (1, 2):
        (tmp_path / f"in/p{number}").mkdir(parents=True)
        values = np.random.default_rng(number).normal(0, 1, SHAPE).astype(np.float32)
        nib.save(nib.Nifti1Image(values, AFFINE), tmp_path / f"in/p{number}/ct.nii.gz")
    folder = tmp_path / "set"
    register(RegisterOptions(tmp_path / "in", "nodules", folder, "segmentation"))
    text = "case,low_x,low_y,low_z,high_x,high_y,high_z\n{},1,2,3,4,5,6\n"
    with pytest.raises(DataError, match=r"line 2: 2 cases are called 'ct', expected one.*p1.*p2") as refused:
        state_boxes(folder, table(folder, text.format("ct")), "voxels")
    assert all(entry.boxes is None for entry in read_manifest(folder).entries)
    advised = str(refused.value).rpartition(": ")[2].split(", ")[0]
    state_boxes(folder, table(folder, text.format(advised)), "voxels")
    (one,) = [entry for entry in read_manifest(folder).entries if entry.boxes]
    assert "p1" in (one.source or one.images[0])


def test_a_box_stated_twice_is_refused(folder: Path) -> None:
    text = "case,low_x,low_y,low_z,high_x,high_y,high_z,class\n1.3.6.0,1,2,3,4,5,6,a\n"
    path = table(folder, text + "1.3.6.1,1,2,3,4,5,6,a\n1.3.6.0,1,2,3,4,5,6,b\n")
    with pytest.raises(DataError, match="line 4: the box is that of an earlier row"):
        state_boxes(folder, path, "voxels")


def test_a_diameter_in_mm_is_none_in_voxels(folder: Path) -> None:
    path = table(folder, "case,coordX,coordY,coordZ,diameter_mm\n1.3.6.0,12,9,7,10\n")
    with pytest.raises(DataError, match=r"diameter_mm, expected numbers in voxels.*Give lps or ras"):
        state_boxes(folder, path, "voxels")
    path.write_text(path.read_text().replace("diameter_mm", "diameter"))
    assert state_boxes(folder, path, "voxels").boxes == 1


def test_an_affine_of_no_volume_is_told(folder: Path) -> None:
    manifest = read_manifest(folder)
    none = {"affine": [[0.0] * 4] * 3 + [[0.0, 0.0, 0.0, 1.0]]}
    flat = [entry.model_copy(update=none) for entry in manifest.training]
    write_manifest(folder, manifest.model_copy(update={"training": flat}))
    path = table(folder, "seriesuid,coordX,coordY,coordZ,diameter_mm\n1.3.6.0,1,1,1,4\n")
    with pytest.raises(DataError, match=r"line 2: its image's affine in dataset.json .* register the folder again"):
        state_boxes(folder, path, "lps")


def test_the_command(folder: Path) -> None:
    path = table(folder, "case,low_x,low_y,low_z,high_x,high_y,high_z\n1.3.6.0,1,2,3,4,5,6\n")
    done = oncofed("data", "boxes", folder, path, "--coordinates", "voxels", "--rest-has-none", home=folder.parent)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "1 boxes of 1 cases are written; 1 cases are known to have none."
