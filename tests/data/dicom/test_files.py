"""DICOM that violates Part 10.

Without preamble, without group 0002, in either byte order.
"""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset, write_file_meta_info
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, RLELossless

from dicoms import make_series, make_xray, volume
from oncofed.data.deidentify import Options, deidentify
from oncofed.data.dicom.headers import looks_like_dicom
from oncofed.data.images import read_image
from oncofed.data.register import RegisterOptions, register

REPORTS = "pydicom#2231, pydicom#150, hazen#433, dcmjs#93"


def bare(dataset: pydicom.FileDataset, implicit: bool, little: bool, start: str) -> bytes:
    """Return a file's content in one encoding.

    Args:
        dataset: the file.
        implicit: values have no type.
        little: the smaller byte of a number comes first.
        start: "group 0008", "group length", "group 0002" (no preamble), "preamble" (no group 0002).
    """
    plain = Dataset()
    plain.update({element.tag: element for element in dataset})
    if not little:
        plain["PixelData"].value = np.frombuffer(dataset.PixelData, "<i2").astype(">i2").tobytes()
    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = little, implicit
    write_dataset(buffer, plain)
    body = buffer.getvalue()
    if start == "group length":
        order = "little" if little else "big"
        group, size = (8).to_bytes(2, order), (4).to_bytes(4 if implicit else 2, order)
        body = group + b"\0\0" + (b"" if implicit else b"UL") + size + (0).to_bytes(4, order) + body
    if start == "preamble":
        return bytes(128) + b"DICM" + body
    if start == "group 0002":
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta = DicomBytesIO()
        meta.is_little_endian, meta.is_implicit_VR = True, False
        write_file_meta_info(meta, dataset.file_meta)
        return meta.getvalue() + body
    return body


@pytest.mark.wild(REPORTS, "DICOM without preamble or without group 0002")
@pytest.mark.parametrize(
    ("implicit", "little", "start"),
    [
        (True, True, "group 0008"),
        (True, True, "group length"),
        (True, True, "preamble"),
        (False, True, "group 0008"),
        (False, True, "group length"),
        (False, True, "group 0002"),
        (False, True, "preamble"),
        (False, False, "group 0008"),
        (False, False, "group length"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_volume_is_read_with_any_preamble(tmp_path: Path, implicit: bool, little: bool, start: str) -> None:
    for number, file in enumerate(make_series(tmp_path / "whole")):
        dataset = pydicom.dcmread(file)
        dataset.RescaleSlope, dataset.RescaleIntercept = "0.5", "-3"
        target = tmp_path / "in" / f"{number}"
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(bare(dataset, implicit, little, start))
        assert looks_like_dicom(target)
    manifest = register(RegisterOptions(tmp_path / "in", "demo", tmp_path / "out", workers=1))
    assert [bad.reason for bad in manifest.quarantine] == []
    (entry,) = manifest.entries
    found = np.asarray(nib.load(tmp_path / "out" / entry.images[0]).dataobj)
    np.testing.assert_allclose(found, volume() * 0.5 - 3)
    outcome = deidentify(tmp_path / "in", tmp_path / "copies", tmp_path / "secret" / "key", Options())
    assert (outcome.refused, outcome.written) == ({}, {"DICOM": 8})
    (again,) = register(RegisterOptions(tmp_path / "copies", "demo", tmp_path / "again", workers=1)).entries
    assert again.intensity == entry.intensity


@pytest.mark.wild(REPORTS, "compressed pixels whose syntax no header names")
@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
@pytest.mark.filterwarnings("ignore")
def test_compression_is_recognised_by_the_first_bytes(tmp_path: Path, syntax: pydicom.uid.UID) -> None:
    values = np.random.default_rng(0).integers(0, 4000, (32, 40)).astype(np.uint16)
    dataset = pydicom.dcmread(make_xray(tmp_path / "whole", values))
    dataset.compress(syntax)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.dcm").write_bytes(bare(dataset, False, True, "group 0008"))
    (entry,) = register(RegisterOptions(tmp_path / "in", "demo", tmp_path / "out", workers=1)).entries
    np.testing.assert_array_equal(read_image(tmp_path / "out" / entry.images[0]).values[..., 0].T, values)


@pytest.mark.wild(REPORTS, "files that begin nearly as DICOM does")
def test_other_files_are_not_taken_for_dicom(tmp_path: Path) -> None:
    make_series(tmp_path / "in")
    (tmp_path / "in" / "a.bin").write_bytes(b"\x08\x00\x05\x07" + bytes(200))
    (tmp_path / "in" / "b.bin").write_bytes(b"\x00\x08\x00\x05ab" + bytes(200))
    manifest = register(RegisterOptions(tmp_path / "in", "demo", tmp_path / "out", workers=1))
    assert len(manifest.entries) == 1
    assert sum(manifest.left_out.values()) == 2
