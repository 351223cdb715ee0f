"""Copies share place and pixels, whatever their UIDs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import RLELossless, generate_uid

from dicoms import make_series, make_xray, volume
from oncofed.data.dicom import indexing as module
from oncofed.data.dicom.series import JOINED
from oncofed.data.files import FILES_TABLE
from oncofed.data.register import RegisterOptions, register

REPORTS = "healthcare-dicom-dicomweb-adapter#153, vtk-dicom#95, dcm2niix#211, dcm2niix#218"


@pytest.mark.wild(REPORTS, "slices of one volume under few or one SOPInstanceUID, or none")
@pytest.mark.parametrize("shared", [1, 2, 8, 0])
def test_slices_of_one_uid_are_all_kept(tmp_path: Path, shared: int) -> None:
    def repeat(number: int, dataset: Dataset) -> None:
        dataset.SOPInstanceUID = f"1.2.3.{number // shared}" if shared else ""
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID or "1.2.3"

    make_series(tmp_path / "in", change=repeat)
    (entry,) = register(RegisterOptions(tmp_path / "in", "demo", tmp_path / "out", workers=1)).entries
    assert (entry.shape, entry.spacing) == ([12, 16, 8], [0.8, 0.7, 2.5])


@pytest.mark.wild(REPORTS, "X-rays of several patients, or of one, under one UID of instance and series")
@pytest.mark.parametrize("patients", [6, 1])
def test_xrays_of_one_uid_are_all_kept(tmp_path: Path, patients: int) -> None:
    rng = np.random.default_rng(0)
    for number in range(6):
        values = rng.integers(0, 4000, (20, 30)).astype(np.uint16)
        same = {"SOPInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.4", "PatientID": f"P{number % patients}"}
        make_xray(tmp_path / "in", values, f"{number}.dcm", **same)
    manifest = register(RegisterOptions(tmp_path / "in", "demo", tmp_path / "out", workers=1))
    assert len(manifest.entries) == 6
    assert len({entry.patient for entry in manifest.entries}) == patients
    assert len({entry.checksum for entry in manifest.entries}) == 6
    assert len(list((tmp_path / "out" / "images").iterdir())) == 6


@pytest.mark.wild(REPORTS, "copies under UIDs of their own, in another syntax, with other texts")
@pytest.mark.parametrize("renewed", ["as it was", "other UID", "compressed", "other description"])
def test_copies_are_found_despite_different_headers(tmp_path: Path, renewed: str) -> None:
    files = make_series(tmp_path / "in")
    for number in (0, 3):
        dataset = pydicom.dcmread(files[number])
        if renewed != "as it was":
            dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        if renewed == "compressed":
            dataset.compress(RLELossless)
        if renewed == "other description":
            dataset.SeriesDescription = "sent again"
        dataset.save_as(tmp_path / "in" / f"again-{number}.dcm")
    (entry,) = register(RegisterOptions(tmp_path / "in", "demo", tmp_path / "out", workers=1)).entries
    assert entry.shape == [12, 16, 8]
    assert "2 files are copies of others of the series" in entry.notes
    table = (tmp_path / "out" / FILES_TABLE).read_text()
    assert table.count("copy of another file of its series (the same place and pixels)") == 2


@pytest.mark.wild(REPORTS, "another image at the place and under the UID of a slice")
def test_equal_place_and_uid_with_other_pixels_is_no_copy(tmp_path: Path) -> None:
    files = make_series(tmp_path / "in")
    dataset = pydicom.dcmread(files[2])
    dataset.PixelData = volume(seed=9)[..., 5].T.tobytes()
    dataset.save_as(tmp_path / "in" / "other.dcm")
    manifest = register(RegisterOptions(tmp_path / "in", "demo", tmp_path / "out", workers=1))
    assert not manifest.entries
    assert "has 1 of 9 slices at positions of others, and no header tells them apart" in manifest.quarantine[0].reason


def test_only_pixels_of_possible_copies_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only possible copies are read a second time, once."""
    read: list[str] = []

    def digest(path: Path, header: dict[str, object]) -> str:
        read.append(path.name)
        return path.name.removeprefix("again-")

    monkeypatch.setattr(module, "digest", digest)
    for echo in (1, 2):
        make_series(
            tmp_path / "in",
            series="1.2.3",
            change=lambda _, d, e=echo: setattr(d, "EchoTime", e),
            names=lambda n, e=echo: f"{e}-{n}.dcm",
        )
    (tmp_path / "in" / "again-1-2.dcm").write_bytes((tmp_path / "in" / "1-2.dcm").read_bytes())
    request = RegisterOptions(tmp_path / "in", "demo", tmp_path / "out", workers=1)
    assert len(register(request).entries) == 2
    assert len(register(request).entries) == 2
    assert sorted(read) == ["1-2.dcm", "again-1-2.dcm"]


@pytest.mark.wild(REPORTS, "UIDs that an anonymiser blanked, or renewed for each file")
@pytest.mark.parametrize("uid", ["blank", "renewed"])
def test_series_without_uids_are_read(tmp_path: Path, uid: str) -> None:
    def change(number: int, dataset: Dataset) -> None:
        dataset.SeriesInstanceUID = "" if uid == "blank" else generate_uid()
        dataset.SOPInstanceUID = ""

    for folder in ("a", "b"):
        make_series(tmp_path / "in" / folder, volume(seed=ord(folder)), patient=folder, change=change)
    manifest = register(RegisterOptions(tmp_path / "in", "demo", tmp_path / "out", workers=1))
    assert [bad.reason for bad in manifest.quarantine] == []
    assert [entry.shape for entry in manifest.entries] == [[12, 16, 8]] * 2
    assert len({entry.checksum for entry in manifest.entries}) == 2
    assert all(uid == "blank" or JOINED in entry.notes for entry in manifest.entries)


@pytest.mark.wild(REPORTS, "several patients under one UID of each kind and one PatientID")
def test_folders_separate_volumes_that_headers_do_not(tmp_path: Path) -> None:
    def same(number: int, dataset: Dataset) -> None:
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = "1.2.3", "1.2.4", "1.2.5"
        dataset.SOPInstanceUID = "1.2.6"

    for number in range(3):
        make_series(tmp_path / "in" / str(number), volume(seed=number), patient="ANONYMOUS", change=same)
    manifest = register(RegisterOptions(tmp_path / "in", "demo", tmp_path / "out", workers=1, patient_from="folder"))
    assert [entry.shape for entry in manifest.entries] == [[12, 16, 8]] * 3
    assert len({entry.patient for entry in manifest.entries}) == 3
    assert len({entry.checksum for entry in manifest.entries}) == 3
