from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from oncofed.data.case import Case
from oncofed.data.images import read_image
from oncofed.data.spec import DataSpec
from oncofed.data.transforms import as_tensor, darken, load_image, load_pair
from synthetic import make_volume


def _store(tmp_path: Path, axes: str) -> Case:
    image, label = make_volume(1, side=24)
    image[:4] += 3  # a mark on the left, so that a wrong turn shows
    files = {}
    for key, array in (("image", image), ("label", label)):
        turn = nib.orientations.ornt_transform(
            nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(axes)
        )
        files[key] = tmp_path / f"{key}-{axes}.nii.gz"
        nib.save(nib.Nifti1Image(array, np.eye(4)).as_reoriented(turn), files[key])
    return Case(axes, axes, files["image"], files["label"])


def test_the_working_grid_does_not_depend_on_how_a_file_is_stored(tmp_path: Path) -> None:
    spec = DataSpec(dataset="balls", spacing=(1.5, 1.5, 1.5), patch=(16, 16, 16))
    reference = load_pair(spec)(_store(tmp_path, "RAS"))
    for axes in ("LPS", "PSR", "ASL"):
        other = load_pair(spec)(_store(tmp_path, axes))
        torch.testing.assert_close(other["image"], reference["image"], atol=1e-4, rtol=0)
        assert torch.equal(other["label"], reference["label"])


def test_image_and_label_types_and_padding_to_the_patch(tmp_path: Path) -> None:
    spec = DataSpec(dataset="balls", patch=(32, 32, 32))
    pair = load_pair(spec)(_store(tmp_path, "RAS"))
    assert pair["image"].shape == pair["label"].shape == (1, 32, 32, 32)
    assert pair["image"].dtype == torch.float32
    assert pair["label"].dtype == torch.uint8
    alone = load_image(spec)(_store(tmp_path, "RAS"))["image"]
    assert abs(float(alone.mean())) < 1e-4
    assert abs(float(alone.std()) - 1) < 1e-2


def test_stored_scale_and_intercept_are_applied(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.arange(27, dtype=np.int16).reshape(3, 3, 3), np.eye(4))
    image.header.set_slope_inter(2.0, -10.0)
    nib.save(image, tmp_path / "scaled.nii.gz")
    volume = as_tensor(read_image(tmp_path / "scaled.nii.gz"))
    expected = nib.load(tmp_path / "scaled.nii.gz").get_fdata()
    np.testing.assert_allclose(volume.numpy()[0], expected, atol=1e-4)


def test_rounding_does_not_decide_if_a_background_is_bright() -> None:
    """The median is half-way between the extremes, in all types."""
    grey = np.tile(np.array([10, 20, 30], np.uint8), 40)[:, None, None]
    for values in (grey, np.repeat(grey, 3, axis=-1), grey.astype(np.float32) * np.float32(0.1), grey / 3):
        assert darken(values) is values
    brighter = np.where(grey == 20, np.uint8(21), grey)
    assert np.array_equal(darken(brighter), 30 - brighter)


@pytest.mark.wild("zarrnii#180", "voxels of microns: no resampling, since they differ by less than MONAI's tolerance")
@pytest.mark.parametrize("unit", [1e-3, 1e-6])
def test_small_voxels_are_resampled_like_large_ones(unit: float, tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(31, 25, 12)).astype(np.float32)
    mask = (values > 1).astype(np.uint8)
    found = []
    for name, size in (("mm", 1.0), ("small", unit)):
        affine = np.diag([0.5 * size, 0.5 * size, 2 * size, 1])
        for kind, array in (("i", values), ("l", mask)):
            nib.save(nib.Nifti1Image(array, affine), tmp_path / f"{name}-{kind}.nii")
        spec = DataSpec(dataset="d", modality="mri", channels=["a"], patch=(8, 8, 8), spacing=(size, size, 2 * size))
        case = Case("c", "p", tmp_path / f"{name}-i.nii", tmp_path / f"{name}-l.nii")
        pair, alone = load_pair(spec)(case), load_image(spec)(case)
        assert alone["image"].affine[0, 0] == pytest.approx(size, rel=1e-5)
        found.append((pair["image"], pair["label"], alone["image"]))
    for one, two in zip(*found, strict=True):
        assert one.shape == two.shape == (1, 16, 13, 12)
        assert np.allclose(one, two, atol=1e-4)
