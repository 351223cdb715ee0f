"""Earlier answers for a set-aside image are removed.

Those for other images stay.
"""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from dicoms import make_series, make_xray
from oncofed.prediction.model import load_model
from oncofed.prediction.predictions import Predictions
from oncofed.prediction.run import Options, predict
from oncofed.prediction.sources import gather
from pictures import pictures
from synthetic import JOB, make_site
from trained import CLASSIFIER, make_run


def go(text: str, inputs: list[Path], folder: Path, *only: str) -> Predictions:
    run = folder / "run"
    model = load_model(run if run.is_dir() else make_run(run, text))
    sources = gather(inputs, folder / "out", model.job, folder / "datasets", only, workers=1)
    return predict(model, sources, folder / "out", torch.device("cpu"), Options(("labels",)))


def told(folder: Path) -> list[str]:
    """Names of the cases of which anything is said."""
    said = [case["name"] for case in json.loads((folder / "out" / "predictions.json").read_text())["cases"]]
    rows = (folder / "out" / "measurements.csv").read_text().splitlines()[1:]
    assert sorted({row.split(",")[0] for row in rows}) == said
    assert sorted(path.name for path in (folder / "out" / "cases").iterdir()) == said
    return said


def not_a_number(path: Path) -> None:
    values = np.full((20, 20, 20), np.nan, np.float32)
    nib.save(nib.Nifti1Image(values, np.eye(4)), path)


def flat(path: Path) -> None:
    nib.save(nib.Nifti1Image(np.ones((20, 20), np.float32), np.eye(4)), path)


def junk(path: Path) -> None:
    path.write_bytes(b"no image")


@pytest.mark.parametrize("spoil", [not_a_number, flat, junk])
@pytest.mark.parametrize("named", [False, True])
def test_an_image_that_is_overwritten_with_one_that_is_set_aside(spoil: object, named: bool, tmp_path: Path) -> None:
    images = make_site(tmp_path / "site", 2) / "imagesTr"
    inputs = sorted(images.iterdir()) if named else [images]
    go(JOB, inputs, tmp_path)
    assert told(tmp_path) == ["case_0", "case_1"]
    spoil(images / "case_0.nii.gz")  # type: ignore[operator]
    found = go(JOB, inputs, tmp_path)
    assert (len(found.set_aside), found.kept, told(tmp_path)) == (1, ["case_1"], ["case_1"])


def test_an_image_of_that_name_in_another_folder_keeps_its_answer(tmp_path: Path) -> None:
    one, two = (make_site(tmp_path / name, 1, seed) / "imagesTr" for seed, name in enumerate(("one", "two")))
    go(JOB, [one, two], tmp_path)
    junk(two / "case_0.nii.gz")
    go(JOB, [two, one], tmp_path)
    assert told(tmp_path) == ["case_0"]
    assert nib.load(tmp_path / "out" / "cases" / "case_0" / "case_0_seg.nii.gz").shape == (20, 20, 20)


def test_images_that_are_not_asked_for_keep_their_answers(tmp_path: Path) -> None:
    images = make_site(tmp_path / "site", 3) / "imagesTr"
    go(JOB, [images], tmp_path)
    junk(images / "case_0.nii.gz")
    go(JOB, [images], tmp_path, "case_1")
    assert told(tmp_path) == ["case_1", "case_2"]
    go(JOB, [images / "case_2.nii.gz"], tmp_path)
    assert told(tmp_path) == ["case_1", "case_2", "case_2-2"]


def test_a_series_that_lacks_a_slice_now(tmp_path: Path) -> None:
    make_series(tmp_path / "in" / "one", np.random.default_rng(0).normal(0, 300, (20, 24, 10)).astype(np.int16))
    go(JOB, [tmp_path / "in"], tmp_path)
    assert len(told(tmp_path)) == 1
    sorted((tmp_path / "in" / "one").iterdir())[4].unlink()
    assert len(go(JOB, [tmp_path / "in"], tmp_path).set_aside) == 1
    assert told(tmp_path) == []


def test_a_radiograph_whose_pixels_are_cut_off(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 4000, (40, 50)).astype(np.uint16)
    path = make_xray(tmp_path / "in", values)
    go(CLASSIFIER, [tmp_path / "in"], tmp_path)
    assert len(told(tmp_path)) == 1
    path.write_bytes(path.read_bytes()[:-200])
    go(CLASSIFIER, [tmp_path / "in"], tmp_path)
    assert told(tmp_path) == []


def test_a_picture_of_a_class_that_is_broken_now(tmp_path: Path) -> None:
    pictures(tmp_path / "in", "a.png", "b.png")
    go(CLASSIFIER, [tmp_path / "in"], tmp_path)
    junk(tmp_path / "in" / "a.png")
    go(CLASSIFIER, [tmp_path / "in"], tmp_path)
    assert told(tmp_path) == ["b"]
