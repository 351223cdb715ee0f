"""The fast header reader agrees with pydicom."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pydicom
import pytest

from dicoms import make_seg, make_series, make_wsi
from oncofed.data.dicom import headers
from oncofed.data.dicom.elements import any_elements, walked
from oncofed.data.dicom.header_types import (
    BrokenFile,
    Directory,
    ForeignFile,
    ImageHeader,
    LabelHeader,
    OtherObject,
    SlideHeader,
    from_json,
    to_json,
)

PYDICOM_FILES = sorted((Path(pydicom.__file__).parent / "data" / "test_files").glob("*.dcm"))


@pytest.mark.filterwarnings("ignore")
def test_both_ways_of_reading_agree_on_every_file_of_pydicom() -> None:
    quick = 0
    for path in PYDICOM_FILES:
        with path.open("rb") as file:
            elements = walked(file, headers._WANTED)
            if not elements:
                continue
            quick += 1
            found = headers._header(elements, file.tell())
            expected = headers._header(any_elements(file, headers._WANTED)[0], file.tell())
        assert found == expected, path.name
    assert quick > len(PYDICOM_FILES) / 2


@pytest.mark.filterwarnings("ignore")
def test_headers_are_unchanged_by_the_index(tmp_path: Path) -> None:
    files = make_series(tmp_path / "series")
    label = make_seg(tmp_path / "seg.dcm", files, {"liver": np.ones((12, 16, 8), bool)})
    slide = make_wsi(tmp_path / "slide", np.zeros((64, 64, 3), np.uint8))
    found = [headers.read_header(path) for path in [*PYDICOM_FILES, *files[:1], label, slide]]
    found += [Directory(), ForeignFile("text")]
    kinds = {ImageHeader, LabelHeader, SlideHeader, OtherObject, Directory, BrokenFile, ForeignFile}
    assert {type(header) for header in found} == kinds
    for header in found:
        assert from_json(json.loads(json.dumps(to_json(header)))) == header


def test_an_implicit_file_declared_explicit_is_read(tmp_path: Path) -> None:
    dataset = pydicom.dcmread(next(p for p in PYDICOM_FILES if p.name == "CT_small.dcm"))
    parts = {}
    for syntax in (pydicom.uid.ExplicitVRLittleEndian, pydicom.uid.ImplicitVRLittleEndian):
        path = tmp_path / f"{syntax.name}.dcm"
        dataset.file_meta.TransferSyntaxUID = syntax
        pydicom.dcmwrite(path, dataset, implicit_vr=syntax.is_implicit_VR, little_endian=True)
        # Preamble and prefix, the group's length (an element of 12 bytes), and as many bytes as it says: PS3.10, 7.1.
        meta = 132 + 12 + int(pydicom.dcmread(path).file_meta.FileMetaInformationGroupLength)
        parts[syntax] = path.read_bytes()[:meta], path.read_bytes()[meta:]
    path = tmp_path / "a.dcm"
    path.write_bytes(parts[pydicom.uid.ExplicitVRLittleEndian][0] + parts[pydicom.uid.ImplicitVRLittleEndian][1])

    header = headers.read_header(path)

    assert isinstance(header, ImageHeader)
    assert (header.rows, header.columns) == (128, 128)


def test_a_damaged_header_reveals_nothing(tmp_path: Path) -> None:
    dataset = pydicom.dcmread(next(p for p in PYDICOM_FILES if p.name == "CT_small.dcm"))
    dataset.PatientName = "Canary^Name"
    path = tmp_path / "a.dcm"
    dataset.save_as(path)
    content = bytearray(path.read_bytes())
    at = content.index(b"\x08\x00\x60\x00CS")  # Modality
    content[at + 6 : at + 8] = (2000).to_bytes(2, "little")
    path.write_bytes(content)
    header = headers.read_header(path)
    assert isinstance(header, BrokenFile)
    assert "Canary" not in str(header)


def test_a_vendor_that_is_not_text_is_ignored(tmp_path: Path) -> None:
    dataset = pydicom.dcmread(next(p for p in PYDICOM_FILES if p.name == "CT_small.dcm"))
    dataset.Manufacturer = "A" * 30 + "\x1b[31m"
    dataset.save_as(tmp_path / "a.dcm")
    header = headers.read_header(tmp_path / "a.dcm")
    assert isinstance(header, ImageHeader)
    assert header.vendor == ""


@pytest.mark.wild("standard: PS3.5 6.2 (DS)", "text where a header has numbers")
def test_an_invalid_number_is_named(tmp_path: Path) -> None:
    dataset = pydicom.dcmread(next(p for p in PYDICOM_FILES if p.name == "CT_small.dcm"))
    path = tmp_path / "a.dcm"
    dataset.RescaleSlope = "1.234567"
    dataset.save_as(path)
    path.write_bytes(path.read_bytes().replace(b"1.234567", b"one     "))
    header = headers.read_header(path)
    assert header == BrokenFile(
        "its header is damaged: what stands in its RescaleSlope is no number. Copy it again, or export it anew",
    )
