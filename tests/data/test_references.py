"""What is prepared of a case to be scored."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from oncofed.data.case import Case
from oncofed.data.manifest import Entry
from oncofed.data.references import Referenced, affine_of
from oncofed.data.spec import DataSpec
from oncofed.data.transforms import load_pair


def _case(folder: Path, axes: str = "RAS", **more: object) -> Case:
    rng = np.random.default_rng(0)
    label = np.zeros((20, 22, 24), np.uint8)
    label[3:9, 4:12, 5:20], label[12:15, 4:12, 5:20] = 1, 1
    turn = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(axes))
    for name, values in (("image", rng.normal(size=label.shape).astype(np.float32)), ("label", label)):
        nib.save(nib.Nifti1Image(values, np.diag([0.8, 0.9, 2.0, 1])).as_reoriented(turn), folder / f"{name}.nii.gz")
    return Case("a", "a", folder / "image.nii.gz", folder / "label.nii.gz", **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("spacing", [None, (1.5, 1.5, 1.5), (0.8, 0.9, 2.0)])
@pytest.mark.parametrize("axes", ["RAS", "LPS", "PSR"])
def test_image_is_on_the_training_grid_and_label_on_its_files(
    tmp_path: Path, axes: str, spacing: tuple[float, ...] | None
) -> None:
    case = _case(tmp_path, axes)
    spec = DataSpec(dataset="any", patch=(8, 8, 8), spacing=spacing)
    prepared, pair = Referenced(spec).prepare(case), load_pair(spec)(case)
    # Training resamples in float64.
    torch.testing.assert_close(prepared["image"], pair["image"], atol=1e-5, rtol=0)
    assert prepared["image"].dtype == torch.float32
    stored = nib.load(tmp_path / "label.nii.gz")
    assert np.array_equal(prepared["label"].numpy(), np.asarray(stored.dataobj))
    assert prepared["label"].dtype == torch.uint8
    assert np.allclose(affine_of(prepared, "label"), stored.affine)
    assert nib.aff2axcodes(affine_of(prepared, "image")) == ("R", "A", "S")


def test_single_objects_keep_their_numbers(tmp_path: Path) -> None:
    prepared = Referenced(DataSpec(dataset="any", patch=(8, 8, 8)), numbered=True).prepare(_case(tmp_path))
    assert prepared["label"].dtype == torch.int32
    assert prepared["label"].unique().tolist() == [0, 1, 2]


def test_the_size_is_known_before_a_file_is_read(tmp_path: Path) -> None:
    entry = Entry(image="image.nii.gz", shape=[20, 22, 24], spacing=[0.8, 0.9, 2.0])
    case = _case(tmp_path, entry=entry)
    for spacing in (None, (1.5, 1.5, 1.5)):
        for numbered in (False, True):
            how = Referenced(DataSpec(dataset="any", patch=(8, 8, 8), spacing=spacing), numbered)
            size = sum(value.nbytes for value in how.prepare(case).values())
            assert how.size(case) == pytest.approx(size, rel=0.1)
    assert how.size(_case(tmp_path)) is None


def test_cases_prepared_for_objects_are_not_used_for_classes() -> None:
    spec = DataSpec(dataset="any", patch=(8, 8, 8))
    assert Referenced(spec).settings != Referenced(spec, numbered=True).settings
