from __future__ import annotations

import gzip
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from oncofed.data import case_facts
from oncofed.data.case_checks import check_case, check_cases
from oncofed.data.cases import pool_cases, read_cases
from oncofed.data.spec import SplitSpec
from oncofed.errors import DataError

CLASSES = [1, 2]
SPLIT = SplitSpec()


def test_every_patient_is_on_one_side_of_the_split(site: Path) -> None:
    cases = read_cases(site, SPLIT, seed=1)
    assert len(list(cases)) == 6
    assert cases.train
    assert cases.validation
    assert cases.test
    assert check_cases(cases, CLASSES) == []


def test_lists_of_the_file_are_kept_and_unlabelled_test_images_ignored(site: Path) -> None:
    manifest = json.loads((site / "dataset.json").read_text())
    entries = manifest["training"]
    lists = {"training": entries[:3], "validation": entries[3:4], "test": entries[4:]}
    (site / "dataset.json").write_text(json.dumps(lists))
    cases = read_cases(site, SPLIT, 1)
    assert (len(cases.train), len(cases.validation), len(cases.test)) == (3, 1, 2)
    (site / "dataset.json").write_text(json.dumps({"training": entries, "test": ["./imagesTs/a.nii.gz"]}))
    assert len(list(read_cases(site, SPLIT, 1))) == 6


def test_a_patient_on_two_sides_is_refused(site: Path) -> None:
    entries = json.loads((site / "dataset.json").read_text())["training"]
    (site / "dataset.json").write_text(json.dumps({"training": entries, "test": entries[:1]}))
    with pytest.raises(DataError, match="patient case_0 is in both training and test"):
        read_cases(site, SPLIT, 1)


def test_a_manifest_may_not_point_out_of_its_folder_but_files_may_be_links(site: Path, tmp_path: Path) -> None:
    image = site / "imagesTr" / "case_0.nii.gz"
    image.rename(tmp_path / "elsewhere.nii.gz")
    image.symlink_to(tmp_path / "elsewhere.nii.gz")
    assert check_cases(read_cases(site, SPLIT, 1), CLASSES) == []
    (site / "dataset.json").write_text(json.dumps({"training": [{"image": "../elsewhere.nii.gz", "label": "x"}]}))
    with pytest.raises(DataError, match="lies outside the folder"):
        read_cases(site, SPLIT, 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no dataset.json. Expected the Decathlon layout"),
        ("{", "not JSON"),
        ("[]", 'no list "training"'),
        ('{"training": ["a.nii.gz"]}', 'entry 0 of "training"'),
    ],
)
def test_a_folder_that_cannot_be_read_says_what_it_lacks(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(DataError, match=message):
        read_cases(tmp_path, SPLIT, 1)


def test_no_usable_case_is_an_error(site: Path) -> None:
    cases = read_cases(site, SPLIT, 1)
    with pytest.raises(DataError, match="no usable training case"):
        cases.without({c.name for c in cases}).require_training("site-1")


def _save(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> None:
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)


def _break_label_shape(image: Path, label: Path) -> None:
    _save(label, np.ones((4, 5, 6), np.uint8))


def _break_missing(image: Path, label: Path) -> None:
    label.unlink()


def _break_truncated(image: Path, label: Path) -> None:
    image.write_bytes(image.read_bytes()[:500])


def _break_garbage(image: Path, label: Path) -> None:
    image.write_bytes(b"this is no image")


def _break_short_array(image: Path, label: Path) -> None:
    whole = gzip.decompress(image.read_bytes())
    image.write_bytes(gzip.compress(whole[: len(whole) // 2]))


def _break_label_value(image: Path, label: Path) -> None:
    values = np.asarray(nib.load(label).dataobj).copy()
    values[0, 0, 0] = 7
    _save(label, values)


def _break_empty_label(image: Path, label: Path) -> None:
    _save(label, np.zeros_like(np.asarray(nib.load(label).dataobj)))


def _break_affine(image: Path, label: Path) -> None:
    _save(label, np.asarray(nib.load(label).dataobj), np.diag([2.0, 1, 1, 1]))


def _break_nan(image: Path, label: Path) -> None:
    values = np.asarray(nib.load(image).dataobj).copy()
    values[0, 0, 0] = np.nan
    _save(image, values)


def _break_constant(image: Path, label: Path) -> None:
    _save(image, np.zeros_like(np.asarray(nib.load(image).dataobj)))


def _break_four_axes(image: Path, label: Path) -> None:
    _save(image, np.random.default_rng(0).normal(size=(4, 4, 4, 2)).astype(np.float32))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_break_missing, "its label file labelsTr/case_2.nii.gz is missing"),
        (_break_label_shape, r"its label has shape \(4, 5, 6\), expected the image's \(20, 20, 20\)"),
        (_break_truncated, "its image file imagesTr/case_2.nii.gz cannot be read as NIfTI"),
        (_break_short_array, "its image file imagesTr/case_2.nii.gz cannot be read as NIfTI"),
        (_break_garbage, "cannot be read as NIfTI"),
        (_break_label_value, r"its label holds the values 7, expected only 0, 1, 2"),
        (_break_empty_label, "its label is empty"),
        (_break_affine, "lies elsewhere in space, by .* voxels at a corner"),
        (_break_nan, "not finite"),
        (_break_constant, "its image is constant"),
        (_break_four_axes, "its image has 2 channels, expected 1"),
    ],
)
def test_each_fault_of_a_case_is_named(site: Path, damage, message: str) -> None:  # type: ignore[no-untyped-def]
    case = next(c for c in read_cases(site, SPLIT, 1) if c.name == "case_2")
    damage(case.image, case.label)
    problem = check_case(case, CLASSES)
    assert problem is not None
    assert problem.case == "case_2"
    assert __import__("re").search(message, problem.what)
    assert str(site) not in str(problem)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(5, "Input/output error"), "cannot be read (Input/output error)"),
        (
            ValueError("odd\nand more"),
            (
                "cannot be read: its header or its pixels are damaged, or of a kind that is not known here. Copy it "
                "again, or export it in another format"
            ),
        ),
    ],
)
def test_one_case_that_cannot_be_read_keeps_no_other_from_training(
    site: Path, error: Exception, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = case_facts.read_case

    def read_case(images: list[Path], label: Path | None, *more: object) -> object:
        if "case_2" in str(images[0]):
            raise error
        return original(images, label, *more)

    monkeypatch.setattr(case_facts, "read_case", read_case)
    (problem,) = check_cases(read_cases(site, SPLIT, 1), CLASSES)
    assert (problem.case, problem.what) == ("case_2", said)


def test_pooled_cases_keep_their_side_and_never_collide(two_sites: dict[str, Path]) -> None:
    by_site = {name: read_cases(folder, SPLIT, 1) for name, folder in two_sites.items()}
    pooled = pool_cases(by_site)
    assert len(list(pooled)) == 12
    assert len({c.name for c in pooled}) == 12
    assert {c.image for c in pooled.test} == {c.image for cases in by_site.values() for c in cases.test}


def test_real_images_pass_the_checks(real_data: Path) -> None:
    cases = read_cases(real_data / "hippocampus", SPLIT, 1)
    assert len(list(cases)) == 198
    assert check_cases(cases, CLASSES) == []
