"""The DICOM files of a folder: their headers, read by several processes and remembered in its index."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from oncofed.data import case_facts
from oncofed.data.dicom.headers import Header, looks_like_dicom, read_header
from oncofed.data.dicom.patients import PatientFrom, person
from oncofed.data.dicom.pixels import digest
from oncofed.data.dicom.series import Heap, sort_heap
from oncofed.data.dicom.stacks import Slice
from oncofed.data.dicom.unread import tell_unread
from oncofed.data.files import no_image
from oncofed.data.images import image_format, looks_like
from oncofed.data.index import Index
from oncofed.data.layouts import SLIDES
from oncofed.data.layouts.tables import WORKBOOKS
from oncofed.data.request import Progress
from oncofed.data.workers import Workers

_HEADER = "header 3"  # raised when headers gain a field, so that what an older version remembered is read anew
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
_HEADERS_PER_TURN = 64


def read_heap(
    source: Path, files: Sequence[str], rule: PatientFrom, index: Index, progress: Progress, workers: Workers
) -> Heap:
    """Read the headers of a folder's DICOM files, and sort them into images and labels.

    Args:
        source: the folder.
        files: paths inside it; those that are images of another format by their names are not opened.
        rule: what tells patients apart.
        index: of what was read before.
        progress: called with (what is done, how many, of how many).
        workers: processes that read.
    """
    candidates = [f for f in files if not image_format(Path(f)) and not f.lower().endswith((*_NO_CASE, *SLIDES))]
    headers: list[tuple[str, Header]] = []
    fresh: list[tuple[str, str]] = []
    for path in candidates:
        try:
            seen = case_facts.stamp([source / path])
        except OSError as error:
            headers.append((path, {"kind": "broken", "reason": f"cannot be read ({error.strerror})"}))
            continue
        known = index.get(f"{_HEADER}:{path}", seen)
        if known is None:
            fresh.append((path, seen))
        else:
            headers.append((path, _shared(known)))
    turns = [(source, fresh[i : i + _HEADERS_PER_TURN]) for i in range(0, len(fresh), _HEADERS_PER_TURN)]
    done = len(headers)
    progress("reading headers", done, len(candidates))
    for batch in workers.map(_read_headers, turns, fewest=8):
        for path, seen, header in batch:
            header["stamp"] = seen
            index.put(f"{_HEADER}:{path}", seen, header)
            headers.append((path, _shared(header)))
        done += len(batch)
        progress("reading headers", done, len(candidates))
    for path, header in headers:
        if "patient" in header:
            header["person"] = person(path, header, rule)
            # Without a UID, what lies in one folder is looked at as one series.
            header["series"] = header["series"] or f"folder|{Path(path).parent}"

    def digests(slices: Sequence[Slice]) -> dict[str, str]:
        return _read_digests(source, slices, index, progress, workers)

    heap = sort_heap(((path, header) for path, header in headers if header["kind"] != "foreign"), digests)
    foreign = {path: header["what"] for path, header in headers if header["kind"] == "foreign"}
    heap.left_out |= foreign
    heap.stacks = tell_unread(heap.stacks, heap.broken, foreign)
    return heap


def _read_digests(
    source: Path, slices: Sequence[Slice], index: Index, progress: Progress, workers: Workers
) -> dict[str, str]:
    """Return path -> digest of the pixels of files that may be copies of others."""
    known = {item.path: index.get(f"pixels:{item.path}", item.header["stamp"]) for item in slices}
    fresh = [item for item in slices if known[item.path] is None]
    stamps = {item.path: item.header["stamp"] for item in fresh}
    turns = [(source, fresh[i : i + _HEADERS_PER_TURN]) for i in range(0, len(fresh), _HEADERS_PER_TURN)]
    done = 0
    for batch in workers.map(_digest_pixels, turns, fewest=8):
        for path, found in batch:
            index.put(f"pixels:{path}", stamps[path], found)
            known[path] = found
        done += len(batch)
        progress("comparing pixels", done, len(fresh))
    return known


def _digest_pixels(turn: tuple[Path, list[Slice]]) -> list[tuple[str, str]]:
    root, slices = turn
    return [(item.path, digest(root / item.path, item.header)) for item in slices]


def _shared(header: Header) -> Header:
    """Return a header whose texts are held once for all files that say the same: a heap has many thousands."""
    shared = {key: sys.intern(value) if isinstance(value, str) else value for key, value in header.items()}
    if "tells" in header:
        shared["tells"] = {sys.intern(key): sys.intern(value) for key, value in header["tells"].items()}
    return shared


def _read_headers(turn: tuple[Path, list[tuple[str, str]]]) -> list[tuple[str, str, Header]]:
    root, paths = turn
    return [(path, seen, _header(root / path)) for path, seen in paths]


def _header(path: Path) -> Header:
    try:
        size = path.stat().st_size
        if looks_like_dicom(path):
            return read_header(path)
    except OSError as error:
        return {"kind": "broken", "reason": f"cannot be read ({error.strerror})"}
    if path.suffix.lower() in {".dcm", ".dicom", ".ima"} or size == 0:
        if size == 0:
            return {"kind": "broken", "reason": "is empty (0 bytes). Copy it again"}
        found = looks_like(path) or "no image"
        return {
            "kind": "broken",
            "reason": f"is not DICOM; it looks like {found}. Copy it again, or export it as DICOM",
        }
    return {"kind": "foreign", "what": no_image(path)}
