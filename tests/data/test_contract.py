"""``oncofed data check`` reports conversions, misfits, and faults by case."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from oncofed.data.cases import read_cases, usable_cases
from oncofed.data.contract import Report, check_dataset
from oncofed.data.contract_rows import labels_row
from oncofed.data.label_mapping import Supervision, Vocabulary, match_labels
from oncofed.data.look import look
from oncofed.data.manifest import Manifest, read_manifest
from oncofed.data.register import RegisterOptions, register
from oncofed.data.resolve import resolve
from oncofed.data.spec import DataSpec
from oncofed.data.transforms import load_pair
from oncofed.errors import DataError
from synthetic import make_site, make_volume

CLASSES = {1: "shell", 2: "core"}
DATA = DataSpec(dataset="balls", patch=(16, 16, 16))


def check(folder: Path, data: DataSpec = DATA, classes: dict[int, str] | None = None) -> Report:
    return check_dataset(folder, data, Supervision(classes=classes or CLASSES), seed=1)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A registered dataset of twelve cases."""
    register(RegisterOptions(make_site(tmp_path / "in", 12), "balls", tmp_path / "set"))
    return tmp_path / "set"


def _again(dataset: Path) -> None:
    register(RegisterOptions(dataset.parent / "in", "balls", dataset))


def _edit(dataset: Path, change: Callable[[dict], None]) -> None:  # type: ignore[type-arg]
    values = json.loads((dataset / "dataset.json").read_text())
    change(values)
    (dataset / "dataset.json").write_text(json.dumps(values))


def _save(path: Path, values: np.ndarray, affine: np.ndarray | None = None) -> None:
    nib.save(nib.Nifti1Image(values, np.eye(4) if affine is None else affine), path)


def test_a_dataset_that_fits(dataset: Path) -> None:
    report = check(dataset)
    assert report.clean
    assert {row.verdict for row in report.rows} == {"fits"}
    assert sum(report.cases.values()) == 12


def test_conversions_are_reported_as_training_does_them(dataset: Path) -> None:
    data = DATA.model_copy(update={"spacing": (2.0, 2.0, 2.0), "orientation": "LPS"})
    _edit(dataset, lambda v: v.update(labels={"0": "background", "1": "rim", "2": "CORE"}, label_map={"rim": "shell"}))
    report = check(dataset, data, {1: "core", 2: "shell"})
    assert report.may_train
    how = {row.aspect: row.how for row in report.rows if row.verdict == "converted"}
    assert how["spacing"] == "12 cases resampled"
    assert how["orientation"] == "12 cases reoriented"
    assert how["labels"] == "rim (1) becomes shell (2); CORE (2) becomes core (1)"
    case = read_cases(dataset, data.split, 1, Supervision(classes={1: "core", 2: "shell"})).train[0]
    stored = np.asarray(nib.load(case.label).dataobj)
    translated = case.read_label().values[..., 0]
    np.testing.assert_array_equal(translated == 1, stored == 2)
    np.testing.assert_array_equal(translated == 2, stored == 1)
    pair = load_pair(data)(case)
    assert pair["image"].shape == (1, 16, 16, 16)
    assert set(torch.unique(pair["label"]).tolist()) == {0, 1, 2}


@pytest.mark.parametrize(
    ("labels", "label_map", "message"),
    [
        ({"1": "shell", "2": "kernel"}, {}, "its label 'kernel' is none of the job's"),
        ({"1": "shell"}, {}, "no label of the dataset stands for core"),
        ({"1": "shell", "2": "core"}, {"rind": "shell"}, "label_map names rind, which no label"),
    ],
)
def test_an_incomplete_vocabulary_does_not_fit(
    dataset: Path, labels: dict[str, str], label_map: dict[str, str], message: str
) -> None:
    _edit(dataset, lambda v: v.update(labels={"0": "background", **labels}, label_map=label_map))
    report = check(dataset)
    assert not report.may_train
    assert any(message in reason for reason in report.why_not)
    with pytest.raises(DataError, match=r"dataset\.json"):
        usable_cases(dataset, DATA, Supervision(classes=CLASSES), 1, "west")


def test_misfitting_names_are_reported_once_in_short_lines(dataset: Path) -> None:
    labels = {"1": "Niere links", "2": "Tumor größe"}
    _edit(dataset, lambda v: v.update(labels={"0": "background", **labels}))
    report = check(dataset)
    [row] = [row for row in report.rows if row.aspect == "labels"]
    assert (row.found, row.how) == ("1 Niere links, 2 Tumor größe", "see below")
    for name in labels.values():
        [line] = [line for line in report.why_not if f'"label_map": {{"{name}": "NAME"}}' in line]
        assert len(line) < 150
    assert not any("[" in line for line in report.why_not)


@pytest.mark.wild("standard: NIfTI-1, masks of 0 and 255", "values of masks that are none of the job's labels")
def test_unknown_values_do_not_fit_and_the_remedy_is_given(dataset: Path) -> None:
    for number, value in ((3, 255), (4, 255), (5, 9)):
        values = make_volume(number)[1]
        values[0, 0, 0] = value
        _save(dataset.parent / "in" / "labelsTr" / f"case_{number}.nii.gz", values)
    _again(dataset)
    report = check(dataset, DATA.model_copy(update={"max_bad_share": 0.5}))
    [row] = [row for row in report.rows if row.aspect == "labels"]
    assert row.verdict == "does not fit"
    assert row.how == (
        "9 in 1 case, 255 in 2 cases: none of the job's; register again with "
        "--labels 1=shell,2=core,9=NAME,255=NAME (background: none of them)"
    )
    assert {problem.case for problem in report.set_aside} == {"case_3", "case_4", "case_5"}
    assert report.may_train  # few enough are set aside


def test_class_0_of_whole_images_is_shown() -> None:
    manifest = Manifest.model_validate(
        {"task": "classification", "labels": {"0": "benign", "1": "malignant"}, "training": []}
    )
    row = labels_row(manifest, Supervision("class", {0: "benign", 1: "malignant"}), Vocabulary())
    assert (row.found, row.expected) == ("0 benign, 1 malignant", "0 benign, 1 malignant")
    assert labels_row(manifest, Supervision(classes={1: "malignant"}), Vocabulary()).found == "1 malignant"


@pytest.mark.wild("standard: NIfTI-1, xyzt_units", "a volume of microns that calls them millimetres")
@pytest.mark.parametrize("factor", [1000.0, 1e-4])
def test_implausible_voxels_are_found_even_if_all_cases_share_them(dataset: Path, factor: float) -> None:
    for number in range(12):
        for sub, values in zip(("imagesTr", "labelsTr"), make_volume(number), strict=True):
            affine = np.diag([factor, factor, 2 * factor, 1.0])
            _save(dataset.parent / "in" / sub / f"case_{number}.nii.gz", values, affine)
    _again(dataset)
    report = check(dataset)
    assert [finding.kind for finding in report.findings] == ["implausible spacing"] * 12
    sides = "1,000 x 1,000 x 2,000 mm" if factor > 1 else "0.0001 x 0.0001 x 0.0002 mm"
    assert report.findings[0].what == (
        f"its voxels are {sides}, expected 0.001 to 50: is its unit right? Where it is not, export it in mm"
    )
    [row] = [row for row in report.rows if row.aspect == "spacing"]
    assert row.found == ("1,000 to 2,000 mm" if factor > 1 else "0.0001 to 0.0002 mm")
    assert len(look(dataset, workers=1, examine=1).suspicious) == 12
    resolve(dataset, {"spacing": "accept"})
    assert check(dataset).clean


def test_a_label_may_be_mapped_to_background(dataset: Path) -> None:
    labels = {"0": "background", "1": "shell", "2": "core"}
    _edit(dataset, lambda v: v.update(labels=labels, label_map={"core": None}))
    assert check(dataset, classes={1: "shell"}).may_train
    case = read_cases(dataset, DATA.split, 1, Supervision(classes={1: "shell"})).train[0]
    assert set(np.unique(case.read_label().values)) == {0, 1}


@pytest.mark.parametrize(
    ("settings", "aspect"),
    [
        ({"modality": "ct"}, "modality"),
        ({"patch": (16, 16)}, "size"),
        ({"channels": ("t1", "t2")}, "channels"),
        ({"spacing_range": (1.5, 3.0)}, "spacing"),
        ({"size_range": (32, 64)}, "size"),
        ({"minimum_cases": 20}, "cases"),
    ],
)
def test_each_term_of_the_contract(dataset: Path, settings: dict[str, object], aspect: str) -> None:
    _edit(dataset, lambda v: v.update(modality={"0": "MRI"}))
    report = check(dataset, DATA.model_copy(update=settings))
    assert not report.may_train
    assert [row.aspect for row in report.rows if row.verdict == "does not fit"] == [aspect]


def test_only_allowed_lists_are_used(dataset: Path) -> None:
    def deal(values: dict) -> None:  # type: ignore[type-arg]
        values["validation"], values["test"] = values["training"][:2], values["training"][2:5]
        values["training"] = values["training"][5:]

    _edit(dataset, deal)
    data = DATA.model_copy(update={"splits": ("training", "validation")})
    cases = read_cases(dataset, data.split, 1, Supervision(classes=CLASSES), data.splits)
    assert len(cases.validation) == 2
    assert len(cases.train) + len(cases.test) == 7


def _not_finite(folder: Path) -> None:
    values = make_volume(1)[0]
    values[1, 1, 1] = np.inf
    _save(folder / "imagesTr" / "case_3.nii.gz", values)


def _unreadable(folder: Path) -> None:
    (folder / "imagesTr" / "case_3.nii.gz").write_bytes(b"nothing")


def _constant(folder: Path) -> None:
    _save(folder / "imagesTr" / "case_3.nii.gz", np.zeros((20, 20, 20), np.float32))


def _off_grid(folder: Path) -> None:
    _save(folder / "labelsTr" / "case_3.nii.gz", make_volume(3)[1], np.diag([1.0, 1, 1.1, 1]))


def _vocabulary(folder: Path) -> None:
    values = make_volume(3)[1]
    values[0, 0, 0] = 5
    _save(folder / "labelsTr" / "case_3.nii.gz", values)


def _empty(folder: Path) -> None:
    _save(folder / "labelsTr" / "case_3.nii.gz", np.zeros((20, 20, 20), np.uint8))


def _copy(folder: Path) -> None:
    (folder / "imagesTr" / "case_3.nii.gz").write_bytes((folder / "imagesTr" / "case_1.nii.gz").read_bytes())


def _looks_the_same(folder: Path) -> None:
    values = np.asarray(nib.load(folder / "imagesTr" / "case_1.nii.gz").dataobj)
    noise = np.random.default_rng(0).normal(0, 0.02, values.shape)
    _save(folder / "imagesTr" / "case_3.nii.gz", ((values + noise) * 200 + 40).astype(np.float32))


def _spacing(folder: Path) -> None:
    for sub in ("imagesTr", "labelsTr"):
        values = np.asarray(nib.load(folder / sub / "case_3.nii.gz").dataobj)
        _save(folder / sub / "case_3.nii.gz", values, np.diag([9.0, 9, 9, 1]))


def _intensity(folder: Path) -> None:
    values = np.asarray(nib.load(folder / "imagesTr" / "case_3.nii.gz").dataobj)
    _save(folder / "imagesTr" / "case_3.nii.gz", values * 5000)


@pytest.mark.parametrize("registered", [True, False], ids=["registered", "plain"])
@pytest.mark.parametrize(
    ("damage", "kind", "message"),
    [
        (_unreadable, None, "cannot be read as NIfTI"),
        (_not_finite, None, "not finite"),
        (_constant, None, "its image is constant"),
        (_off_grid, None, "lies elsewhere in space"),
        (_vocabulary, None, "its label holds the values 5, expected only 0, 1, 2"),
        (_empty, None, "its label is empty"),
        (_copy, "copies with conflicting labels", "is the same file as that of case_1, and their labels contradict"),
        (_looks_the_same, "copies with conflicting labels", "looks the same as that of case_1"),
        (_spacing, "outlier spacing", "its voxels are 9 x 9 x 9 mm, far from the others'"),
        (_intensity, "outlier intensity", "far from the others'"),
    ],
)
def test_each_fault_is_found_with_its_case(
    tmp_path: Path, damage: Callable[[Path], None], kind: str | None, message: str, registered: bool
) -> None:
    folder = make_site(tmp_path / "in", 12)
    damage(folder)
    if registered:
        register(RegisterOptions(folder, "balls", tmp_path / "set", labels={0: "background", **CLASSES}))
        folder = tmp_path / "set"
    report = check(folder)
    assert not report.clean
    found = [*report.set_aside, *report.findings]
    assert any(item.case == "case_3" and message in str(item) for item in found), found
    assert kind is None or kind in {finding.kind for finding in report.findings}
    assert {item.case for item in found} == {"case_3"}


def test_a_patient_in_two_lists_is_found(dataset: Path) -> None:
    def deal(values: dict) -> None:  # type: ignore[type-arg]
        values["test"] = values["training"][:2]
        values["training"] = values["training"][2:]
        values["training"][0]["patient"] = values["test"][0]["patient"]

    _edit(dataset, deal)
    report = check(dataset)
    assert [finding.kind for finding in report.findings] == ["same patient in two splits"]
    assert not report.may_train


def test_a_case_of_another_modality_is_found(dataset: Path) -> None:
    def change(values: dict) -> None:  # type: ignore[type-arg]
        for entry in values["training"]:
            entry["modality"] = "CT" if entry["name"] == "case_3" else "MR"

    _edit(dataset, change)
    report = check(dataset)
    assert [(f.kind, f.case) for f in report.findings] == [("wrong modality", "case_3")]
    assert "its modality is CT, expected mri (MR, MRI)" in str(report.findings[0])


def test_many_cases_of_another_scale_are_no_outliers(tmp_path: Path) -> None:
    folder = make_site(tmp_path / "in", 12)
    for number in range(4):
        path = folder / "imagesTr" / f"case_{number}.nii.gz"
        _save(path, np.asarray(nib.load(path).dataobj) * 5000)
    assert check(folder).clean


def test_few_bad_cases_are_set_aside_and_many_are_an_error(tmp_path: Path) -> None:
    folder = make_site(tmp_path / "in", 24)
    (folder / "imagesTr" / "case_3.nii.gz").write_bytes(b"nothing")
    register(RegisterOptions(folder, "balls", tmp_path / "set"))
    usable = usable_cases(tmp_path / "set", DATA, Supervision(classes=CLASSES), 1, "west")
    assert [problem.case for problem in usable.set_aside] == ["case_3"]
    assert len(list(usable.cases)) == 23
    report = check(tmp_path / "set")
    assert report.may_train
    assert not report.clean
    (folder / "imagesTr" / "case_4.nii.gz").write_bytes(b"")
    register(RegisterOptions(folder, "balls", tmp_path / "set"))
    with pytest.raises(DataError, match="west: 2 of 24 cases cannot be used") as error:
        usable_cases(tmp_path / "set", DATA, Supervision(classes=CLASSES), 1, "west")
    assert "case_3: " in str(error.value)
    assert "case_4: " in str(error.value)
    assert "2 of 24 cases are set aside (8%), more than 5%" in check(tmp_path / "set").why_not


def test_files_changed_since_registering_are_read_again(dataset: Path) -> None:
    _constant(dataset.parent / "in")
    report = check(dataset)
    assert [problem.case for problem in report.set_aside] == ["case_3"]


def test_identifying_paths_text_headers_and_faces_give_warnings(tmp_path: Path) -> None:
    folder = make_site(tmp_path / "in", 3)
    for sub in ("imagesTr", "labelsTr"):
        (folder / sub / "case_0.nii.gz").rename(folder / sub / "Potter_Harry_19800731.nii.gz")
    image = nib.load(folder / "imagesTr" / "case_1.nii.gz")
    image.header["descrip"] = b"Granger, Hermione"
    nib.save(image, folder / "imagesTr" / "case_1.nii.gz")
    (folder / "dataset.json").unlink()
    register(RegisterOptions(folder, "balls", tmp_path / "set"))
    large = {"shape": [180, 220, 160], "modality": "MR", "source": "brain/a"}
    _edit(
        tmp_path / "set", lambda v: v["training"][2].update(large, notes=["burned-in annotation: its header says YES"])
    )
    report = check(tmp_path / "set", DATA.model_copy(update={"minimum_cases": 2}))
    kinds = {warning.kind for warning in report.warnings}
    assert kinds == {"name in path", "text in header", "burned-in annotation", "faces"}
    assert any("pydeface" in warning.what for warning in report.warnings)


def test_numbered_objects_become_one_class(tmp_path: Path) -> None:
    values = {"labels": {"0": "background", "1": "1"}, "label_kind": "instances", "training": []}
    (tmp_path / "dataset.json").write_text(json.dumps(values))
    manifest = read_manifest(tmp_path)
    assert match_labels(manifest, Supervision(classes={1: "nucleus"})).values == {1: 1}
    assert match_labels(manifest, Supervision()) == Vocabulary(instances=True), "a job without classes converts nothing"
    assert "number objects of one kind" in match_labels(manifest, Supervision(classes={1: "a", 2: "b"})).problems[0]
