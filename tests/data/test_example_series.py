"""The series that the demo leaves to be predicted."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest

from oncofed.data.example_series import write_series
from pictures import read


@pytest.mark.parametrize("axes", ["RAS", "LPS", "PSR", "ASL"])
def test_the_series_reads_as_its_source_volume(tmp_path: Path, axes: str) -> None:
    values = np.random.default_rng(0).integers(0, 900, (14, 11, 9)).astype(np.int16)
    upright = np.array([[2.0, 0, 0, -20], [0, 2.5, 0, 10], [0, 0, 3, 5], [0, 0, 0, 1]])
    turn = nib.orientations.axcodes2ornt(axes)
    back = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), turn)
    image = nib.Nifti1Image(values, upright).as_reoriented(back)
    nib.save(image, tmp_path / "brain.nii.gz")
    files = write_series(tmp_path / "brain.nii.gz", tmp_path / "series")
    assert len(files) == image.shape[2]
    (entry,) = read(tmp_path / "series", tmp_path / "set").entries
    made = nib.as_closest_canonical(nib.load(tmp_path / "set" / str(entry.image)))
    assert np.allclose(made.affine, upright, atol=1e-4)
    expected = (values - values.min()) * (4095 / (values.max() - values.min()))
    assert np.abs(np.asarray(made.dataobj) - expected).max() <= 0.5 + 1e-3


def test_the_series_names_no_person(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(np.arange(60, dtype=np.float32).reshape(3, 4, 5), np.eye(4)), tmp_path / "a.nii")
    first = pydicom.dcmread(write_series(tmp_path / "a.nii", tmp_path / "series")[0])
    assert (first.PatientID, first.StudyDate, first.PatientBirthDate) == ("SIMULATED", "", "")
    assert "Simulated" in first.SeriesDescription
