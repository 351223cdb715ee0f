"""Read single-file NIfTI-1 and NIfTI-2.

nifti1.h and nifti2.h of nifti.nimh.nih.gov, compressed or not.
"""

from __future__ import annotations

import gzip
import logging
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from isal import igzip

from oncofed.data.formats.common import (
    Affine,
    LoadedImage,
    farthest,
    is_invertible,
    kind_of,
    looks_like,
    require_memory,
    unreadable,
)
from oncofed.errors import DataError

NIFTI = (".nii", ".nii.gz")

# Largest compression factor of gzip: a header that declares more data is false.
_GZIP_LIMIT = 1032
_GZIP = b"\x1f\x8b"
_MOST_LAYERS = 4
# Versions and sequence parameters from FSL, SPM, FreeSurfer, ANTs, ITK, dcm2niix and nibabel.
_SOFTWARE_TEXT = re.compile(
    r"(FSL|SPM|FreeSurfer|ITK|ANTs|dcm2nii|NiBabel|nifti|TE=|TR=|\d{1,4}(\.\d{1,4}){1,3}(:[0-9a-f]+)?$|none$|None$)",
    re.I,
)
_HEADERS = {348: nib.Nifti1Header, 540: nib.Nifti2Header}
_LONGEST_HEADER = 541
# xyzt_units & 7 -> millimetres; all others count as millimetres, as in ITK.
_UNITS = {1: ("metres", 1e3), 3: ("microns", 1e-3)}
# Two affines of a header contradict each other if a corner's places differ by more than this, in voxels.
_SAME_PLACE = 0.25
_LOOKS = ("gzip data", "a NIfTI or Analyze file")

# nibabel logs oddities of headers without the file's name; errors are raised and reported with the name.
logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)


@contextmanager
def open_nifti(path: Path) -> Iterator[tuple[Any, int]]:
    """Open a NIfTI file, compressed or not, under any name.

    Yields:
        The uncompressed file, and an upper bound of its size in bytes.
    """
    opened: list[Any] = [path.open("rb")]
    limit = path.stat().st_size
    try:
        for _ in range(_MOST_LAYERS):
            if opened[-1].peek(2)[:2] != _GZIP:
                break
            # ISA-L decompresses twice as fast as zlib, which nibabel uses.
            opened.append(igzip.open(opened[-1]))  # type: ignore[no-untyped-call]
            limit *= _GZIP_LIMIT
        yield opened[-1], limit
    finally:
        for file in reversed(opened):
            file.close()


def read_nifti(path: Path) -> LoadedImage:
    """Read a NIfTI file.

    Raises:
        DataError: it is broken, or has an unusable header.
    """
    try:
        with open_nifti(path) as (file, limit):
            return _parse(path, file, limit)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        why = "its compressed data end early" if isinstance(error, EOFError) else "its compressed data are damaged"
        raise unreadable(path, "NIfTI", f"{why}. Copy it again from where it came", _LOOKS) from None


def _parse(path: Path, file: Any, limit: int) -> LoadedImage:
    begins = beginning(file)
    header = nifti_header(path, begins)
    offset, shape = int(header.get_data_offset()), tuple(int(n) for n in header.get_data_shape())
    dtype = header.get_data_dtype()
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    require_memory(size)
    if size > limit:
        held = path.stat().st_size
        raise DataError(f"declares {size} bytes of voxels, which a file of {held} bytes cannot hold. Copy it again")
    if dtype.fields or np.issubdtype(dtype, np.complexfloating):
        what = "colours" if dtype.fields else "complex numbers"
        raise DataError(f"holds {what}, expected one number a voxel")
    axes, shape = len(shape), shape[:4] if all(n == 1 for n in shape[4:]) else shape
    if len(shape) not in {3, 4}:
        raise DataError(f"has {axes} axes {shape}, expected a 3D volume, or 4D with channels last")
    _require_voxel_size(header, shape)
    try:
        header.check_fix()
        values = np.asanyarray(nib.arrayproxy.ArrayProxy(file, header)).reshape(shape)
    except (EOFError, gzip.BadGzipFile, zlib.error, MemoryError):
        raise
    except Exception:  # noqa: BLE001 - nibabel and NumPy raise many types for a broken file
        held = _length(file)
        why = "its header is damaged. Copy it again"
        if held < offset + size:
            why = f"it ends early: it holds {max(held - offset, 0)} of {size} bytes of voxels. Copy it again"
        raise unreadable(path, "NIfTI", why, _LOOKS) from None
    affine, notes = _placed(header, shape[:3])
    texts = _header_texts(header, begins)
    placed = bool(header["sform_code"] > 0 or header["qform_code"] > 0)
    if len(shape) == 3:
        values = values[..., None]
    return LoadedImage(values, affine, str(dtype.newbyteorder("=")), placed=placed, texts=texts, notes=notes)


def beginning(file: Any) -> bytes:
    """Return an open file's header bytes, and one more."""
    head = bytes(file.peek(_LONGEST_HEADER)[:_LONGEST_HEADER])
    if len(head) < _LONGEST_HEADER:  # the buffer may have ended
        head = file.read(_LONGEST_HEADER)
        file.seek(0)
    return head


def nifti_header(path: Path, head: bytes) -> Any:
    """Return nibabel's unchecked header of a file.

    Args:
        path: for messages.
        head: the file's beginning.

    Raises:
        DataError: it is no header of single-file NIfTI.
    """
    sizes = [int.from_bytes(head[:4], order) for order in ("little", "big")]
    kind: Any = next((_HEADERS[size] for size in sizes if size in _HEADERS), None)
    if kind is None:
        inside = kind_of(head[:132])
        what = f"; unpacked it looks like {inside}" if inside and inside != looks_like(path) else ""
        raise unreadable(path, "NIfTI", f"it does not begin with a NIfTI header{what}. Export it as NIfTI", _LOOKS)
    length = kind.sizeof_hdr
    if len(head) < length:
        raise unreadable(path, "NIfTI", f"it ends after {len(head)} bytes, inside its header. Copy it again", _LOOKS)
    header = kind(head[:length], check=False)
    magic = bytes(header["magic"].tobytes())[:3]
    if magic in {b"ni1", b"ni2"}:
        raise DataError("is one half of a pair .hdr and .img, expected NIfTI in one file: convert it")
    if magic not in {b"n+1", b"n+2"}:
        why = "its header is of Analyze 7.5, which does not say left from right. Convert its source anew, with dcm2niix"
        raise unreadable(path, "NIfTI", why, _LOOKS)
    if int(header["datatype"]) not in nib.nifti1.data_type_codes.value_set():
        why = f"its header says data type {int(header['datatype'])}, which does not exist. Copy it again"
        raise unreadable(path, "NIfTI", why)
    return header


def _length(file: Any) -> int:
    """Return a file's unpacked size in bytes."""
    file.seek(0)
    length = 0
    while block := file.read(1 << 20):
        length += len(block)
    return length


def _placed(header: Any, shape: tuple[int, ...]) -> tuple[Affine, tuple[str, ...]]:
    """Return the affine in mm, and notes on it."""
    affine = np.array(header.get_best_affine(), dtype=np.float64)
    notes = []
    unit = _UNITS.get(int(header["xyzt_units"]) & 7)
    if unit:
        affine[:3] *= unit[1]
        notes.append(f"its header's lengths are {unit[0]}, converted to millimetres")
    if not is_invertible(affine):
        raise DataError(
            "has an affine that is not invertible: its header does not say where its voxels lie. Convert its source "
            "anew, with dcm2niix"
        )
    if header["sform_code"] <= 0 and header["qform_code"] <= 0:
        notes.append("its header does not say where its axes point (neither sform nor qform): taken as LAS")
    elif header["sform_code"] > 0 and header["qform_code"] > 0:
        notes += _disagreement(header, shape)
    return affine, tuple(notes)


def _disagreement(header: Any, shape: tuple[int, ...]) -> list[str]:
    sform = np.asarray(header.get_sform(), dtype=np.float64)
    try:
        qform = np.asarray(header.get_qform(), dtype=np.float64)
        apart = farthest(sform, qform, shape)
    except Exception:  # noqa: BLE001 - an invalid quaternion
        return ["its qform cannot be read: its sform is used"]
    if not apart > _SAME_PLACE:
        return []
    mirrored = np.linalg.det(sform[:3, :3]) * np.linalg.det(qform[:3, :3]) < 0
    how = "one is the mirror image of the other" if mirrored else f"by {apart:.3g} voxels at a corner"
    return [f"its sform and qform differ ({how}): its sform is used, other programs may use its qform"]


def _require_voxel_size(header: Any, shape: tuple[int, ...]) -> None:
    """Refuse a volume without voxel sizes: nibabel assumes 1 mm."""
    sizes = np.abs(np.asarray(header["pixdim"][1:4], dtype=np.float64))
    unknown = [not (np.isfinite(size) and size > 0) and n > 1 for size, n in zip(sizes, shape, strict=False)]
    if header["sform_code"] <= 0 and any(unknown):
        raise DataError(
            f"does not say how large its voxels are (pixdim is {[float(size) for size in sizes]}). Convert its source "
            "anew, with dcm2niix"
        )


def _header_texts(header: Any, begins: bytes) -> tuple[str, ...]:
    """Return the fields with text, and whether extensions follow."""
    found = []
    for name in ("descrip", "aux_file", "db_name", "intent_name"):
        text = bytes(header[name].tobytes()).rstrip(b"\0 ").decode("latin-1") if name in header else ""
        if text.strip() and not _SOFTWARE_TEXT.match(text):
            found.append(name)
    size = header.sizeof_hdr
    extended = len(begins) > size and begins[size] != 0 and header.get_data_offset() > size + 4
    return (*found, "extensions") if extended else tuple(found)
