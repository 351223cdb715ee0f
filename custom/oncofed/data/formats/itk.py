"""NRRD (teem.sourceforge.net/nrrd/format.html) and MetaImage, through SimpleITK."""

from __future__ import annotations

import importlib.util
import math
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from isal import igzip

from oncofed.data.formats.common import LPS_TO_RAS, LoadedImage, is_invertible, require_memory, unreadable
from oncofed.data.formats.units import millimetres
from oncofed.errors import DataError

ITK = (".nrrd", ".nhdr", ".mha", ".mhd")

# Headers that state a voxel size; ITK assumes 1 mm otherwise.
_SAYS_SPACING = re.compile(r"^(space directions:.*\(|spacings:.*\d|Element(Spacing|Size)\s*=)", re.M)
_LONGEST_HEADER = 1 << 16
_CHUNK = 1 << 22
# Bytes of a voxel, by its type without "signed ", " int" and "_t".
_NRRD_SIZES = {
    1: "char int8 uchar unsigned-char uint8",
    2: "short int16 ushort unsigned-short uint16",
    4: "int int32 uint unsigned-int unsigned uint32 float",
    8: "longlong long-long int64 ulonglong unsigned-long-long uint64 double",
}
_META_SIZES = {
    1: "MET_CHAR MET_UCHAR",
    2: "MET_SHORT MET_USHORT",
    4: "MET_INT MET_UINT MET_LONG MET_ULONG MET_FLOAT",
    8: "MET_LONG_LONG MET_ULONG_LONG MET_DOUBLE",
}
_LOOKS = ("an NRRD file", "a MetaImage file")


def read_itk(path: Path) -> LoadedImage:
    """Read an NRRD or MetaImage file, also a compressed one.

    Raises:
        DataError: it is broken or has an unusable header, or SimpleITK is not installed.
    """
    if importlib.util.find_spec("SimpleITK") is None:
        raise DataError(f"is {path.suffix}, for which SimpleITK is needed: pip install 'oncofed[radiology]'")
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    if not packed:
        return _read(path)
    with tempfile.TemporaryDirectory() as folder:
        unpacked = Path(folder) / path.name
        _unpack(path, unpacked)
        return _read(unpacked)


def _unpack(path: Path, target: Path) -> None:
    size = 0
    try:
        with igzip.open(path) as file, target.open("wb") as out:  # type: ignore[no-untyped-call]
            while block := file.read(_CHUNK):
                size += len(block)
                require_memory(size, "holds")
                out.write(block)
    except DataError:
        raise
    except Exception:  # noqa: BLE001 - gzip and zlib raise many types for damaged data
        raise DataError("holds compressed data that are damaged or end early. Copy it again") from None


def _read(path: Path) -> LoadedImage:
    import SimpleITK as sitk  # noqa: N813, PLC0415 - optional

    name = "NRRD" if path.suffix.lower() in {".nrrd", ".nhdr"} else "MetaImage"
    with path.open("rb") as file:
        head = file.read(_LONGEST_HEADER)
    fields, length = _nrrd_fields(head) if name == "NRRD" else _meta_fields(head)
    reader = sitk.ImageFileReader()
    try:
        reader.SetFileName(str(path))
        reader.ReadImageInformation()
        require_memory(int(np.prod(reader.GetSize(), dtype=np.int64)) * 4 * reader.GetNumberOfComponents())
        image = reader.Execute()
    except RuntimeError:
        why = _fault(path, name, fields, length) or "its header or its data are damaged. Copy it again"
        raise unreadable(path, name, why, _LOOKS) from None
    values = sitk.GetArrayFromImage(image)
    if image.GetNumberOfComponentsPerPixel() == 1:
        values = values[..., None]
    dimensions = image.GetDimension()
    if dimensions not in {2, 3}:
        raise DataError(f"has {dimensions} axes {image.GetSize()}, expected two or three")
    calibrated = bool(_SAYS_SPACING.search(head.decode("latin-1")))
    if dimensions == 3 and not calibrated:
        raise DataError("does not say how large its voxels are: its header has no spacing. Export it again with it")
    values = np.moveaxis(values, range(dimensions), range(dimensions)[::-1])
    affine = np.eye(4)
    axes = np.asarray(image.GetDirection()).reshape(dimensions, dimensions) * np.asarray(image.GetSpacing())
    affine[:dimensions, :dimensions], affine[:dimensions, 3] = axes, image.GetOrigin()
    factors = _factors(fields, dimensions)
    affine[:dimensions] *= factors[:, None]
    if dimensions == 3:
        affine = LPS_TO_RAS @ affine  # ITK uses LPS+
    if not is_invertible(affine):
        raise DataError(
            "has axes that do not point in different directions: its header does not say where it lies. Export it again"
        )
    notes = ("its header's lengths are not millimetres, and are read as such",) if (factors != 1).any() else ()
    return LoadedImage(values, affine, str(values.dtype), calibrated=calibrated, notes=notes)


def _factors(fields: dict[str, str], dimensions: int) -> Any:
    """Return the millimetres of one unit along each axis.

    From NRRD's ``space units`` or ``units``.
    """
    text = fields.get("space units") or fields.get("units") or ""
    named = re.findall(r'"([^"]*)"', text)
    found = [millimetres(unit) or 1.0 for unit in named if "space units" in fields or millimetres(unit)]
    return np.array(found if len(found) == dimensions else [1.0] * dimensions)


def _nrrd_fields(head: bytes) -> tuple[dict[str, str], int]:
    """Return an NRRD header's fields and length in bytes."""
    ends = [at + len(end) for end in (b"\n\n", b"\r\n\r\n") if (at := head.find(end)) >= 0]
    length = min(ends, default=len(head))
    lines = head[:length].decode("latin-1").splitlines()
    pairs = (line.split(": ", 1) for line in lines if ": " in line and not line.startswith("#"))
    return {name.strip().lower(): value.strip() for name, value in pairs}, length


def _meta_fields(head: bytes) -> tuple[dict[str, str], int]:
    """Return a MetaImage header's fields and its length in bytes."""
    last = re.search(rb"^ElementDataFile\s*=[^\n]*\n?", head, re.M)
    length = last.end() if last else len(head)
    pairs = (line.split("=", 1) for line in head[:length].decode("latin-1").splitlines() if "=" in line)
    return {name.strip(): value.strip() for name, value in pairs}, length


def _bytes_of(kind: str, name: str) -> int | None:
    """Return a voxel's bytes by its type's name, if known."""
    sizes = _META_SIZES
    if name == "NRRD":
        sizes = _NRRD_SIZES
        kind = re.sub(r"_t$|(?<=.) int$", "", re.sub(r"^signed ", "", kind)).replace(" ", "-")
    return next((size for size, kinds in sizes.items() if kind in kinds.split()), None)


def _fault(path: Path, name: str, fields: dict[str, str], length: int) -> str | None:
    """Return where a header and its file disagree, or None."""
    with path.open("rb") as file:
        begins = file.read(10)
    if name == "NRRD" and not begins.startswith(b"NRRD000"):
        return "it does not begin with an NRRD header. Copy it again, or export it as NRRD"
    if name == "MetaImage" and "ElementDataFile" not in fields:
        return "it has no header of a MetaImage (ElementDataFile is missing). Copy it again, or export it as MetaImage"
    kind = fields.get("type", "") if name == "NRRD" else fields.get("ElementType", "")
    each = _bytes_of(kind, name)
    if each is None:
        found = f"says type {kind[:40]!r}, which does not exist" if kind else "says no type"
        return f"its header {found}. Copy it again, or export it anew"
    data = fields.get("data file") or fields.get("datafile") if name == "NRRD" else fields["ElementDataFile"]
    apart = bool(data) and data not in {"LOCAL", "LIST"} and "%" not in str(data) and not str(data).startswith("LIST")
    if apart and not (path.parent / str(data)).is_file():
        return f"its data file {Path(str(data)).name} is not beside it. Copy both"
    packed = fields.get("encoding", "raw") != "raw" or fields.get("CompressedData", "False").lower() == "true"
    text = fields.get("sizes") if name == "NRRD" else fields.get("DimSize")
    if not text or not re.fullmatch(r"\d+( +\d+)*", text):
        return "its header does not say how many voxels it has. Copy it again, or export it anew"
    needed = math.prod(map(int, text.split())) * each * int(fields.get("ElementNumberOfChannels", "1"))
    held = (path.parent / str(data)).stat().st_size if apart else path.stat().st_size - length
    if not packed and held < needed:
        return f"it ends early: it holds {held} of {needed} bytes of voxels. Copy it again"
    return "its compressed data are damaged or end early. Copy it again" if packed else None
