"""Every layout becomes a manifest.

Bad files are set aside by name; only changed ones are read again.
"""

from __future__ import annotations

import gzip
import json
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import load_decathlon_datalist
from PIL import Image
from pydicom import dcmread

from dicoms import make_series, make_xray
from oncofed.data import case_readers
from oncofed.data.manifest import Entry, Manifest, read_manifest, write_manifest
from oncofed.data.register import RegisterOptions, parse_labels, register
from oncofed.errors import DataError
from synthetic import make_site, make_volume

_UIDS = ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")


def read(source: Path, out: Path, **settings: object) -> Manifest:
    return register(RegisterOptions(source, "demo", out, **settings))  # type: ignore[arg-type]


def _png(path: Path, values: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return path


def _field(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (24, 32, 3), dtype=np.uint8)


def test_the_decathlons_layout_registers_and_monai_reads_it(tmp_path: Path) -> None:
    site = make_site(tmp_path / "in")
    manifest = read(site, tmp_path / "out")
    assert len(manifest.training) == 6
    entry = manifest.training[0]
    assert (entry.shape, entry.spacing, entry.orientation, entry.dtype) == ([20, 20, 20], [1, 1, 1], "RAS", "float32")
    assert set(entry.label_values or {}) == {"0", "1", "2"}
    for item in load_decathlon_datalist(str(tmp_path / "out" / "dataset.json"), True, "training"):
        assert Path(item["image"]).is_file()
        assert Path(item["label"]).is_file()


def test_nnunets_layout_with_several_channels(tmp_path: Path) -> None:
    for case in range(3):
        for channel in range(2):
            _nifti(tmp_path / "in" / "imagesTr" / f"case{case}_{channel:04d}.nii.gz", make_volume(case + channel)[0])
        _nifti(tmp_path / "in" / "labelsTr" / f"case{case}.nii.gz", make_volume(case)[1])
    header = {
        "channel_names": {"0": "T1", "1": "T2"},
        "labels": {"background": 0, "shell": 1, "core": 2},
        "numTraining": 3,
        "file_ending": ".nii.gz",
    }
    (tmp_path / "in" / "dataset.json").write_text(json.dumps(header))
    manifest = read(tmp_path / "in", tmp_path / "out")
    assert manifest.labels == {"0": "background", "1": "shell", "2": "core"}
    assert manifest.modality == {"0": "T1", "1": "T2"}
    assert [(e.channels, len(e.images)) for e in manifest.training] == [(2, 2)] * 3
    (tmp_path / "in" / "imagesTr" / "case1_0001.nii.gz").unlink()
    manifest = read(tmp_path / "in", tmp_path / "out")
    assert len(manifest.training) == 2
    assert "has 1 channels, expected 2" in manifest.quarantine[0].reason


def test_a_table_gives_labels_patients_splits_and_tags(tmp_path: Path) -> None:
    site = make_site(tmp_path / "in")
    (site / "dataset.json").unlink()
    rows = ["image\tlabel\tpatient\tsplit\tscanner"]
    for number, split in enumerate(("train", "train", "val", "test", "train", "test")):
        name = f"case_{number}.nii.gz"
        rows.append(f"imagesTr/{name}\tlabelsTr/{name}\tMRN-{number // 2}\t{split}\tA{number % 2}")
    (site / "list.tsv").write_text("\n".join(rows))
    manifest = read(site, tmp_path / "out")
    assert (len(manifest.training), len(manifest.validation), len(manifest.test)) == (3, 1, 2)
    assert len({entry.patient for entry in manifest.entries}) == 3
    assert {entry.tags["scanner"] for entry in manifest.entries} == {"A0", "A1"}
    assert "MRN" not in (tmp_path / "out" / "dataset.json").read_text()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("../secret.nii.gz,,", "lies outside the folder"),
        ("/etc/passwd,,", "lies outside the folder"),
        ("imagesTr/none.nii.gz,,", "its image file is missing"),
        (",,", "has no image"),
        ("imagesTr/case_0.nii.gz,labelsTr/none.nii.gz,", "its label file is missing"),
        ("imagesTr/case_0.nii.gz,labelsTr/case_0.nii.gz,later", "says split 'later'"),
    ],
)
def test_a_bad_row_of_a_table_is_set_aside(tmp_path: Path, row: str, message: str) -> None:
    site = make_site(tmp_path / "in")
    (site / "dataset.json").unlink()
    (site / "list.csv").write_text(f"image,label,split\n{row}\nimagesTr/case_1.nii.gz,labelsTr/case_1.nii.gz,\n")
    manifest = read(site, tmp_path / "out")
    assert len(manifest.entries) == 1
    assert message in manifest.quarantine[0].reason


def test_images_with_numbered_objects(tmp_path: Path) -> None:
    for number in range(8):
        _png(tmp_path / "in" / "images" / f"f{number}.png", _field(number))
        mask = np.zeros((24, 32), np.uint16)
        for k in range(3 + 2 * number):
            mask[2 * (k % 10), 3 * (k // 10) : 3 * (k // 10) + 2] = k + 1
        _png(tmp_path / "in" / "masks" / f"f{number}_mask.png", mask)
    manifest = read(tmp_path / "in", tmp_path / "out", task="segmentation")
    assert manifest.label_kind == "instances"
    assert [entry.instances for entry in manifest.entries] == [3 + 2 * n for n in range(8)]
    assert all(set(entry.label_values or {}) == {"0", "1"} for entry in manifest.entries)
    assert (manifest.entries[0].shape, manifest.entries[0].channels) == ([32, 24], 3)


def test_masks_of_classes_are_not_taken_for_numbered_objects(tmp_path: Path) -> None:
    for number in range(8):
        _png(tmp_path / "in" / "images" / f"f{number}.png", _field(number))
        _png(tmp_path / "in" / "masks" / f"f{number}.png", (_field(number)[..., 0] // 64).astype(np.uint8))
    manifest = read(tmp_path / "in", tmp_path / "out")
    assert manifest.label_kind == "classes"
    assert manifest.labels == {"0": "background", "1": "1", "2": "2", "3": "3"}


def test_real_nuclei(real_data: Path, tmp_path: Path) -> None:
    manifest = read(real_data / "nuclei", tmp_path / "out", task="segmentation")
    assert len(manifest.entries) == 502
    assert manifest.label_kind == "instances"
    assert not manifest.quarantine
    assert {entry.tags["stain"] for entry in manifest.entries} == {"he", "fluorescence", "brightfield"}


@pytest.mark.parametrize("nested", [False, True])
def test_one_folder_per_class(tmp_path: Path, nested: bool) -> None:
    for split in ("train", "test") if nested else ("",):
        for number in range(6):
            _png(tmp_path / "in" / split / ("benign", "malignant")[number % 2] / f"{number}.png", _field(number))
    manifest = read(tmp_path / "in", tmp_path / "out")
    assert (manifest.task, manifest.labels) == ("classification", {"0": "benign", "1": "malignant"})
    assert sorted({entry.label for entry in manifest.entries}) == [0, 1]
    assert len(manifest.test) == (6 if nested else 0)
    assert len({entry.name for entry in manifest.entries}) == len(manifest.entries)


def test_xrays_with_classes_by_patient(tmp_path: Path) -> None:
    for number in range(4):
        values = np.random.default_rng(number).integers(0, 4000, (30, 20)).astype(np.uint16)
        make_xray(tmp_path / "in", values, f"{number}.dcm", PatientID=f"P{number}")
    (tmp_path / "classes.csv").write_text("patient,label\nP0,normal\nP1,pneumonia\nP2,normal\nP3,pneumonia\n")
    manifest = read(tmp_path / "in", tmp_path / "out", table=tmp_path / "classes.csv", task="classification")
    assert manifest.labels == {"0": "normal", "1": "pneumonia"}
    assert sorted(entry.label for entry in manifest.entries) == [0, 0, 1, 1]  # type: ignore[type-var]
    assert {entry.modality for entry in manifest.entries} == {"DX"}


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_itk_formats_have_the_same_place_as_nifti(tmp_path: Path, suffix: str) -> None:
    affine = np.array([[-0.8, 0, 0, 10], [0, 0, 2.0, -5], [0, -0.7, 0, 3], [0, 0, 0, 1]])
    values = make_volume(1)[0]
    _nifti(tmp_path / "in" / "a.nii.gz", values, affine)
    sitk.WriteImage(sitk.ReadImage(str(tmp_path / "in" / "a.nii.gz")), str(tmp_path / "in" / f"b{suffix}"))
    one, two = read(tmp_path / "in", tmp_path / "out").entries
    np.testing.assert_allclose(one.affine, two.affine, atol=1e-4)  # type: ignore[arg-type]
    assert one.intensity == two.intensity


def test_loose_volumes_find_their_masks_and_bids_names_patients(tmp_path: Path) -> None:
    for subject in ("01", "02"):
        for session in ("a", "b"):
            folder = tmp_path / "in" / f"sub-{subject}" / f"ses-{session}" / "anat"
            _nifti(folder / f"sub-{subject}_ses-{session}_T1w.nii.gz", make_volume(1)[0])
            _nifti(folder / f"sub-{subject}_ses-{session}_T1w_seg.nii.gz", make_volume(1)[1])
    manifest = read(tmp_path / "in", tmp_path / "out")
    assert len(manifest.entries) == 4
    assert all(isinstance(entry.label, str) for entry in manifest.entries)
    assert len({entry.patient for entry in manifest.entries}) == 2


def _zero(path: Path) -> None:
    path.write_bytes(b"")


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:300])


def _encrypt(path: Path) -> None:
    path.write_bytes(b"Salted__" + os.urandom(500))


def _is_png(path: Path) -> None:
    path.write_bytes(_png(path.with_suffix(".png"), _field(1)).read_bytes())
    path.with_suffix(".png").unlink()


def _is_dicom(path: Path) -> None:
    (file, *rest) = make_series(path.parent / "dicom")
    path.write_bytes(file.read_bytes())
    for other in (file, *rest):
        other.unlink()


def _gigantic(path: Path) -> None:
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[40:48] = np.array([3, 9000, 9000, 9000], "<i2").tobytes()
    path.write_bytes(gzip.compress(bytes(content)))


def _larger_than_the_file(path: Path) -> None:
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[40:48] = np.array([3, 900, 900, 900], "<i2").tobytes()
    path.write_bytes(gzip.compress(bytes(content)))


def _nan(path: Path) -> None:
    values = make_volume(1)[0]
    values[3, 3, 3] = np.nan
    _nifti(path, values)


def _constant(path: Path) -> None:
    _nifti(path, np.full((20, 20, 20), 7, np.float32))


def _singular(path: Path) -> None:
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[296:312] = bytes(16)  # srow_y
    path.write_bytes(gzip.compress(bytes(content)))


def _without_voxels(path: Path) -> None:
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[42:48] = bytes(6)  # dim
    path.write_bytes(gzip.compress(bytes(content)))


def _without_voxel_size(path: Path) -> None:
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[80:92], content[252:256] = bytes(12), bytes(4)  # pixdim; qform_code, sform_code
    path.write_bytes(gzip.compress(bytes(content)))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_without_voxels, r"has no voxels: its size is \(0, 0, 0, 1\)"),
        (_without_voxel_size, r"does not say how large its voxels are \(pixdim is \[0.0, 0.0, 0.0\]\)"),
        (_zero, r"is empty \(0 bytes\)"),
        (_truncate, "cannot be read as NIfTI"),
        (_encrypt, "it looks like an encrypted file"),
        (_is_png, "it looks like a PNG image"),
        (_is_dicom, "it looks like a DICOM file"),
        (_gigantic, "more than half of this machine's memory|cannot hold"),
        (_larger_than_the_file, "cannot hold|cannot be read as NIfTI"),
        (_nan, "not finite"),
        (_constant, "its image is constant .every voxel is 7"),
        (_singular, "affine that is not invertible"),
    ],
)
def test_a_bad_file_is_set_aside_and_the_rest_is_registered(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    site = make_site(tmp_path / "in")
    damage(site / "imagesTr" / "case_2.nii.gz")
    manifest = read(site, tmp_path / "out")
    assert len(manifest.entries) == 5
    (bad,) = manifest.quarantine
    assert bad.name == "case_2"
    assert __import__("re").search(message, bad.reason), bad.reason
    assert str(tmp_path) not in bad.reason


def test_any_reader_error_sets_one_case_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site, original = make_site(tmp_path / "in"), case_readers.case_facts.read_case

    def read_case(images: list[Path], label: Path | None, **how: Any) -> object:
        if "case_2" in str(images[0]):
            raise KeyError("odd")
        if "case_3" in str(images[0]):
            raise MemoryError
        return original(images, label, **how)

    monkeypatch.setattr(case_readers.case_facts, "read_case", read_case)
    manifest = read(site, tmp_path / "out")
    assert len(manifest.entries) == 4
    assert {bad.name: bad.reason for bad in manifest.quarantine} == {
        "case_2": "cannot be read: its header or its pixels are damaged, or of a kind that is not known here. Copy it "
        "again, or export it in another format",
        "case_3": "cannot be read: it needs more memory than there is",
    }


def test_circular_links_are_followed_once(tmp_path: Path) -> None:
    site = make_site(tmp_path / "in")
    (site / "imagesTr" / "again").symlink_to(site)
    (site / "imagesTr" / "dangling").symlink_to(tmp_path / "nowhere")
    assert len(read(site, tmp_path / "out").entries) == 6


def test_a_file_without_read_permission_is_set_aside(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read every file")
    site = make_site(tmp_path / "in")
    (site / "imagesTr" / "case_1.nii.gz").chmod(0)
    assert "Permission" in read(site, tmp_path / "out").quarantine[0].reason


def test_a_folder_without_images_is_described(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "thesis.docx").write_text("chapter 1")
    with pytest.raises(DataError, match=r"no image found \(found 1 file that is no image \(.docx\)"):
        read(tmp_path / "in", tmp_path / "out")
    with pytest.raises(DataError, match="no such folder"):
        read(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(DataError, match="cannot be the images' own"):
        read(tmp_path / "in", tmp_path / "in")


def test_registering_again_reads_only_what_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = make_site(tmp_path / "in")
    make_series(site / "dicom")
    first = read(site, tmp_path / "out")
    reads: list[str] = []
    original = case_readers.FileWork.read
    monkeypatch.setattr(case_readers.FileWork, "read", lambda self: reads.append(self.item.name) or original(self))  # type: ignore[func-returns-value]
    assert read(site, tmp_path / "out") == first
    assert reads == []
    time.sleep(0.01)
    _nifti(site / "imagesTr" / "case_3.nii.gz", make_volume(77)[0])
    changed = read(site, tmp_path / "out")
    assert reads == ["case_3"]
    assert {e.name: e.patient for e in changed.entries} == {e.name: e.patient for e in first.entries}
    (site / "imagesTr" / "case_3.nii.gz").unlink()
    assert len(read(site, tmp_path / "out").entries) == 5


def test_a_dicom_series_is_converted_once_and_removed_with_its_patient(tmp_path: Path) -> None:
    make_series(tmp_path / "in" / "a")
    files = make_series(tmp_path / "in" / "b", patient="MRN-2")
    out = tmp_path / "out"
    read(tmp_path / "in", out)
    written = {path: path.stat().st_mtime_ns for path in (out / "images").iterdir()}
    read(tmp_path / "in", out)
    assert {path: path.stat().st_mtime_ns for path in (out / "images").iterdir()} == written
    next(iter(written)).unlink()
    assert len(read(tmp_path / "in", out).entries) == 2
    assert set((out / "images").iterdir()) == set(written)
    for file in files:
        file.unlink()
    assert len(read(tmp_path / "in", out).entries) == 1
    assert len(list((out / "images").iterdir())) == 1


def test_edits_of_the_manifest_are_kept(tmp_path: Path) -> None:
    site = make_site(tmp_path / "in")
    read(site, tmp_path / "out")
    values = json.loads((tmp_path / "out" / "dataset.json").read_text())
    values["label_map"] = {"1": "shell"}
    (tmp_path / "out" / "dataset.json").write_text(json.dumps(values))
    assert read(site, tmp_path / "out").label_map == {"1": "shell"}


def test_salt_is_private_and_keys_differ_between_sites(tmp_path: Path) -> None:
    site = make_site(tmp_path / "in")
    one, two = read(site, tmp_path / "one"), read(site, tmp_path / "two")
    assert stat.S_IMODE((tmp_path / "one" / ".salt").stat().st_mode) == 0o600
    assert not {e.patient for e in one.entries} & {e.patient for e in two.entries}


def test_a_manifest_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = make_site(tmp_path / "in")
    read(site, tmp_path / "out")
    before = (tmp_path / "out" / "dataset.json").read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    (site / "imagesTr" / "case_3.nii.gz").unlink()
    with pytest.raises(OSError, match="No space left"):
        read(site, tmp_path / "out")
    assert (tmp_path / "out" / "dataset.json").read_bytes() == before
    assert not [p for p in (tmp_path / "out").iterdir() if p.name.startswith(".dataset.json")]


def test_labels_outside_the_vocabulary_set_a_case_aside(tmp_path: Path) -> None:
    site = make_site(tmp_path / "in")
    values = make_volume(1)[1]
    values[0, 0, 0] = 9
    _nifti(site / "labelsTr" / "case_1.nii.gz", values)
    manifest = read(site, tmp_path / "out", labels=parse_labels("1=shell,2=core"))
    assert manifest.quarantine[0].name == "case_1"
    assert "its label holds the values 9, expected only 0, 1, 2" in manifest.quarantine[0].reason


@pytest.mark.parametrize(
    ("text", "expected"),
    [("liver,tumour", {0: "background", 1: "liver", 2: "tumour"}), ("3=cyst", {0: "background", 3: "cyst"})],
)
def test_labels_on_the_command_line(text: str, expected: dict[int, str]) -> None:
    assert parse_labels(text) == expected


def test_labels_that_cannot_be_read_are_explained() -> None:
    with pytest.raises(DataError, match="expected VALUE=NAME"):
        parse_labels("a=liver")


_names = st.text(st.characters(codec="utf-8", exclude_characters="\x00/\\"), min_size=1, max_size=20)


@settings(max_examples=50, deadline=None)
@given(
    entries=st.lists(
        st.builds(
            Entry,
            image=_names,
            label=st.one_of(st.none(), st.integers(0, 9), _names),
            name=_names,
            spacing=st.one_of(st.none(), st.lists(st.floats(0.1, 9), min_size=3, max_size=3)),
            tags=st.dictionaries(_names, _names, max_size=3),
        ),
        max_size=8,
    )
)
def test_manifests_are_unchanged_by_writing_and_reading(
    entries: list[Entry], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("manifest")
    manifest = Manifest(name="a", training=entries, labels={"0": "background", "1": "Läsion"})
    write_manifest(folder, manifest)
    assert read_manifest(folder) == manifest


@pytest.mark.slow
def test_thousands_of_files_in_one_tree(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 999, (4, 4, 10)).astype(np.int16)
    slices = [path.read_bytes() for path in make_series(tmp_path / "first", values, patient="P000")]
    uids = {str(dcmread(path)[name].value) for path in (tmp_path / "first").iterdir() for name in _UIDS}
    for number in range(250):
        folder = tmp_path / "in" / f"{number % 37}"
        (folder / (str(number) if number % 2 else "")).mkdir(parents=True, exist_ok=True)
        # As if written anew, which takes a hundred times as long: the same lengths, with other contents.
        others = {uid.encode(): f"{uid[:-4]}{number:04d}".encode() for uid in uids}
        for position, content in enumerate(slices):
            pixels = [np.ascontiguousarray(values[..., position].T + more).tobytes() for more in (0, number)]
            written = content.replace(*pixels).replace(b"P000", f"P{number // 2:03d}".encode())
            for uid, other in others.items():
                written = written.replace(uid, other)
            (folder / (f"{number}/{position}" if number % 2 else f"{number}-{position}")).write_bytes(written)
    (tmp_path / "in" / "notes.bin").write_bytes(b"no image")
    manifest = read(tmp_path / "in", tmp_path / "out")
    assert len(manifest.entries) == 250
    assert len({entry.patient for entry in manifest.entries}) == 125
    assert not manifest.quarantine
    assert sum(manifest.left_out.values()) == 1


def _nifti(path: Path, values: np.ndarray, affine: np.ndarray | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(values, np.eye(4) if affine is None else affine)
    nib.save(image, path)
