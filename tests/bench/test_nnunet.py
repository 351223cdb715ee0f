"""The comparison with nnU-Net: who is held out, and how both are scored."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import nnunet
from nnunet_baseline import Nnunet


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Twelve cases with a cube of two labels."""
    for part in ("imagesTr", "labelsTr"):
        (tmp_path / "data" / part).mkdir(parents=True)
    for number in range(12):
        mask = np.zeros((16, 16, 16), np.uint8)
        mask[4:8, 4:12, 4:12], mask[8:12, 4:12, 4:12] = 1, 2
        for part, values in (("imagesTr", mask.astype(np.float32)), ("labelsTr", mask)):
            nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / "data" / part / f"case_{number:02}.nii.gz")
    return tmp_path / "data"


def test_both_train_and_score_the_same_cases(data: Path, tmp_path: Path) -> None:
    train, test = nnunet.split(data)
    assert (train, test) == nnunet.split(data)
    assert len(test) == 4
    cases = nnunet.own_cases(tmp_path / "set", data, train, test)
    assert {case.name for case in cases.train} == set(train)
    assert {case.name for case in cases.test} == set(test)
    assert not cases.validation
    theirs = Nnunet(tmp_path / "nnunet", "cpu")
    theirs.take(train, test, data / "labelsTr", nnunet.labels())
    raw = theirs.folder / "raw" / "Dataset004_Hippocampus"
    assert {path.name.removesuffix("_0000.nii.gz") for path in (raw / "imagesTr").iterdir()} == set(train)
    assert {path.name.removesuffix(".nii.gz") for path in (raw / "labelsTr").iterdir()} == set(train)
    assert {path.name.removesuffix("_0000.nii.gz") for path in (raw / "imagesTs").iterdir()} == set(test)


def test_both_are_scored_alike_and_compared_by_patient(data: Path, tmp_path: Path) -> None:
    _, test = nnunet.split(data)
    found = {name: data / "labelsTr" / path.name for name, path in test.items()}
    perfect = nnunet.scores(found, data / "labelsTr")
    assert nnunet._mean(perfect, "dice") == 1
    assert nnunet._mean(perfect, "hd95_mm") == 0
    for number, name in enumerate(found):
        mask = np.asarray(nib.load(found[name]).dataobj).copy()
        mask[4 : 5 + number % 2] = 0
        found[name] = tmp_path / found[name].name
        nib.save(nib.Nifti1Image(mask, np.eye(4)), found[name])
    worse = nnunet.scores(found, data / "labelsTr")
    # Planes of the first label are missing: 1 of 4, or 2 of 4.
    dice = [(2 * left / (left + 4) + 1) / 2 for left in (3, 2)]
    assert nnunet._mean(worse, "dice") == pytest.approx(np.mean(dice))
    note = nnunet._difference([perfect, perfect], [worse, worse], "dice")
    assert f"oncofed less nnU-Net {1 - np.mean(dice):+.4f}" in note
    assert "over 4 patients" in note
    assert "2 seeds" in note


def test_our_job_takes_the_plan_with_the_whole_set_of_changes() -> None:
    settings = {"data": {"patch": [24, 24, 24]}, "training": {"batch_size": 3}}
    spec = nnunet.as_planned(settings, 5)
    assert (spec.data.patch, spec.training.batch_size, spec.training.augmentation) == ((24, 24, 24), 3, "full")
    assert spec.seed == 5
