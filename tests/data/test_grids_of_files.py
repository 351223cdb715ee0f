"""A label lies on its image where their corners do, in voxels, whatever the size of these."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

from oncofed.data.facts import measure, read_case
from oncofed.errors import DataError

SHAPE = (20, 16, 12)
VALUES = np.random.default_rng(0).integers(1, 900, SHAPE).astype(np.int16)
MASK = (VALUES > 700).astype(np.uint8)


def _problem(folder: Path, image: np.ndarray, label: np.ndarray) -> str | None:
    nib.save(nib.Nifti1Image(VALUES, image), folder / "i.nii")
    nib.save(nib.Nifti1Image(MASK, label), folder / "l.nii")
    return measure(*read_case([folder / "i.nii"], folder / "l.nii")).get("label_problem")


@pytest.mark.wild("standard: nifti1.h", "a label that lies elsewhere, by the size of its voxels alone")
@settings(max_examples=30, deadline=None)
@given(
    exponent=st.floats(-5, 2), axis=st.integers(0, 2), kind=st.sampled_from(["shift", "stretch"]), sign=st.booleans()
)
def test_half_a_voxel_at_a_corner_is_elsewhere_and_rounding_is_not(
    exponent: float, axis: int, kind: str, sign: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("g")
    image = np.diag([*np.array([1.0, 0.7, 2.0]) * 10.0**exponent, 1.0])
    for off in (1e-5, 0.5):
        label = image.copy()
        if kind == "shift":
            label[:3, 3] += image[:3, axis] * off * (1 if sign else -1)
        else:
            label[:3, axis] *= 1 + off / (SHAPE[axis] - 1) * (1 if sign else -1)
        problem = _problem(folder, image, label)
        assert (problem is None) == (off < 0.1), problem
        if problem:
            assert "lies elsewhere in space, by 0.5 voxels at a corner" in problem


@pytest.mark.wild("spinalcordtoolbox#2106", "a label whose axes are turned about its image's middle")
def test_a_turn_that_moves_corners_alone_is_seen(tmp_path: Path) -> None:
    angle = 0.06
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    middle = np.eye(4)
    middle[:3, 3] = (np.array(SHAPE) - 1) / 2
    assert "elsewhere" in str(_problem(tmp_path, np.eye(4), middle @ turn @ np.linalg.inv(middle)))


@pytest.mark.wild("spinalcordtoolbox#2106", "channels of one case that do not lie on each other")
@pytest.mark.parametrize("size", [1e-4, 1.0])
def test_channels_are_compared_alike(size: float, tmp_path: Path) -> None:
    for number, off in enumerate((0.0, 1e-5, 0.5)):
        affine = np.diag([size, size, size, 1.0])
        affine[0, 3] = off * size
        nib.save(nib.Nifti1Image(VALUES, affine), tmp_path / f"{number}.nii")
    assert read_case([tmp_path / "0.nii", tmp_path / "1.nii"], None)[0].values.shape == (*SHAPE, 2)
    with pytest.raises(
        DataError, match=r"do not lie on one grid: that of 2.nii lies elsewhere in space, by 0.5 voxels"
    ):
        read_case([tmp_path / "0.nii", tmp_path / "2.nii"], None)


@pytest.mark.wild("standard: MetaImage, Offset", "a flat label that lies elsewhere")
@pytest.mark.parametrize(("off", "right"), [(0.0, True), (5.0, False)])
def test_flat_images_that_say_where_they_lie_are_compared(off: float, right: bool, tmp_path: Path) -> None:
    for name, origin in (("i.mha", 0.0), ("l.mha", off)):
        image = sitk.GetImageFromArray(VALUES[..., 0] if name == "i.mha" else MASK[..., 0])
        image.SetSpacing((0.5, 0.5))
        image.SetOrigin((origin, 1.0))
        sitk.WriteImage(image, str(tmp_path / name))
    found = measure(*read_case([tmp_path / "i.mha"], tmp_path / "l.mha"))
    assert ("label_problem" not in found) == right
    assert found["spacing"] == [0.5, 0.5]


def test_sizes_of_microns_are_kept(tmp_path: Path) -> None:
    assert _problem(tmp_path, np.diag([2.5e-4, 2.5e-4, 1e-3, 1]), np.diag([2.5e-4, 2.5e-4, 1e-3, 1])) is None
    found = measure(*read_case([tmp_path / "i.nii"], None))
    assert found["spacing"] == pytest.approx([2.5e-4, 2.5e-4, 1e-3], rel=1e-5)
