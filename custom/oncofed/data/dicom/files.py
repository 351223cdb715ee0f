"""Read a DICOM file, also one that breaks Part 10."""

from __future__ import annotations

from pathlib import Path

import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import (
    JPEG2000,
    UID,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSNearLossless,
    RLELossless,
)

from oncofed.data.dicom.elements import syntax_of
from oncofed.errors import DataError

# First bytes of compressed frames, for files that do not state the compression: markers of JPEG frames after the first
# segments (ISO/IEC 10918-1, table B.1; 14495-1), and of JPEG 2000 code streams (15444-1).
_JPEG_FRAMES = {0xC0: JPEGBaseline8Bit, 0xC1: JPEGExtended12Bit, 0xC3: JPEGLosslessSV1, 0xF7: JPEGLSNearLossless}
_ITEM = b"\xfe\xff\x00\xe0"


def read_file(path: Path) -> FileDataset:
    """Read a DICOM file, with or without meta information.

    Raises:
        DataError: the compression of its pixels is unknown.
        Exception: pydicom cannot read it.
    """
    dataset = pydicom.dcmread(path, force=True)
    meta = getattr(dataset, "file_meta", None) or FileMetaDataset()
    if "TransferSyntaxUID" not in meta:
        meta.TransferSyntaxUID = _syntax(dataset)
    dataset.file_meta = meta
    return dataset


def _syntax(dataset: FileDataset) -> UID:
    if "PixelData" in dataset and dataset["PixelData"].is_undefined_length:
        found = _compression(bytes(dataset.PixelData))
        if found is None:
            raise DataError(
                "its pixels are compressed, and no TransferSyntaxUID says how. Export it anew as DICOM files"
            )
        return found
    return UID(syntax_of(dataset))


def _compression(data: bytes) -> UID | None:
    """Return encapsulated pixels' syntax, by their first frame.

    PS3.5, section A.4.
    """
    if data[:4] != _ITEM:
        return None
    at = 8 + int.from_bytes(data[4:8], "little")  # after the offset table
    frame = data[at + 8 :]
    if frame[:4] == b"\xff\x4f\xff\x51":
        return JPEG2000
    if frame[:2] == b"\xff\xd8":
        return _jpeg(frame)
    # RLE has a header of 64 bytes: the number of segments and their offsets; the first one follows it.
    return RLELossless if len(frame) > 64 and frame[4:8] == (64).to_bytes(4, "little") else None


def _jpeg(frame: bytes) -> UID | None:
    at = 2
    while at + 4 <= len(frame) and frame[at] == 0xFF:
        if frame[at + 1] in _JPEG_FRAMES:
            return _JPEG_FRAMES[frame[at + 1]]
        at += 2 + int.from_bytes(frame[at + 2 : at + 4], "big")
    return None
