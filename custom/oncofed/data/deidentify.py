"""De-identify copies of images.

DICOM: the Basic Application Level Confidentiality Profile of PS3.15, annex E, in the tables of dicom-anonymizer,
applied at every level of nesting; UIDs and patients become pseudonyms that follow from a secret key, so that references
between objects, and copies made later with the same key, still fit. Slides: the pyramid alone. NIfTI: no free text.
Names of files and folders become pseudonyms too.

Faces, burned-in text and the wording of reports are not removed: ``oncofed data check`` warns of the first two.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import hmac
import io
import math
import warnings
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
from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import UID

from oncofed.atomic import write_whole
from oncofed.data.case_facts import reason_of
from oncofed.data.dicom.files import read_file
from oncofed.data.dicom.header_types import BrokenFile, ImageHeader, LabelHeader, OtherObject, SlideHeader
from oncofed.data.dicom.headers import looks_like_dicom, read_header
from oncofed.data.folder import find_files
from oncofed.data.formats.nifti import beginning, nifti_header
from oncofed.data.images import NIFTI, image_format, open_nifti, require_memory, stem
from oncofed.data.layouts import IMAGE_FOLDERS, LABEL_FOLDERS, kept_parts
from oncofed.data.textless import require_same, without_text
from oncofed.data.textless_tiff import copy_slide, is_slide
from oncofed.data.workers import BROKE_ITS_READER, Workers
from oncofed.errors import DataError
from oncofed.private_files import random_secret, write_private

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


@dataclass(frozen=True)
class Options:
    """How copies are made.

    Attributes:
        keep_dates: dates are shifted by one number of days for each patient, not removed
            (Retain Longitudinal Temporal Information with Modified Dates Option).
        keep_device: names and numbers of devices stay (Retain Device Identity Option).
        keep_burned_in: also copy images whose header says that text is burned into them.
    """

    keep_dates: bool = False
    keep_device: bool = False
    keep_burned_in: bool = False


@dataclass
class Outcome:
    """Copied and refused files.

    Attributes:
        written: kind of file -> how many.
        refused: original path -> reason.
        left_out: kind of file -> how many were of no use.
    """

    written: Counter[str] = field(default_factory=Counter)
    refused: dict[str, str] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class _CopyJob:
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
    """Write de-identified copies of the images of a folder.

    Args:
        source: the folder, of any structure.
        out: a new or empty folder.
        key_file: secret from which pseudonyms follow; made if missing, readable by its owner alone. Next to it,
            ``crosswalk.csv`` says which file became which. Both stay at the site.
        options: how copies are made.
        workers: processes; None: one a core.
        progress: called with (step, number done, number in all).

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
    key = read_key(key_file)
    found = find_files(source)
    files = found.files
    turns = [_CopyJob(source=source, out=out, path=path, key=key, options=options) for path in files]
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
    """De-identify one data set in place, at every level.

    Args:
        dataset: with its file meta information.
        key: secret from which pseudonyms follow.
        options: how copies are made.
    """
    patient = _patient_of(dataset)
    shift = int.from_bytes(_digest(key, f"shift {patient}")[:4], "big") % _LONGEST_SHIFT_DAYS + 1
    rules = _rules(key, options, shift)
    for level in _levels(dataset):
        anonymize_dataset(level, rules, delete_private_tags=True, base_rules_gen=_standard_rules)
    dataset.PatientID = dataset.PatientName = pseudonym(key, patient)
    dataset.PatientIdentityRemoved = "YES"
    dataset.LongitudinalTemporalInformationModified = "MODIFIED" if options.keep_dates else "REMOVED"
    dataset.DeidentificationMethod = "oncofed: PS3.15 annex E, dicom-anonymizer"
    codes = [("113100", "Basic Application Confidentiality Profile")]
    if options.keep_dates:
        codes.append(("113107", "Retain Longitudinal Temporal Information Modified Dates Option"))
    if options.keep_device:
        codes.append(("113109", "Retain Device Identity Option"))
    dataset.DeidentificationMethodCodeSequence = DicomSequence(_code(*code) for code in codes)


def _broke_its_reader(turn: _CopyJob) -> tuple[str, str, str]:
    return turn.path, "refused", BROKE_ITS_READER


def _copy(turn: _CopyJob) -> tuple[str, str, str]:
    """Copy one file.

    Returns (path, kind, new path), (path, "refused", reason) or (path, "left out", what it is).
    """
    path = turn.source / turn.path
    lower = path.name.lower()
    try:
        if path.stat().st_size == 0:
            return turn.path, "refused", "is empty (0 bytes). Copy it again"
        if looks_like_dicom(path):
            return _copy_dicom(turn, path)
        if lower.endswith(NIFTI):
            return _written(turn, "NIfTI", _nifti_without_text(path))
        if lower.endswith((".svs", ".tif", ".tiff")) and is_slide(path):
            name = str(Path(_new_path(turn.key, turn.path)).with_suffix(".tif"))
            copy_slide(path, turn.out / name)
            return turn.path, "slide", name
        if image_format(path) == "raster":
            written = _written(turn, "image", without_text(path))
            require_same(path, turn.out / written[2])
            return written
    except DataError as error:
        return turn.path, "refused", str(error)
    except OSError as error:
        if error.filename and str(error.filename).startswith(str(turn.out)):
            raise
        return turn.path, "refused", reason_of(error)
    except Exception as error:  # noqa: BLE001 - a broken file raises any type of error
        return turn.path, "refused", reason_of(error)
    if lower.endswith((".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".svslide", ".nrrd", ".mha", ".mhd", ".nhdr")):
        what = f"is {path.suffix}, whose labels and free text cannot be taken out here"
        return turn.path, "refused", f"{what}. Convert it to DICOM, TIFF or NIfTI first"
    return turn.path, "left out", f"file that is no image ({path.suffix or 'no suffix'})"


class LeftOut(Exception):  # noqa: N818 - not a fault
    """An object that is of no use in a dataset; the message says what it is."""


def deidentified_file(path: Path, key: bytes, options: Options, instead: str = "") -> tuple[str, bytes]:
    """Return a DICOM file's new path, inside a folder of copies, and its de-identified contents.

    Args:
        path: of the file.
        key: secret from which pseudonyms follow.
        options: how copies are made.
        instead: what names the file where its UIDs do not; nothing of it is in the new path.

    Raises:
        LeftOut: a report, plan, directory, or label of a slide.
        DataError: broken, or with text burned into its pixels; the message names no patient.
        Exception: pydicom cannot read it.
    """
    header = read_header(path)
    if isinstance(header, BrokenFile):
        raise DataError(header.reason)
    if not isinstance(header, ImageHeader | LabelHeader | SlideHeader):
        what = (header.modality or "object") if isinstance(header, OtherObject) else "directory"
        raise LeftOut(f"DICOM {what} (reports and plans are not copied)")
    if header.burned_in.upper() == "YES" and not options.keep_burned_in:
        raise DataError(
            "has text burned into its pixels (BurnedInAnnotation is YES). Mask it, or copy it with --keep-burned-in"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = read_file(path)
        if isinstance(header, SlideHeader) and _SLIDE_LABELS & set(dataset.get("ImageType", [])):
            raise LeftOut("label or overview of a slide")
        deidentify_dataset(dataset, key, options)
        series = str(dataset.get("SeriesInstanceUID", "") or _name(key, instead))
        folder = f"{dataset.PatientID}/{_name(key, series)}"
        name = f"{folder}/{_name(key, str(dataset.get('SOPInstanceUID', '') or instead))}.dcm"
        for keyword in _SENDER_KEYWORDS:
            if keyword in dataset.file_meta:
                del dataset.file_meta[keyword]
        dataset.preamble = b"\0" * 128
        buffer = io.BytesIO()
        dataset.save_as(buffer)
    return name, buffer.getvalue()


def _copy_dicom(turn: _CopyJob, path: Path) -> tuple[str, str, str]:
    try:
        name, content = deidentified_file(path, turn.key, turn.options, turn.path)
    except LeftOut as error:
        return turn.path, "left out", str(error)
    target = turn.out / name
    target.parent.mkdir(parents=True, exist_ok=True)
    write_whole(target, content)
    return turn.path, "DICOM", name


def _written(turn: _CopyJob, kind: str, content: bytes) -> tuple[str, str, str]:
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
    """Yield a data set's nested data sets, and itself.

    The innermost first, so that references are still there.
    """
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


def pseudonym(key: bytes, patient: str) -> str:
    """Return what stands for a patient in de-identified DICOM.

    Args:
        key: secret from which pseudonyms follow.
        patient: PatientID, without surrounding spaces.
    """
    return f"P{_name(key, patient)}"


def _patient_of(dataset: Dataset) -> str:
    identity = str(dataset.get("PatientID", "") or "").strip()
    return identity or str(dataset.get("PatientName", "") or dataset.get("StudyInstanceUID", "") or "unknown")


def _code(value: str, meaning: str) -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, "DCM", meaning
    return code


# --- other formats


def _nifti_without_text(path: Path) -> bytes:
    """Return a NIfTI file without free text.

    Text and extensions are overwritten; its voxels are the same bytes.
    """
    with open_nifti(path) as (file, _):
        header = nifti_header(path, beginning(file))
        start = int(header.get_data_offset())
        end = start + math.prod(header.get_data_shape()) * header.get_data_dtype().itemsize
        require_memory(2 * end)
        content = bytearray(file.read(end))  # bytes after the voxels are dropped
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


def read_key(path: Path) -> bytes:
    """Return the secret from which pseudonyms follow; it is made at first use.

    Raises:
        DataError: it is too short.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    key = random_secret(path)
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
    write_private(path, buffer.getvalue().encode())
