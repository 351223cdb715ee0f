"""Index a folder's DICOM files by their headers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from oncofed.data import case_facts
from oncofed.data.dicom.header_types import BrokenFile, ForeignFile, Header, ObjectHeader, from_json, to_json
from oncofed.data.dicom.headers import looks_like_dicom, read_header
from oncofed.data.dicom.patients import PatientFrom, person
from oncofed.data.dicom.pixels import digest
from oncofed.data.dicom.series import DicomIndex, group_series
from oncofed.data.dicom.stacks import Slice
from oncofed.data.dicom.unread import note_unread
from oncofed.data.files import no_image
from oncofed.data.images import image_format, looks_like
from oncofed.data.index import Index
from oncofed.data.layouts import SLIDES
from oncofed.data.layouts.tables import WORKBOOKS
from oncofed.data.register_options import Progress
from oncofed.data.workers import Workers

# Increase when a header's fields change: files indexed by an older version are read again.
_HEADER = "header 5"
_NO_CASE = (
    ".json",
    ".txt",
    ".csv",
    ".tsv",
    ".xml",
    ".pdf",
    ".html",
    ".md",
    ".bval",
    ".bvec",
    ".py",
    ".yaml",
    ".yml",
    *WORKBOOKS,
)
_HEADERS_PER_BATCH = 64


def index_folder(
    source: Path, files: Sequence[str], rule: PatientFrom, index: Index, progress: Progress, workers: Workers
) -> DicomIndex:
    """Read the headers of a folder, and group its files.

    Args:
        source: the folder.
        files: paths inside it; files named as images of another format are not opened.
        rule: how to tell patients apart.
        index: of files that were read before.
        progress: called with (step, number done, number in all).
        workers: processes that read.
    """
    candidates = [f for f in files if not image_format(Path(f)) and not f.lower().endswith((*_NO_CASE, *SLIDES))]
    headers: dict[str, Header] = {}
    fresh: list[tuple[str, str]] = []
    for path in candidates:
        try:
            seen = case_facts.stamp([source / path])
        except OSError as error:
            headers[path] = _unreadable(error)
            continue
        known = index.get(f"{_HEADER}:{path}", seen)
        if known is None:
            fresh.append((path, seen))
        else:
            headers[path] = completed(path, from_json(known), seen, rule)
    batches = [(source, fresh[i : i + _HEADERS_PER_BATCH]) for i in range(0, len(fresh), _HEADERS_PER_BATCH)]
    done = len(headers)
    progress("reading headers", done, len(candidates))
    for batch in workers.map(_read_headers, batches, fewest=8):
        for path, seen, values in batch:
            index.put(f"{_HEADER}:{path}", seen, values)
            headers[path] = completed(path, from_json(values), seen, rule)
        done += len(batch)
        progress("reading headers", done, len(candidates))

    def digests(slices: Sequence[Slice]) -> dict[str, str]:
        return _read_digests(source, slices, index, progress, workers)

    foreign = {path: header.what for path, header in headers.items() if isinstance(header, ForeignFile)}
    found = group_series(((path, header) for path, header in headers.items() if path not in foreign), digests)
    found.left_out |= foreign
    found.stacks = note_unread(found.stacks, found.broken, foreign)
    return found


def completed(path: str, header: Header, stamp: str = "", rule: PatientFrom = "id") -> Header:
    """Complete a header: stamp, patient, series.

    Args:
        path: of the file; without a series UID, the files of one folder count as one series.
        header: as it was read.
        stamp: of the file.
        rule: how to tell patients apart.
    """
    if not isinstance(header, ObjectHeader):
        return header
    series = header.series or f"folder|{Path(path).parent}"
    return replace(header, series=series, stamp=stamp, person=person(path, header, rule))


def _read_digests(
    source: Path, slices: Sequence[Slice], index: Index, progress: Progress, workers: Workers
) -> dict[str, str]:
    """Return path -> digest of the pixels of possible copies."""
    known = {item.path: index.get(f"pixels:{item.path}", item.header.stamp) for item in slices}
    fresh = [item for item in slices if known[item.path] is None]
    stamps = {item.path: item.header.stamp for item in fresh}
    batches = [(source, fresh[i : i + _HEADERS_PER_BATCH]) for i in range(0, len(fresh), _HEADERS_PER_BATCH)]
    done = 0
    for batch in workers.map(_digest_pixels, batches, fewest=8):
        for path, found in batch:
            index.put(f"pixels:{path}", stamps[path], found)
            known[path] = found
        done += len(batch)
        progress("comparing pixels", done, len(fresh))
    return known


def _digest_pixels(batch: tuple[Path, list[Slice]]) -> list[tuple[str, str]]:
    root, slices = batch
    return [(item.path, digest(root / item.path, item.header)) for item in slices]


def _read_headers(batch: tuple[Path, list[tuple[str, str]]]) -> list[tuple[str, str, dict[str, Any]]]:
    root, paths = batch
    return [(path, seen, to_json(_header(root / path))) for path, seen in paths]


def _unreadable(error: OSError) -> BrokenFile:
    return BrokenFile(reason=f"cannot be read ({error.strerror})")


def _header(path: Path) -> Header:
    try:
        size = path.stat().st_size
        if looks_like_dicom(path):
            return read_header(path)
    except OSError as error:
        return _unreadable(error)
    if path.suffix.lower() in {".dcm", ".dicom", ".ima"} or size == 0:
        if size == 0:
            return BrokenFile(reason="is empty (0 bytes). Copy it again")
        found = looks_like(path) or "no image"
        return BrokenFile(reason=f"is not DICOM; it looks like {found}. Copy it again, or export it as DICOM")
    return ForeignFile(what=no_image(path))
