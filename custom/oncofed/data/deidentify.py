"""Copies of images without what identifies a patient.

DICOM: the Basic Application Level Confidentiality Profile of PS3.15, annex E, in the tables of dicom-anonymizer,
applied at every level of nesting; UIDs and patients become pseudonyms that follow from a secret key, so that references
between objects, and copies made later with the same key, still fit. Slides: the pyramid alone. NIfTI: no free text.
Names of files and folders become pseudonyms too.

Faces, burned-in text and what a report says in words are not removed: ``oncofed data check`` warns of the first two.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import hmac
import io
import math
import os
import secrets
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

import pydicom
from dicomanonymizer.dicomfields_selector import dicom_anonymization_database_selector
from dicomanonymizer.simpledicomanonymizer import anonymize_dataset, initialize_actions
from PIL import Image, ImageOps, ImageSequence
from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import UID

from oncofed.data.dicom.files import read_file
from oncofed.data.dicom.headers import looks_like_dicom, read_header
from oncofed.data.facts import reason_of
from oncofed.data.folder import find_files
from oncofed.data.formats.nifti import beginning, nifti_header
from oncofed.data.images import NIFTI, image_format, open_nifti, require_memory, stem
from oncofed.data.layouts import IMAGE_FOLDERS, LABEL_FOLDERS, kept_parts
from oncofed.data.manifest import write_whole
from oncofed.data.workers import BROKE_ITS_READER, Workers
from oncofed.errors import DataError

CROSSWALK_FILE = "crosswalk.csv"
_TABLES = "dicomfields_2026c"
_UID_ROOT = "2.25."  # UUIDs as UIDs: PS3.5, annex B.2
_LONGEST_SHIFT_DAYS = 365
_PATIENT_GROUP = 0x0010  # dates of birth and of periods are never kept
_KEPT_FOLDERS = {
    *IMAGE_FOLDERS,
    *LABEL_FOLDERS,
    "train",
    "val",
    "test",
    "training",
    "validation",
}
# Column "Retain Device Identity Option" of PS3.15, table E.1-1.
_DEVICE_KEYWORDS = (
    "CassetteID",
    "DetectorID",
    "DeviceSerialNumber",
    "DeviceUID",
    "GantryID",
    "GeneratorID",
    "PerformedStationAETitle",
    "PerformedStationName",
    "PlateID",
    "ScheduledStationAETitle",
    "ScheduledStationName",
    "StationName",
    "SourceManufacturer",
    "SourceSerialNumber",
    "XRaySourceID",
    "XRayDetectorID",
)
_SENDER_KEYWORDS = (
    "SourceApplicationEntityTitle",
    "SendingApplicationEntityTitle",
    "ReceivingApplicationEntityTitle",
    "PrivateInformation",
    "PrivateInformationCreatorUID",
)
_SLIDE_LABELS = {"LABEL", "OVERVIEW", "THUMBNAIL"}
_ORIENTATION = 0x0112  # Exif
_PNG_TEXT = {b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"tIME"}


@dataclass(frozen=True)
class Options:
    """How copies are made.

    Attributes:
        keep_dates: dates are shifted by a number of days that is the same for all of a patient's, and not removed
            (Retain Longitudinal Temporal Information with Modified Dates Option).
        keep_device: names and numbers of devices stay (Retain Device Identity Option).
        keep_burned_in: also copy images whose header says that text is burned into them.
    """

    keep_dates: bool = False
    keep_device: bool = False
    keep_burned_in: bool = False


@dataclass
class Outcome:
    """What was copied, and what was not.

    Attributes:
        written: kind of file -> how many.
        refused: original path -> why no copy was made.
        left_out: kind of file -> how many were of no use.
    """

    written: Counter[str] = field(default_factory=Counter)
    refused: dict[str, str] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class _Turn:
    source: Path
    out: Path
    path: str
    key: bytes
    options: Options


def deidentify(
    source: Path,
    out: Path,
    key_file: Path,
    options: Options,
    workers: int | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Outcome:
    """Write a copy of each image under ``source`` to ``out``, without what identifies a patient.

    Args:
        source: the folder, any heap.
        out: a new or empty folder.
        key_file: secret from which pseudonyms follow; made where it is missing, readable by its owner alone. Beside it
            ``crosswalk.csv`` says which file became which. Both stay at the site.
        options: how.
        workers: processes; None: one a core.
        progress: called with (what is done, how many, of how many).

    Raises:
        DataError: the folders cannot be used.
    """
    source, out = source.resolve(), out.resolve()
    if not source.is_dir():
        raise DataError(f"{source}: no such folder. Name the folder that holds the images.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} is not empty. Name a new folder for the copies.")
    if out.is_relative_to(source) or key_file.resolve().is_relative_to(out):
        raise DataError(
            "the copies cannot lie inside the originals, nor the key inside the copies: name another folder."
        )
    out.mkdir(parents=True, exist_ok=True)
    key = _key(key_file)
    found = find_files(source)
    files = found.files
    turns = [_Turn(source, out, path, key, options) for path in files]
    outcome = Outcome(left_out=Counter(found.left_out.values()))
    pairs: list[tuple[str, str]] = []
    with Workers(workers) as pool:
        for done, (path, kind, result) in enumerate(pool.map(_copy, turns, broken=_broke_its_reader), start=1):
            if kind == "refused":
                outcome.refused[path] = result
            elif kind == "left out":
                outcome.left_out[result] += 1
            else:
                outcome.written[kind] += 1
                pairs.append((path, result))
            if progress:
                progress("copying", done, len(files))
    _write_crosswalk(key_file.parent / CROSSWALK_FILE, sorted(pairs))
    return outcome


def deidentify_dataset(dataset: Dataset, key: bytes, options: Options) -> None:
    """Apply the profile to one data set in place, at every level of nesting.

    Args:
        dataset: with its file meta information.
        key: secret from which pseudonyms follow.
        options: how.
    """
    patient = _patient_of(dataset)
    shift = int.from_bytes(_digest(key, f"shift {patient}")[:4], "big") % _LONGEST_SHIFT_DAYS + 1
    rules = _rules(key, options, shift)
    for level in _levels(dataset):
        anonymize_dataset(level, rules, delete_private_tags=True, base_rules_gen=_standard_rules)
    pseudonym = f"P{_name(key, patient)}"
    dataset.PatientID = pseudonym
    dataset.PatientName = pseudonym
    dataset.PatientIdentityRemoved = "YES"
    dataset.LongitudinalTemporalInformationModified = "MODIFIED" if options.keep_dates else "REMOVED"
    dataset.DeidentificationMethod = "oncofed: PS3.15 annex E, dicom-anonymizer"
    codes = [("113100", "Basic Application Confidentiality Profile")]
    if options.keep_dates:
        codes.append(("113107", "Retain Longitudinal Temporal Information Modified Dates Option"))
    if options.keep_device:
        codes.append(("113109", "Retain Device Identity Option"))
    dataset.DeidentificationMethodCodeSequence = DicomSequence(_code(*code) for code in codes)


def _broke_its_reader(turn: _Turn) -> tuple[str, str, str]:
    return turn.path, "refused", BROKE_ITS_READER


def _copy(turn: _Turn) -> tuple[str, str, str]:
    """Return (path, kind, new path), (path, "refused", reason) or (path, "left out", what it is)."""
    path = turn.source / turn.path
    lower = path.name.lower()
    try:
        if path.stat().st_size == 0:
            return turn.path, "refused", "is empty (0 bytes). Copy it again"
        if looks_like_dicom(path):
            return _copy_dicom(turn, path)
        if lower.endswith(NIFTI):
            return _written(turn, "NIfTI", _without_text(path))
        if lower.endswith((".svs", ".tif", ".tiff")) and _is_slide(path):
            return turn.path, "slide", _copy_slide(turn, path)
        if image_format(path) == "raster":
            return _written(turn, "image", _pixels_alone(path))
    except DataError as error:
        return turn.path, "refused", str(error)
    except OSError as error:
        if error.filename and str(error.filename).startswith(str(turn.out)):
            raise
        return turn.path, "refused", reason_of(error)
    except Exception as error:  # noqa: BLE001 - a broken file raises whatever its bytes lead to
        return turn.path, "refused", reason_of(error)
    if lower.endswith((".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".svslide", ".nrrd", ".mha", ".mhd", ".nhdr")):
        what = f"is {path.suffix}, whose labels and free text cannot be taken out here"
        return turn.path, "refused", f"{what}. Convert it to DICOM, TIFF or NIfTI first"
    return turn.path, "left out", f"file that is no image ({path.suffix or 'no suffix'})"


def _copy_dicom(turn: _Turn, path: Path) -> tuple[str, str, str]:
    header = read_header(path)
    if header["kind"] == "broken":
        return turn.path, "refused", header["reason"]
    if header["kind"] in {"other", "dicomdir"}:
        what = "directory" if header["kind"] == "dicomdir" else header["modality"] or "object"
        return turn.path, "left out", f"DICOM {what} (reports and plans are not copied)"
    if header.get("burned_in", "").upper() == "YES" and not turn.options.keep_burned_in:
        what = "has text burned into its pixels (BurnedInAnnotation is YES). Mask it, or copy it with --keep-burned-in"
        return turn.path, "refused", what
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = read_file(path)
        if header["kind"] == "slide" and _SLIDE_LABELS & set(dataset.get("ImageType", [])):
            return turn.path, "left out", "label or overview of a slide"
        deidentify_dataset(dataset, turn.key, turn.options)
        series = str(dataset.get("SeriesInstanceUID", "") or _name(turn.key, turn.path))
        folder = f"{dataset.PatientID}/{_name(turn.key, series)}"
        name = f"{folder}/{_name(turn.key, str(dataset.get('SOPInstanceUID', '') or turn.path))}.dcm"
        for keyword in _SENDER_KEYWORDS:
            if keyword in dataset.file_meta:
                del dataset.file_meta[keyword]
        dataset.preamble = b"\0" * 128
        buffer = io.BytesIO()
        dataset.save_as(buffer)
    target = turn.out / name
    target.parent.mkdir(parents=True, exist_ok=True)
    write_whole(target, buffer.getvalue())
    return turn.path, "DICOM", name


def _written(turn: _Turn, kind: str, content: bytes) -> tuple[str, str, str]:
    name = _new_path(turn.key, turn.path)
    target = turn.out / name
    target.parent.mkdir(parents=True, exist_ok=True)
    write_whole(target, content)
    return turn.path, kind, name


# --- DICOM


def _standard_rules() -> dict[Any, Any]:
    return dict(_tables())


@lru_cache(maxsize=1)
def _tables() -> dict[Any, Any]:
    actions: dict[Any, Any] = initialize_actions(_TABLES)
    return actions


def _levels(dataset: Dataset) -> Iterator[Dataset]:
    """Yield a data set and all that are nested in it; the innermost first, so that references are still there."""
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                yield from _levels(item)
    yield dataset


def _rules(key: bytes, options: Options, shift: int) -> dict[Any, Callable[[Dataset, Any], None]]:
    rules: dict[Any, Callable[[Dataset, Any], None]] = {}
    for tag in dicom_anonymization_database_selector(_TABLES)["U_TAGS"]:
        rules[tag] = lambda dataset, tag: _replace_uids(dataset, tag, key)
    for tag in _tables():
        if not options.keep_dates or len(tag) != 2 or tag[0] == _PATIENT_GROUP:
            continue
        if _vr(tag) in {"DA", "DT"}:
            rules[tag] = lambda dataset, tag: _shift_dates(dataset, tag, shift)
        elif _vr(tag) == "TM":
            rules[tag] = _keep
    if options.keep_device:
        for keyword in _DEVICE_KEYWORDS:
            number = pydicom.datadict.tag_for_keyword(keyword)
            if number is not None:
                rules[number >> 16, number & 0xFFFF] = _keep
    return rules


def _keep(dataset: Dataset, tag: Any) -> None:
    """Leave an attribute as it is."""


def _replace_uids(dataset: Dataset, tag: Any, key: bytes) -> None:
    element = dataset.get(tag)
    if element is None or not element.value:
        return
    several = not isinstance(element.value, str)
    values = [_uid(key, str(value)) for value in element.value] if several else _uid(key, str(element.value))
    element.value = values


def _uid(key: bytes, old: str) -> UID:
    if UID(old).is_transfer_syntax or old.startswith("1.2.840.10008."):
        return UID(old)  # the standard's own, which names no instance
    return UID(f"{_UID_ROOT}{int.from_bytes(_digest(key, f'uid {old}')[:16], 'big')}")


def _shift_dates(dataset: Dataset, tag: Any, days: int) -> None:
    element = dataset.get(tag)
    if element is None or not element.value:
        return
    text = str(element.value)
    try:
        moved = datetime.strptime(text[:8], "%Y%m%d") - timedelta(days=days)
        element.value = moved.strftime("%Y%m%d") + text[8:]
    except ValueError:
        element.value = ""


def _vr(tag: Any) -> str:
    try:
        return dictionary_VR((tag[0] << 16) | tag[1])
    except KeyError:
        return ""


def _patient_of(dataset: Dataset) -> str:
    identity = str(dataset.get("PatientID", "") or "").strip()
    return identity or str(dataset.get("PatientName", "") or dataset.get("StudyInstanceUID", "") or "unknown")


def _code(value: str, meaning: str) -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, "DCM", meaning
    return code


# --- other formats


def _without_text(path: Path) -> bytes:
    """Return a NIfTI file with its free text and extensions overwritten; its voxels are the same bytes."""
    with open_nifti(path) as (file, _):
        header = nifti_header(path, beginning(file))
        start = int(header.get_data_offset())
        end = start + math.prod(header.get_data_shape()) * header.get_data_dtype().itemsize
        require_memory(2 * end)
        content = bytearray(file.read(end))  # what stands behind the voxels is not theirs
    if len(content) < end:
        raise DataError("is cut off: voxels are missing. Copy it again")
    order = header.endianness
    for name in ("descrip", "aux_file", "intent_name", "db_name", "data_type"):
        if name in header.template_dtype.fields:
            kind, offset = header.template_dtype.fields[name][:2]
            content[offset : offset + kind.itemsize] = bytes(kind.itemsize)
    size = int.from_bytes(content[:4], "little" if order == "<" else "big")
    content[size:start] = bytes(start - size)
    packed = path.name.lower().endswith(".gz")
    return gzip.compress(bytes(content), compresslevel=1, mtime=0) if packed else bytes(content)


def _pixels_alone(path: Path) -> bytes:
    """Return a PNG, JPEG, WebP, BMP or plain TIFF without its text: comments, camera data, names.

    What says which way is up stays, for a mask lies on the image as it is shown.
    """
    content = path.read_bytes()
    with Image.open(path) as image:
        orientation = int(image.getexif().get(_ORIENTATION) or 1)
        if content.startswith(b"\x89PNG"):
            return _png_without_text(content, _orientation_alone(orientation))
        if content.startswith(b"\xff\xd8"):
            return _jpeg_without_text(content, _orientation_alone(orientation))
        pages = [_redrawn(page) for page in ImageSequence.Iterator(image)]
        kind = image.format
    buffer = io.BytesIO()
    if kind == "TIFF":
        pages[0].save(buffer, "TIFF", save_all=True, append_images=pages[1:], compression="tiff_deflate")
    elif len(pages) > 1:
        raise DataError(f"holds {len(pages)} pictures one after another, expected one")
    else:
        pages[0].save(buffer, kind, lossless=True)
    return buffer.getvalue()


def _redrawn(image: Image.Image) -> Image.Image:
    """Return a picture's pixels, upright, and nothing else of it."""
    image.load()
    upright = ImageOps.exif_transpose(image)
    clean = Image.new(upright.mode, upright.size)
    clean.paste(upright)
    if image.mode == "P" and (palette := image.getpalette()):
        clean.putpalette(palette)
    return clean


def _orientation_alone(orientation: int) -> bytes:
    """Return camera data (Exif) that say which way is up and nothing else; empty where the picture is upright."""
    if orientation not in range(2, 9):
        return b""
    exif = Image.Exif()
    exif[_ORIENTATION] = orientation
    return exif.tobytes()


def _png_without_text(content: bytes, exif: bytes) -> bytes:
    kept = [content[:8]]
    position = 8
    while position + 12 <= len(content):
        length = int.from_bytes(content[position : position + 4], "big")
        kind = content[position + 4 : position + 8]
        if kind == b"IDAT" and exif:
            part = b"eXIf" + exif.removeprefix(b"Exif\0\0")
            kept.append((len(part) - 4).to_bytes(4, "big") + part + zlib.crc32(part).to_bytes(4, "big"))
            exif = b""
        if kind not in _PNG_TEXT:
            kept.append(content[position : position + 12 + length])
        position += 12 + length
    if position != len(content) or not kept[-1][4:8] == b"IEND":
        raise DataError(
            "is a PNG image that is cut off or has something behind its end. Copy it again, or export it anew"
        )
    return b"".join(kept)


def _jpeg_without_text(content: bytes, exif: bytes) -> bytes:
    segment = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif if exif else b""
    kept = [content[:2], segment]
    position = 2
    while position + 4 <= len(content):
        if content[position] != 0xFF:
            raise DataError("is a JPEG image with broken segments. Copy it again, or export it anew")
        marker = content[position + 1]
        length = 2 + int.from_bytes(content[position + 2 : position + 4], "big")
        # APP0 says how pixels are meant and APP14 in which colours; the other APP segments and comments are text.
        if not (0xE1 <= marker <= 0xED or marker in {0xEF, 0xFE}):
            kept.append(content[position : position + length])
        position += length
        if marker == 0xDA:  # the pixels follow, up to the end of the image
            end = content.rfind(b"\xff\xd9")
            if end < position:
                raise DataError("is a JPEG image that is cut off. Copy it again, or export it anew")
            kept.append(content[position : end + 2])
            return b"".join(kept)
    raise DataError("is a JPEG image that is cut off. Copy it again, or export it anew")


def _is_slide(path: Path) -> bool:
    try:
        import tifffile  # noqa: PLC0415 - optional
    except ImportError:
        if path.suffix.lower() == ".svs":
            raise DataError("needs tifffile to be copied: pip install 'oncofed[pathology]'") from None
        return False
    with tifffile.TiffFile(path) as file:
        return bool(file.is_svs or file.is_ome or (file.pages and file.pages[0].is_tiled))


def _copy_slide(turn: _Turn, path: Path) -> str:
    """Copy the compressed tiles of a slide's pyramid into a new file; label, macro and descriptions stay behind."""
    import tifffile  # noqa: PLC0415 - optional

    from oncofed.data.slides.tiff_file import find_pyramid  # noqa: PLC0415 - needs tifffile

    name = str(Path(_new_path(turn.key, turn.path)).with_suffix(".tif"))
    target = turn.out / name
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.name}")
    with tifffile.TiffFile(path) as file, tifffile.TiffWriter(unfinished, bigtiff=True) as writer:
        pyramid = find_pyramid(file)
        pages, mpp = pyramid.pages, pyramid.resolution.mpp
        width = pages[0].shape[1]
        for number, page in enumerate(pages):
            scale = page.shape[1] / width
            resolution = (1e4 / mpp * scale, 1e4 / mpp * scale) if mpp else None
            writer.write(
                _tiles(file, page),
                shape=page.shape,
                dtype=page.dtype,
                tile=(page.tilelength, page.tilewidth),
                photometric=page.photometric,
                compression=page.compression,
                jpegtables=page.jpegtables,
                subsampling=page.subsampling if page.photometric == tifffile.PHOTOMETRIC.YCBCR else None,
                subfiletype=1 if number else 0,
                resolution=resolution,
                resolutionunit="CENTIMETER" if resolution else None,
                metadata=None,
                software=False,
            )
    unfinished.replace(target)
    return name


def _tiles(file: Any, page: Any) -> Iterator[bytes]:
    for offset, size in zip(page.dataoffsets, page.databytecounts, strict=True):
        file.filehandle.seek(offset)
        yield file.filehandle.read(size)


# --- names and keys


def _new_path(key: bytes, path: str) -> str:
    *folders, name = path.split("/")
    parts = [folder if folder in _KEPT_FOLDERS else _name(key, f"folder {folder}", 8) for folder in folders]
    bare = stem(Path(name))
    suffix = name[len(bare) :]
    before, bare, after = kept_parts(bare)
    return "/".join([*parts, f"{before}{_name(key, f'case {bare}') if bare else ''}{after}{suffix.lower()}"])


def _digest(key: bytes, text: str) -> bytes:
    return hmac.new(key, text.encode(), hashlib.sha256).digest()


def _name(key: bytes, text: str, length: int = 12) -> str:
    return _digest(key, text).hex()[:length]


def _key(path: Path) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(32))
    key = path.read_bytes()
    if len(key) < 16:
        raise DataError(f"{path}: found {len(key)} bytes, expected a key of at least 16. Name another with --key.")
    return key


def _write_crosswalk(path: Path, pairs: list[tuple[str, str]]) -> None:
    known: dict[str, str] = {}
    if path.is_file():
        with path.open(encoding="utf-8", newline="") as file:
            known = {row[0]: row[1] for row in csv.reader(file) if len(row) == 2}
    buffer = io.StringIO()
    csv.writer(buffer).writerows(sorted({**known, **dict(pairs)}.items()))
    write_whole(path, buffer.getvalue())
    path.chmod(0o600)
