from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from oncofed.data.brain import HOSPITALS, Scanner, make_hospitals, make_patient
from oncofed.data.case_checks import check_cases
from oncofed.data.cases import read_cases
from oncofed.data.spec import SplitSpec


@cache
def _patient(scanner: Scanner) -> tuple[nib.Nifti1Image, nib.Nifti1Image]:
    """Return one patient's image and label, made once for all tests."""
    return make_patient(scanner, np.random.default_rng(5))


@pytest.mark.parametrize("hospital", HOSPITALS, ids=lambda h: h.name)
def test_a_patient_has_its_scanners_storage(hospital) -> None:  # type: ignore[no-untyped-def]
    scanner = hospital.scanner
    image, label = _patient(scanner)
    assert image.get_data_dtype() == np.dtype(scanner.dtype)
    assert "".join(nib.aff2axcodes(image.affine)) == scanner.axes
    canonical = nib.as_closest_canonical(image)
    np.testing.assert_allclose(canonical.header.get_zooms(), scanner.voxel_mm, rtol=1e-5)
    np.testing.assert_array_equal(image.affine, label.affine)
    values = np.asarray(label.dataobj)
    litres = [(values == v).sum() * np.prod(scanner.voxel_mm) / 1e6 for v in (1, 2)]
    assert all(0.3 < volume < 1.3 for volume in litres)  # a head holds 0.6 to 0.8 litres of grey matter
    assert np.asarray(image.dataobj).astype(float)[values == 2].mean() > np.asarray(image.dataobj)[values == 0].mean()


def test_anatomy_lies_the_same_for_all_orientations_and_origins() -> None:
    centres = []
    for hospital in HOSPITALS:
        _, label = _patient(hospital.scanner)
        voxels = np.argwhere(np.asarray(label.dataobj) > 0).mean(axis=0)
        centres.append(nib.affines.apply_affine(label.affine, voxels))
    assert np.ptp(centres, axis=0).max() < 12  # mm: each grid draws its own deformation


def test_hospitals_follow_from_the_seed_and_are_valid_datasets(tmp_path: Path) -> None:
    small = tuple(
        replace(h, scanner=replace(h.scanner, voxel_mm=(4.0, 4.0, 4.0)), train=1, validation=1, test=1)
        for h in HOSPITALS[1:3]
    )
    first = make_hospitals(tmp_path / "a", 7, small)
    alone = (replace(small[0], validation=0, test=0),)
    again = make_hospitals(tmp_path / "b", 7, alone, workers=1)
    other = make_hospitals(tmp_path / "c", 8, alone)
    for folder in first.values():
        cases = read_cases(folder, SplitSpec(), 1)
        assert (len(cases.train), len(cases.validation), len(cases.test)) == (1, 1, 1)
        assert check_cases(cases, [1, 2]) == []
    for site in again:
        cases = read_cases(first[site], SplitSpec(), 1)
        name = cases.train[0].image.name
        same, different = (np.asarray(nib.load(made[site] / "imagesTr" / name).dataobj) for made in (again, other))
        original = np.asarray(nib.load(cases.train[0].image).dataobj)
        np.testing.assert_array_equal(original, same)
        assert not np.array_equal(original, different)
