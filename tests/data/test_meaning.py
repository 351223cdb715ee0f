"""Names of mask values, from masks and nearby files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oncofed.data.cases import read_cases
from oncofed.data.contract import Report, check_dataset
from oncofed.data.label_mapping import Supervision
from oncofed.data.label_names import named_values
from oncofed.data.manifest import Manifest
from oncofed.data.register import RegisterOptions, parse_labels, register
from oncofed.data.spec import DataSpec, SplitSpec

_SHAPE = (16, 16, 8)
_JOB = {1: "anterior", 2: "posterior"}
_SPEC = DataSpec(dataset="demo", patch=(8, 8, 8), minimum_cases=2)


def read(source: Path, out: Path, **more: object) -> Manifest:
    return register(RegisterOptions(source, "demo", out, workers=1, **more))  # type: ignore[arg-type]


def check(out: Path, classes: dict[int, str] | None = None) -> Report:
    return check_dataset(out, _SPEC, Supervision(classes=classes or _JOB), 1)


def write_nrrd(path: Path, values: np.ndarray, *segments: tuple[str, int, int]) -> None:
    """Write an NRRD as 3D Slicer does.

    With (name, value, layer) of each segment in its header.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    head = [
        "NRRD0004",
        "type: uint8",
        "dimension: 3",
        "space: left-posterior-superior",
        "sizes: {} {} {}".format(*values.shape),
        "space directions: (1,0,0) (0,1,0) (0,0,2)",
        "kinds: domain domain domain",
        "encoding: raw",
        "space origin: (0,0,0)",
    ]
    for n, (name, value, layer) in enumerate(segments):
        head += [f"Segment{n}_ID:=Segment_{n + 1}", f"Segment{n}_Name:={name}", f"Segment{n}_LabelValue:={value}"]
        head += [f"Segment{n}_Layer:={layer}", f"Segment{n}_Color:=0.5 0.5 0.5"]
    path.write_bytes("\n".join([*head, "", ""]).encode() + values.astype(np.uint8).tobytes(order="F"))


def _areas(first: int, second: int) -> np.ndarray:
    """Return a mask of 256 and 128 voxels by value."""
    values = np.zeros(_SHAPE, np.uint8)
    values[2:10, 2:10, 2:6], values[12:16, 2:10, 2:6] = first, second
    return values


def _image(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 90, _SHAPE).astype(np.uint8) + 100 * _areas(1, 1)


def slicer_site(folder: Path, *numbers: dict[str, int], ending: str = ".seg.nrrd", named: bool = True) -> Path:
    """Write one case per numbering.

    Anterior has 256 voxels, posterior 128.
    """
    for n, values in enumerate(numbers):
        write_nrrd(folder / "images" / f"c{n}.nrrd", _image(n))
        segments = [(name, value, 0) for name, value in values.items()] if named else []
        write_nrrd(folder / "labels" / f"c{n}{ending}", _areas(values["anterior"], values["posterior"]), *segments)
    return folder


_SWAPPED = ({"anterior": 1, "posterior": 2}, {"anterior": 2, "posterior": 1}, {"anterior": 1, "posterior": 2})


@pytest.mark.wild("Slicer#4886 #4733, slicerio#9, SlicerGitSVNArchive#1221", "names whose values differ between files")
@pytest.mark.parametrize("ending", [".nrrd", ".seg.nrrd"])
def test_slicer_names_get_one_numbering(tmp_path: Path, ending: str) -> None:
    source = slicer_site(tmp_path / "in", *_SWAPPED, ending=ending)
    manifest = read(source, tmp_path / "out")
    assert manifest.labels == {"0": "background", "1": "anterior", "2": "posterior"}
    assert [entry.label_values for entry in manifest.entries] == [{"0": 1664, "1": 256, "2": 128}] * 3
    assert [str(entry.label).partition("/")[0] for entry in manifest.entries] == ["source", "labels", "source"]
    assert manifest.files == {"image": 3, "label": 3}
    assert check(tmp_path / "out").may_train
    for case in read_cases(tmp_path / "out", SplitSpec(), 1, Supervision(classes={1: "posterior", 2: "anterior"})):
        values = case.read_label().values
        assert ((values == 2).sum(), (values == 1).sum()) == (256, 128)
        np.testing.assert_allclose(case.read_label().affine, case.read_image().affine)


@pytest.mark.wild("Slicer#4886", "values without names are a job's")
def test_names_shared_by_all_files_are_the_datasets(tmp_path: Path) -> None:
    numbers = {"anterior": 2, "posterior": 7}
    manifest = read(slicer_site(tmp_path / "in", numbers, numbers, numbers), tmp_path / "out")
    assert manifest.labels == {"0": "background", "2": "anterior", "7": "posterior"}
    assert all(str(entry.label).startswith("source/") for entry in manifest.entries)
    assert not check(tmp_path / "out", {1: "cyst", 2: "vessel"}).may_train


@pytest.mark.wild("Slicer#4733", "the user's names against the files'")
def test_the_users_names_of_values(tmp_path: Path) -> None:
    agreeing = slicer_site(tmp_path / "agreeing", *[_SWAPPED[1]] * 3)
    manifest = read(agreeing, tmp_path / "one", labels=parse_labels("1=hinten,2=vorn"))  # their own words for them
    assert manifest.labels == {"0": "background", "1": "hinten", "2": "vorn"}
    assert manifest.entries[0].label_values == {"0": 1664, "1": 128, "2": 256}
    swapped = slicer_site(tmp_path / "swapped", *_SWAPPED)
    manifest = read(swapped, tmp_path / "two", labels=parse_labels("1=posterior,2=anterior"))
    assert manifest.labels == {"0": "background", "1": "posterior", "2": "anterior"}
    assert [entry.label_values for entry in manifest.entries] == [{"0": 1664, "1": 128, "2": 256}] * 3
    manifest = read(swapped, tmp_path / "three", labels=parse_labels("1=hinten,2=vorn"))
    assert not manifest.entries  # the names may be of either
    assert {bad.reason for bad in manifest.quarantine} == {
        (
            "its mask names its values anterior, posterior, other masks give these names to other values, and --labels "
            "names neither: name them as the files do"
        )
    }


def test_a_mask_without_names_among_named_ones_is_set_aside(tmp_path: Path) -> None:
    source = slicer_site(tmp_path / "in", *_SWAPPED)
    write_nrrd(source / "labels" / "c0.seg.nrrd", _areas(1, 2))
    manifest = read(source, tmp_path / "out")
    assert [(bad.name, bad.reason.partition(".")[0]) for bad in manifest.quarantine] == [
        ("c0", "its mask does not name its values, as other masks of the folder do")
    ]
    # As the refusal advises: the user names the values that no file names.
    manifest = read(source, tmp_path / "out", labels=parse_labels("2=anterior,1=posterior"))
    assert manifest.quarantine == []
    # Written were 1, 2 without names; anterior 2, posterior 1; and anterior 1, posterior 2. Anterior is the larger.
    found = {entry.name: entry.label_values for entry in manifest.entries}
    assert found["c0"] == {"0": 1664, "1": 256, "2": 128}
    assert found["c1"] == found["c2"] == {"0": 1664, "1": 128, "2": 256}
    said = {entry.name for entry in manifest.entries if any("what --labels says" in note for note in entry.notes)}
    assert said == {"c0"}


@pytest.mark.wild("slicerio SegmentationOverlapping", "segments that overlap, in layers")
def test_layers_are_refused_by_name(tmp_path: Path) -> None:
    source = slicer_site(tmp_path / "in", *_SWAPPED)
    write_nrrd(source / "labels" / "c1.seg.nrrd", _areas(1, 1), ("anterior", 1, 0), ("posterior", 1, 1))
    manifest = read(source, tmp_path / "out")
    (bad,) = manifest.quarantine
    assert bad.reason.startswith("its segments overlap (posterior in a layer of their own): no task learns overlapping")


@settings(max_examples=12, deadline=None)
@given(
    numbering=st.lists(st.permutations([1, 2, 5, 9]), min_size=2, max_size=4),
    names=st.lists(
        st.text(
            st.characters(codec="utf-8", exclude_categories=("C", "Z"), exclude_characters=":=\\#_-"),
            min_size=1,
            max_size=8,
        ),
        min_size=4,
        max_size=4,
        unique_by=lambda name: name.lower(),
    ),
)
def test_any_numbering_is_unified(
    tmp_path_factory: pytest.TempPathFactory, numbering: list[list[int]], names: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("slicer")
    for n, values in enumerate(numbering):
        mask = np.zeros(_SHAPE, np.uint8)
        for place, value in enumerate(values):  # the k-th name has k + 1 voxels
            mask[2 * place, : place + 1, 0] = value
        write_nrrd(folder / "in" / "images" / f"c{n}.nrrd", _image(n))
        segments = [(name, value, 0) for name, value in zip(names, values, strict=True)]
        write_nrrd(folder / "in" / "labels" / f"c{n}.nrrd", mask, *segments)
    manifest = read(folder / "in", folder / "out")
    value_of = {name: value for value, name in manifest.labels.items()}
    assert len(manifest.entries) == len(numbering)
    for entry in manifest.entries:
        assert [(entry.label_values or {})[value_of[name]] for name in names] == [1, 2, 3, 4]


def _beside(kind: str, folder: Path) -> None:
    snap = '0 0 0 0 0 0 0 "Clear Label"\n  1   255    0    0    1  1  1  "posterior"\n 2 0 9 0 1 1 1 "anterior"\n'
    texts = {
        "ITK-SNAP": ("labels.txt", f"# ITK-SnAP Label Description File\n{snap}"),
        "colour table": ("c0.ctbl", "# Color\n0 background 0 0 0 0\n1 posterior 255 0 0 255\n2 anterior 0 255 0 255\n"),
        "BIDS": ("atlas_dseg.tsv", "index\tname\n1\tposterior\n2\tanterior\n"),
    }
    name, text = texts[kind]
    (folder / name).write_text(text)


@pytest.mark.wild("standard: BIDS dseg.tsv; ITK-SNAP and Slicer label descriptions", "names in a file beside the mask")
@pytest.mark.parametrize("kind", ["ITK-SNAP", "colour table", "BIDS"])
def test_names_in_a_file_beside_the_masks(tmp_path: Path, kind: str) -> None:
    (tmp_path / "in").mkdir()
    nib.save(nib.Nifti1Image(_image(1), np.eye(4)), tmp_path / "in" / "c0.nii.gz")
    nib.save(nib.Nifti1Image(_areas(2, 1), np.eye(4)), tmp_path / "in" / "c0_seg.nii.gz")
    _beside(kind, tmp_path / "in")
    (tmp_path / "in" / "notes.txt").write_text("1 scan was repeated\n")
    manifest = read(tmp_path / "in", tmp_path / "out")
    assert manifest.labels == {"0": "background", "1": "posterior", "2": "anterior"}
    assert manifest.files["table"] == 1


@pytest.mark.wild("standard: NIfTI extension of Connectome Workbench", "names in an extension of NIfTI")
def test_names_in_an_extension_of_nifti(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for n, values in enumerate(((1, 2), (2, 1))):
        nib.save(nib.Nifti1Image(_image(n), np.eye(4)), tmp_path / "in" / f"c{n}.nii.gz")
        mask = nib.Nifti1Image(_areas(*values), np.eye(4))
        labels = "".join(
            f'<Label Key="{value}" Red="1" Green="0" Blue="0" Alpha="1"><![CDATA[{name}]]></Label>'
            for name, value in zip(("anterior", "posterior"), values, strict=True)
        )
        text = f'<?xml version="1.0"?><CaretExtension><VolumeInformation Index="0"><LabelTable>{labels}</LabelTable>'
        mask.header.extensions.append(nib.nifti1.Nifti1Extension(0, text.encode()))
        nib.save(mask, tmp_path / "in" / f"c{n}_seg.nii.gz")
    manifest = read(tmp_path / "in", tmp_path / "out")
    assert manifest.labels == {"0": "background", "1": "anterior", "2": "posterior"}
    assert [entry.label_values for entry in manifest.entries] == [{"0": 1664, "1": 256, "2": 128}] * 2


# --- dataset.json


@pytest.mark.wild(
    "standard: Medical Segmentation Decathlon", "several tasks below one folder, each with names of its own"
)
def test_each_task_below_a_folder_names_its_own_values(tmp_path: Path) -> None:
    for task, labels in (("Task03", {"1": "liver", "2": "tumour"}), ("Task09", {"1": "spleen", "2": "liver"})):
        folder = nnunet_site(tmp_path / "in" / task, {"0": "background", **labels}, _areas(1, 2))
        for file in (folder / "imagesTr").iterdir():
            file.rename(file.with_name(f"{task}{file.name.replace('_0000', '')}"))
        for file in (folder / "labelsTr").iterdir():
            file.rename(file.with_name(f"{task}{file.name}"))
    manifest = read(tmp_path / "in", tmp_path / "out")
    assert manifest.labels == {"0": "background", "1": "liver", "2": "spleen", "3": "tumour"}
    counts = {str(entry.source).partition("/")[0]: entry.label_values for entry in manifest.entries}
    assert counts == {"Task03": {"0": 1664, "1": 256, "3": 128}, "Task09": {"0": 1664, "2": 256, "1": 128}}
    assert manifest.files == {"image": 12, "label": 12, "table": 2}


def nnunet_site(folder: Path, labels: object, mask: np.ndarray) -> Path:
    for n in range(6):
        for where, values, name in (("imagesTr", _image(n), f"B_{n:03d}_0000"), ("labelsTr", mask, f"B_{n:03d}")):
            (folder / where).mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(values, np.eye(4)), folder / where / f"{name}.nii.gz")
    header = {"channel_names": {"0": "T1"}, "labels": labels, "numTraining": 6, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(header))
    return folder


@pytest.mark.wild("nnUNet#2762, dataset_format.md", "regions taken for classes of the same numbers")
@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (
            {"background": 0, "whole_tumor": [1, 2], "tumor_core": [2]},
            r"2 is of whole_tumor and tumor_core\. Let the job learn regions .*--labels 2=NAME",
        ),
        ({"background": 0, "anterior": [1, 2], "posterior": 2}, "2 is of anterior and posterior"),
    ],
)
def test_regions_that_overlap_are_refused_by_a_job_of_classes(
    tmp_path: Path, labels: dict[str, Any], said: str
) -> None:
    source = nnunet_site(tmp_path / "in", labels, _areas(1, 2))
    read(source, tmp_path / "out")
    report = check(tmp_path / "out")
    assert not report.may_train
    assert any(re.search(f"its labels are regions that overlap: {said}", reason) for reason in report.why_not)
    manifest = read(source, tmp_path / "out", labels=parse_labels("1=anterior,2=posterior"))
    assert manifest.labels == {"0": "background", "1": "anterior", "2": "posterior"}
    assert check(tmp_path / "out").may_train


@pytest.mark.wild("nnUNet#2762", "regions that do not overlap")
def test_regions_apart_are_classes_of_several_values(tmp_path: Path) -> None:
    mask = _areas(1, 2)
    mask[0, 0, :4] = 3
    read(nnunet_site(tmp_path / "in", {"background": 0, "anterior": [1, 3], "posterior": [2]}, mask), tmp_path / "out")
    assert check(tmp_path / "out").may_train
    for case in read_cases(tmp_path / "out", SplitSpec(), 1, Supervision(classes=_JOB)):
        assert np.bincount(case.read_label().values.ravel())[1:].tolist() == [260, 128]


@pytest.mark.wild("nnUNet dataset_format.md, ignore label", "voxels that nobody labelled, learned as background")
def test_unlabelled_values_must_be_stated_in_the_job(tmp_path: Path) -> None:
    mask = _areas(1, 2)
    mask[0] = 3
    read(
        nnunet_site(tmp_path / "in", {"background": 0, "anterior": 1, "posterior": 2, "ignore": 3}, mask),
        tmp_path / "out",
    )
    report = check(tmp_path / "out")
    assert not report.may_train
    (reason,) = [reason for reason in report.why_not if "nobody labelled" in reason]
    assert "Say in the job, under task, that they are left out: ignore: 3" in reason
    assert "label_map" not in reason
    assert check(tmp_path / "out", {**_JOB, 3: "ignore"}).may_train


@given(
    st.dictionaries(
        st.text("abcd", min_size=1, max_size=3),
        st.lists(st.integers(1, 6), min_size=1, max_size=3, unique=True),
        min_size=1,
        max_size=4,
    )
)
def test_regions_are_classes_only_if_no_value_is_shared(regions: dict[str, list[int]]) -> None:
    values = {value for those in regions.values() for value in those}
    expected = {str(v): " + ".join(name for name, those in regions.items() if v in those) for v in values}
    assert named_values(regions, Path("dataset.json")) == expected


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ({"0": "background", "1": "spleen"}, {"0": "background", "1": "spleen"}),
        ({"background": 0, "spleen": 1}, {"0": "background", "1": "spleen"}),
        ({"background": "0", "spleen": "1"}, {"0": "background", "1": "spleen"}),
        ({"0": "background", "1": "1"}, {"0": "background", "1": "1"}),
        (["background", "spleen"], {"0": "background", "1": "spleen"}),
        ("spleen", None),
    ],
)
def test_names_as_each_version_writes_them(labels: object, expected: dict[str, str] | None) -> None:
    assert named_values(labels, Path("dataset.json")) == expected
