"""Case names are unique in every layout."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dicoms import make_xray
from oncofed.data import register as registering
from oncofed.data.decisions import decided
from oncofed.data.files import FILES_TABLE
from oncofed.data.layouts.base import distinct_names
from oncofed.data.manifest import Manifest, read_manifest
from oncofed.data.register import RegisterOptions, register
from oncofed.data.resolve import resolve


def read(source: Path, out: Path, **more: object) -> Manifest:
    return register(RegisterOptions(source, "demo", out, workers=1, **more))  # type: ignore[arg-type]


def pictures(folder: Path, *names: str) -> Path:
    for seed, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        values = np.random.default_rng(seed).integers(0, 255, (24, 20), np.uint8)
        if "mask" in name or "labels" in name:
            values[:], values[4:9, 4:9] = 0, 1
        Image.fromarray(values).save(folder / name)
    return folder


def _nnunet(folder: Path) -> Path:
    pictures(folder, *(f"{where}/x_0000.png" for where in ("imagesTr", "imagesVa")), "labelsTr/x.png", "labelsVa/x.png")
    header = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "a": 1}, "file_ending": ".png"}
    (folder / "dataset.json").write_text(json.dumps(header))
    return folder


def _decathlon(folder: Path) -> Path:
    names = ("a/1.png", "b/1.png", "c/1.png", "b_1.png")
    pictures(folder, *names)
    cases = [{"image": name, "label": number % 2, "patient": "1"} for number, name in enumerate(names)]
    header = {"labels": {"0": "x", "1": "y"}, "training": cases}
    (folder / "dataset.json").write_text(json.dumps(header))
    return folder


def _table(folder: Path) -> Path:
    names = ("a/1.png", "b/1.png", "c/1.png", "b_1.png")
    pictures(folder, *names)
    (folder / "t.csv").write_text("\n".join(["image,label", *(f"{name},{n % 2}" for n, name in enumerate(names))]))
    return folder


_LAYOUTS = {
    "class folders": lambda folder: pictures(folder, *(f"{c}/{n}.png" for c in "ABC" for n in range(4))),
    "class folders with folders": lambda folder: pictures(
        folder, *(f"{c}/{n}.png" for c in "AB" for n in range(2)), "A/x/1.png", "A_x/1.png", "A_x/2.png", "A/1.jpg"
    ),
    "train and test": lambda folder: pictures(folder, *(f"{s}/{c}/1.png" for s in ("train", "test") for c in "AB")),
    "loose": lambda folder: pictures(folder, "a/1.png", "b/1.png", "b_1.png", "1.png"),
    "with masks": lambda folder: pictures(
        folder, *(f"{s}/{what}/1.png" for s in ("p", "q") for what in ("images", "masks"))
    ),
    "nnU-Net": _nnunet,
    "Decathlon": _decathlon,
    "table": _table,
}


@pytest.mark.wild("standard: none", "images of one name in two folders: one hides the other")
@pytest.mark.parametrize("make", _LAYOUTS.values(), ids=_LAYOUTS)
def test_names_differ_in_every_layout(tmp_path: Path, make: object) -> None:
    source = make(tmp_path / "in")  # type: ignore[operator]
    manifest = read(source, tmp_path / "out")
    entries = manifest.entries
    masks = {"masks", "labelsTr", "labelsVa"}
    images = [path for path in source.rglob("*.*") if path.suffix in {".png", ".jpg"} and not masks & set(path.parts)]
    assert not manifest.quarantine
    assert len(entries) == len(images)
    assert set(Counter(entry.name for entry in entries).values()) == {1}
    with (tmp_path / "out" / FILES_TABLE).open() as file:
        said = {row["path"]: row["case"] for row in csv.DictReader(file) if row["use"] == "image"}
    assert said == {entry.source: entry.name for entry in entries}
    assert len({entry.patient for entry in entries}) == _patients(source, len(images))


def _patients(source: Path, images: int) -> int:
    """Return the number of patients.

    One per image, or those named in ``dataset.json``.
    """
    listed = json.loads((source / "dataset.json").read_text()) if (source / "dataset.json").is_file() else {}
    return 1 if "training" in listed else images


@pytest.mark.wild("standard: none", "images that resolve leaves out though they are no copies")
def test_only_a_copy_is_left_out_among_classes(tmp_path: Path) -> None:
    source = _LAYOUTS["class folders"](tmp_path / "in")
    (source / "B" / "00.png").write_bytes((source / "B" / "1.png").read_bytes())
    read(source, tmp_path / "out")
    resolve(tmp_path / "out", {"copies": "keep-one"})
    kept = {entry.source for entry in decided(read_manifest(tmp_path / "out")).entries}
    assert len(kept) == 12
    assert {"A/1.png", "C/1.png"} <= kept
    assert len(kept & {"B/1.png", "B/00.png"}) == 1


def test_a_patient_in_the_table_may_have_an_images_name(tmp_path: Path) -> None:
    source = pictures(tmp_path / "in", "a/1.png", "b/1.png", "c/2.png")
    (source / "t.csv").write_text("image,label,patient\na/1.png,0,1\nb/1.png,1,1\nc/2.png,1,2\n")
    assert len({entry.patient for entry in read(source, tmp_path / "out").entries}) == 2


def test_setting_aside_a_case_keeps_others_with_its_name(tmp_path: Path) -> None:
    source = pictures(tmp_path / "in", "a/1.png", "b/1.png")
    (source / "t.csv").write_text("image,label\na/1.png,x\na/1.png,y\nb/1.png,y\n")
    manifest = read(source, tmp_path / "out")
    assert [(bad.source, bad.files) for bad in manifest.quarantine] == [("a/1.png", 1)]
    assert [entry.source for entry in manifest.entries] == ["b/1.png"]
    assert manifest.files["image"] == 1
    assert manifest.quarantine[0].name != manifest.entries[0].name


@pytest.mark.wild("standard: none", "images of one name that write over each other")
def test_dicom_images_with_the_same_name_are_all_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shades = {}
    for number in range(3):
        values = np.random.default_rng(number).integers(0, 4000, (30, 20)).astype(np.uint16)
        make_xray(tmp_path / "in", values, f"{number}.dcm", PatientID="ANON")
        shades[f"{number}.dcm"] = int(values.max())
    monkeypatch.setattr(registering, "hashed_key", lambda salt, text, length=16: "0" * length)
    manifest = read(tmp_path / "in", tmp_path / "out")
    assert len({entry.name for entry in manifest.entries}) == 3
    written = {entry.source: np.asarray(Image.open(tmp_path / "out" / str(entry.image))) for entry in manifest.entries}
    assert {source: int(values.max()) for source, values in written.items()} == shades


_PART = st.sampled_from(["A", "B", "A_x", "x", "1", "x_1", "1-2"])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(_PART, _PART), min_size=1, max_size=12))
def test_all_names_become_distinct(names: list[tuple[str, str]]) -> None:
    found = distinct_names(names)
    assert len(set(found)) == len(names)
    once = Counter(name for name, _ in names)
    assert all(new == name for new, (name, _) in zip(found, names, strict=True) if once[name] == 1)
