"""Classes that few labelled images lack are reported."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dicoms import make_rtstruct, make_series, volume
from oncofed.data.absent import absences
from oncofed.data.manifest import Entry, Manifest
from oncofed.data.register import RegisterOptions, register

BOX = np.array([(0.0, 0, 0), (5, 0, 0), (5, 5, 0), (0, 5, 0)])


def _read(tmp_path: Path) -> Manifest:
    manifest = register(RegisterOptions(tmp_path / "in", "demo", tmp_path / "out", workers=1))
    assert manifest.quarantine == []
    return manifest


def _save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, np.eye(4)), path)


def _mask(*values: int) -> np.ndarray:
    mask = np.zeros((8, 8, 8), np.uint8)
    for value in values:
        mask[value : value + 2, 2:5, 2:5] = value
    return mask


def _image(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 900, (8, 8, 8)).astype(np.int16)


@pytest.mark.wild("–", "a structure set without a region that all others have")
def test_a_structure_set_that_lacks_a_region_is_named(tmp_path: Path) -> None:
    for number in range(4):
        files = make_series(
            tmp_path / "in" / str(number),
            volume((16, 16, 6), seed=number),
            spacing=(1, 1, 3),
            origin=(0, 0, 0),
            patient=f"P{number}",
            modality="CT",
        )
        regions = {"Liver": [BOX + np.array([2, 2, 6])], "spleen": [BOX + np.array([8, 8, 6])]}
        if number == 3:
            del regions["spleen"]
        if number == 2:
            regions = {"LIVER": regions["Liver"], "Spleen ": regions["spleen"]}
        make_rtstruct(tmp_path / "in" / str(number) / "rs.dcm", files, regions)
    manifest = _read(tmp_path)
    (entry,) = [entry for entry in manifest.entries if str(entry.source).startswith("3/")]
    (remark,) = manifest.remarks
    assert remark.lower().startswith(f"1 of 4 labelled images have no spleen: {entry.name}. where it was forgotten")
    assert [note.lower() for note in entry.notes][-1].startswith("it has no spleen")
    assert sum("it has no" in note for other in manifest.entries for note in other.notes) == 1


@pytest.mark.wild("–", "one file a class, of which one is not there for one patient")
def test_a_missing_class_file_is_named(tmp_path: Path) -> None:
    for number in range(3):
        folder = tmp_path / "in" / f"s{number}"
        _save(folder / "ct.nii.gz", _image(number))
        _save(folder / "segmentations" / "liver.nii.gz", np.minimum(_mask(2), 1))
        if number < 2:
            _save(folder / "segmentations" / "spleen.nii.gz", np.minimum(_mask(5), 1))
    manifest = _read(tmp_path)
    (remark,) = manifest.remarks
    assert remark.startswith("1 of 3 labelled images have no spleen: ")
    (entry,) = [entry for entry in manifest.entries if any("it has no spleen" in note for note in entry.notes)]
    assert entry.source == "s2/ct.nii.gz"


@pytest.mark.wild("–", "a label value that one mask lacks")
def test_a_value_that_one_mask_lacks_is_named(tmp_path: Path) -> None:
    for number in range(10):
        _save(tmp_path / "in" / "images" / f"c{number}.nii.gz", _image(number))
        _save(tmp_path / "in" / "labels" / f"c{number}.nii.gz", _mask(1) if number == 4 else _mask(1, 4))
    manifest = _read(tmp_path)
    (remark,) = manifest.remarks
    assert remark.startswith("1 of 10 labelled images have no label value 4: ")


@settings(max_examples=60, deadline=None)
@given(labelled=st.integers(0, 60), share=st.floats(0, 1))
def test_a_class_is_missed_if_few_images_lack_it(labelled: int, share: float) -> None:
    without = round(labelled * share)
    entries = [
        Entry(
            image=f"{n}.nii", name=f"c{n}", label=f"{n}_seg.nii", label_values={"0": 5, "1": 3 if n >= without else 0}
        )
        for n in range(labelled)
    ]
    found = list(absences(Manifest(labels={"1": "spleen"}, training=entries)))
    few = without > 0 and (without <= 2 or without / labelled < 0.2)
    assert bool(found) == (few and labelled >= 3 and 2 * without <= labelled)
    assert [absence.cases for absence in found] == [tuple(f"c{n}" for n in range(without))] * len(found)
