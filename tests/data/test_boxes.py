"""Boxes: what a dataset states of them, those of masks, and the way to another grid."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage

from oncofed.data import boxes
from oncofed.data.boxes import Box
from oncofed.data.case_checks import check_cases
from oncofed.data.cases import read_cases
from oncofed.data.contract import check_dataset
from oncofed.data.label_mapping import Supervision
from oncofed.data.located import BoxPatches, Located, boxes_of, of_file
from oncofed.data.manifest import read_manifest, write_manifest
from oncofed.data.spec import DataSpec, SplitSpec

WANTED = Supervision("boxes", {1: "lesion"})


def test_the_boxes_of_a_mask_are_those_of_its_pieces() -> None:
    mask = np.zeros((10, 12, 8), np.uint8)
    mask[1:3, 4:8, 2:3] = 1
    mask[6:9, 0:2, 5:8] = 1
    mask[3:5, 9:12, 0:2] = 2
    found = boxes.of_mask(mask, [1, 2], numbered=False)
    assert found.corners.tolist() == [[1, 4, 2, 3, 8, 3], [6, 0, 5, 9, 2, 8], [3, 9, 0, 5, 12, 2]]
    assert found.labels.tolist() == [1, 1, 2]


def test_objects_that_touch_have_a_box_each_where_they_are_numbered() -> None:
    mask = np.zeros((6, 6), np.int32)
    mask[1:3, 1:5], mask[3:5, 1:5] = 7, 9
    assert boxes.of_mask(mask, [1], numbered=True).corners.tolist() == [[1, 1, 3, 5], [3, 1, 5, 5]]
    assert len(boxes.of_mask(mask > 0, [1], numbered=False).labels) == 1


def test_a_moved_box_encloses_the_moved_object() -> None:
    """On a grid of other axes, sizes and directions, as MONAI's resampling has it."""
    rng = np.random.default_rng(0)
    file = nib.affines.from_matvec(np.diag([1.0, 1.5, 3.0]) @ np.eye(3)[[1, 0, 2]] * [-1, 1, 1], [5, -3, 2])
    working = nib.affines.from_matvec(np.eye(3) * 1.2, [-7, 1, 0])
    corner = rng.uniform(2, 5, (4, 3))
    corners = np.concatenate([corner, corner + rng.uniform(2, 4, (4, 3))], axis=1)
    matrix = np.linalg.inv(working) @ file
    found = boxes.moved(corners, matrix)
    for box, there in zip(corners, found, strict=True):
        points = rng.uniform(box[:3], box[3:], (500, 3))
        # Box coordinates begin at a voxel's edge, indices at its centre.
        world = nib.affines.apply_affine(file, points - 0.5)
        inside = nib.affines.apply_affine(np.linalg.inv(working), world) + 0.5
        assert (inside >= there[:3] - 1e-9).all()
        assert (inside <= there[3:] + 1e-9).all()
        assert np.abs([inside.min(0) - there[:3], inside.max(0) - there[3:]]).max() < 0.2
    assert boxes.moved(found, np.linalg.inv(matrix)) == pytest.approx(corners), "axes are parallel: nothing is lost"


@pytest.mark.parametrize("axes", [2, 3])
def test_painted_boxes_are_found_again(axes: int) -> None:
    low = np.array([[2.0, 3, 4], [10, 11, 12], [18.4, 2.2, 9.7]])[:, :axes]
    corners = np.concatenate([low, low + np.array([[5.0, 6, 4], [1, 1, 1], [3.3, 4.1, 2.6]])[:, :axes]], axis=1)
    numbers = boxes.painted(corners, (24,) * axes)
    found = boxes_of(torch.from_numpy(numbers), 4).numpy()
    assert np.abs(found[:3] - corners).max() <= 0.75
    assert found[0] == pytest.approx(corners[0])
    assert np.isnan(found[3]).all(), "there is no fourth"
    assert ndimage.find_objects(numbers) == [
        tuple(slice(int(a), int(b)) for a, b in zip(row[:axes], row[axes:], strict=True)) for row in found[:3]
    ]


def test_a_small_box_inside_a_large_one_is_kept() -> None:
    numbers = boxes.painted(np.array([[9.2, 9.2, 9.2, 9.6, 9.6, 9.6], [2, 2, 2, 18, 18, 18.0]]), (20, 20, 20))
    assert (numbers == 1).sum() == 1
    assert (numbers == 2).sum() > 1000


@pytest.mark.parametrize(
    ("box", "fault"),
    [
        ({"low": [1, 2], "high": [3, 4]}, "has not 3 numbers a corner: expected one for each axis"),
        ({"low": [1, 2, 5], "high": [3, 4, 5]}, "is empty, or not finite"),
        ({"low": [1, 2, float("nan")], "high": [3, 4, 5]}, "is empty, or not finite"),
        ({"low": [-80, 2, 3], "high": [-70, 4, 5]}, "lies outside the image of 10x10x10 voxels"),
        ({"low": [1, 2, 3], "high": [3, 4, 5], "label": 4}, r"is of the label 4, expected one of \[1\]"),
        ({"low": [1, 2, 3], "high": [3, 4, 5]}, "^$"),
    ],
)
def test_a_box_that_cannot_be_used_is_told(box: dict[str, object], fault: str) -> None:
    found = boxes.fault([Box.model_validate(box)], (10, 10, 10), [1])
    assert re.search(fault, found), found


def test_two_objects_of_one_box_are_told() -> None:
    """Only one of them could be learned, as both have the same voxels."""
    one, other = Box(low=(1, 2, 3), high=(3, 4, 5)), Box(low=(1, 2, 3), high=(3, 4, 6))
    found = boxes.fault([one, other, one.model_copy(update={"label": 2})], (10, 10, 10), [1, 2])
    assert found == "its boxes 1 and 3 are the same, expected one for each object: leave one of them out"
    assert boxes.fault([one, other], (10, 10, 10), [1, 2]) == ""


def make_set(folder: Path, states: bool) -> tuple[Path, np.ndarray]:
    """Write a volume of odd axes with one object: as a box, or as a mask; a second case has none."""
    (folder / "imagesTr").mkdir(parents=True)
    affine = np.array([[0, -2.0, 0, 30], [1.0, 0, 0, -4], [0, 0, 1.5, 7], [0, 0, 0, 1]])
    mask = np.zeros((20, 24, 16), np.uint8)
    mask[5:9, 10:14, 3:9] = 1
    entries = []
    for number, label in enumerate((mask, mask * 0)):
        image = np.random.default_rng(number).normal(0, 1, mask.shape).astype(np.float32) + 9 * label
        name = f"imagesTr/case_{number}.nii.gz"
        nib.save(nib.Nifti1Image(image, affine), folder / name)
        box = [{"low": [5, 10, 3], "high": [9, 14, 9]}]
        if states:
            entries.append({"image": name, "boxes": box if number == 0 else []})
        else:
            nib.save(nib.Nifti1Image(label, affine), folder / f"mask_{number}.nii.gz")
            entries.append({"image": name, "label": f"mask_{number}.nii.gz"})
    (folder / "dataset.json").write_text(json.dumps({"labels": {"1": "lesion"}, "training": entries}))
    return folder, affine


@pytest.mark.parametrize("states", [True, False])
def test_boxes_go_the_way_of_the_image_and_back(states: bool, tmp_path: Path) -> None:
    folder, _ = make_set(tmp_path / "set", states)
    cases = list(read_cases(folder, SplitSpec(validation=0, test=0), 1, WANTED))
    assert not check_cases(cases, [1]), "a case without any object is fine"
    spec = DataSpec(dataset="any", spacing=(1.0, 1.0, 1.0), patch=(16, 16, 16))
    prepared = BoxPatches(spec, "none", [1]).prepare(cases[0])
    (corners,) = prepared["centres.boxes"].numpy()
    inside = tuple(slice(int(a), int(b)) for a, b in zip(np.ceil(corners[:3]), np.floor(corners[3:]), strict=True))
    outside = prepared["image"][0].numpy().copy()
    assert outside[inside].mean() > outside.mean() + 2, "the box lies on the bright object of the working grid"
    found = Located(spec, [1]).prepare(cases[0])
    assert found["boxes"].tolist() == [[5, 10, 3, 9, 14, 9]]
    assert of_file(corners[None].astype(float), found, spec) == pytest.approx(found["boxes"].numpy(), abs=1e-4)
    assert len(Located(spec, [1]).prepare(cases[1])["boxes"]) == 0


def test_batches_have_the_boxes_of_their_patches(tmp_path: Path) -> None:
    folder, _ = make_set(tmp_path / "set", True)
    spec = DataSpec(dataset="any", patch=(16, 16, 16))
    source = BoxPatches(spec, "full", [1])
    prepared = [source.prepare(case) for case in read_cases(folder, SplitSpec(validation=0, test=0), 1, WANTED)]

    def batches(seed: int) -> list[dict[str, torch.Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        return [
            source.change(source.together([source.draw(case, generator) for case in prepared]), generator)
            for _ in range(12)
        ]

    drawn, again = batches(3), batches(3)
    assert all(
        torch.equal(a[n].nan_to_num(-1), b[n].nan_to_num(-1)) for a, b in zip(drawn, again, strict=True) for n in a
    )
    seen = 0
    for batch in drawn:
        assert batch["image"].shape == (2, 1, 16, 16, 16)
        assert not batch["classes"][1].any(), "the second case has no object"
        there = batch["classes"][0] > 0
        assert torch.equal(there, ~batch["boxes"][0].isnan().any(dim=1))
        for box in batch["boxes"][0][there]:
            low, high = box.view(2, 3).int().tolist()
            inside = batch["image"][0, 0][tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
            seen += 1
            assert inside.mean() > batch["image"][0].mean(), "it lies on the bright object"
    assert seen > 4


def test_boxes_are_kept_when_a_manifest_is_written_again(tmp_path: Path) -> None:
    folder, _ = make_set(tmp_path / "set", True)
    before = read_manifest(folder)
    write_manifest(folder, before)
    assert read_manifest(folder).entries == before.entries
    assert [len(entry.boxes or ()) for entry in before.entries] == [1, 0]


def test_check_counts_cases_with_boxes(tmp_path: Path) -> None:
    folder, _ = make_set(tmp_path / "set", True)
    report = check_dataset(folder, DataSpec(dataset="any"), WANTED, 1)
    (row,) = [row for row in report.rows if row.aspect == "cases"]
    assert row.found == "2 with boxes or a mask of 2"
    assert not report.unlabelled
