"""Class folders with stray files and spelling variants."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dicoms import make_xray
from pictures import pictures, read


def classes(*names: str, count: int = 3, top: str = "") -> list[str]:
    return [f"{top}{name}/{name[0]}{n}.png" for name in names for n in range(count)]


@pytest.mark.wild("standard: none", "one stray image that takes the class from all others")
@pytest.mark.parametrize(
    "names",
    [
        [*classes("benign", "malignant"), "logo.png"],
        [*classes("benign", "malignant", count=30), "logo.png", "b.jpg", "c.jpg"],
        [*classes("a", "b", top="train/"), *classes("a", "b", top="test/"), "logo.png"],
        [*classes("a", "b", top="train/"), *classes("a", "b", top="test/"), "train/logo.png"],
    ],
)
def test_a_stray_image_is_left_out_of_class_folders(tmp_path: Path, names: list[str]) -> None:
    manifest = read(pictures(tmp_path / "in", *names), tmp_path / "out")
    stray = [name for name in names if Path(name).stem in {"logo", "b", "c"}]
    assert manifest.task == "classification"
    assert len(manifest.labels) == 2
    assert {entry.source for entry in manifest.entries} == set(names) - set(stray)
    assert all(manifest.labels[str(entry.label)] in str(entry.source) for entry in manifest.entries)
    assert manifest.left_out == {"image outside a class folder": len(stray)}


def test_folders_that_may_be_classes_are_reported(tmp_path: Path) -> None:
    names = [*classes("benign", "malignant", count=4), *(f"{n}.png" for n in range(4))]
    manifest = read(pictures(tmp_path / "in", *names), tmp_path / "out")
    assert "layout: loose images" in manifest.description
    assert [remark[:45] for remark in manifest.remarks] == ["folders whose names may be classes, 2: benign"]
    assert "--task classification" in manifest.remarks[0]
    manifest = read(tmp_path / "in", tmp_path / "out", task="classification")
    assert (len(manifest.entries), manifest.left_out) == (8, {"image outside a class folder": 4})


def test_folders_of_patients_are_not_classes(tmp_path: Path) -> None:
    names = [*(f"patient_{p}/{n}.png" for p in range(3) for n in range(3)), *(f"{n}.png" for n in range(4))]
    assert not read(pictures(tmp_path / "in", *names), tmp_path / "out").remarks


@pytest.mark.wild("standard: none", "one class written in two ways as two")
@pytest.mark.parametrize("kind", ["folders", "table", "DICOM"])
def test_classes_that_differ_in_case_or_spaces_are_reported(tmp_path: Path, kind: str) -> None:
    source = tmp_path / "in"
    if kind == "folders":
        manifest = read(pictures(source, *classes("Normal", "normal", "tumour")), tmp_path / "out")
    else:
        labels = ("Normal", "normal", "tumour")
        key = "image" if kind == "table" else "patient"
        rows = [f"{key},label", *(f"{n}{'.png' if kind == 'table' else ''},{label}" for n, label in enumerate(labels))]
        source.mkdir()
        table = (source if kind == "table" else tmp_path) / "t.csv"
        table.write_text("\n".join(rows))
        for n in range(3):
            pictures(source, f"{n}.png") if kind == "table" else make_xray(
                source, np.eye(30, 20, n).astype(np.uint16), f"{n}.dcm", PatientID=str(n)
            )
        manifest = read(source, tmp_path / "out", table=table, task="classification")
    assert [remark.split(". ")[0] for remark in manifest.remarks] == [
        "classes whose names differ in case or spaces alone: 'Normal', 'normal'"
    ]
