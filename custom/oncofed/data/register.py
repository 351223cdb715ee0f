"""From a folder of any layout to one checked list of cases: ``dataset.json``.

Images that are files of their own stay where they are; the dataset's folder reaches them through its link ``source``.
DICOM is converted once, to NIfTI (volumes), PNG or TIFF (flat images) in the dataset's folder, and no header goes
along.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from oncofed.data import facts
from oncofed.data.accounts import Reading, account
from oncofed.data.composed import ComposedWork
from oncofed.data.converted import SUFFIXES
from oncofed.data.dicom.headers import Header, looks_like_dicom, read_header
from oncofed.data.dicom.matching import PlacedLabel, match_labels
from oncofed.data.dicom.patients import PatientFrom, person
from oncofed.data.dicom.pixels import digest
from oncofed.data.dicom.series import Heap, sort_heap
from oncofed.data.dicom.stacks import Slice
from oncofed.data.dicom.whole_slides import whole_slides
from oncofed.data.folder import find_files
from oncofed.data.images import image_format, looks_like
from oncofed.data.index import Index
from oncofed.data.layouts import SLIDES, ClassTable, Item, Layout, find_layout, lists_images
from oncofed.data.layouts.tables import WORKBOOKS
from oncofed.data.manifest import (
    MANIFEST_FILE,
    SALT_FILE,
    Entry,
    Manifest,
    Quarantined,
    Task,
    manifest_path,
    read_manifest,
    write_manifest,
)
from oncofed.data.masks import value_name, value_of
from oncofed.data.palettes import one_palette
from oncofed.data.slides import TileSpec
from oncofed.data.slides.regions import is_regions, label_values
from oncofed.data.work import FileWork, SlideWork, StackWork, Work
from oncofed.data.workers import BROKE_ITS_READER, Workers
from oncofed.errors import DataError

SOURCE_LINK = "source"
_INDEX_FILE = ".index.sqlite"
_HEADER = "header 2"  # raised when headers gain a field, so that what an older version remembered is read anew
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
_NUMBERED = 8

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Request:
    """What to register, and how.

    Attributes:
        source: the folder.
        name: of the dataset.
        out: the dataset's folder.
        task: "segmentation", "classification" or "slides"; None: as the layout says.
        labels: label value -> name, where the user says it.
        table: CSV or TSV with columns image (or patient, series), label, split; None: as found in the folder.
        tiles: how slides are cut.
        workers: processes; None: one a core.
        patient_from: what tells DICOM patients apart; None: as when the dataset was registered before, else their IDs.
    """

    source: Path
    name: str
    out: Path
    task: Task | None = None
    labels: Mapping[int, str] = field(default_factory=dict)
    table: Path | None = None
    tiles: TileSpec = field(default_factory=TileSpec)
    workers: int | None = None
    patient_from: PatientFrom | None = None


def register(request: Request, progress: Progress | None = None) -> Manifest:
    """Read a folder and write ``request.out/dataset.json``; only what changed since the last time is read.

    Args:
        request: what to register.
        progress: called with (what is done, how many, of how many).

    Raises:
        DataError: the folder cannot be used at all. A single bad case is no error: it is in ``quarantine``.
        OSError: ``request.out`` cannot be written to; a manifest that was there is as it was.
    """
    progress = progress or (lambda what, done, total: None)
    source, out = request.source.resolve(), request.out.resolve()
    if not source.is_dir():
        raise DataError(f"{request.source}: no such folder. Name the folder that holds the images.")
    if source == out:
        raise DataError(f"{request.source}: the dataset's folder cannot be the images' own. Name another with --out.")
    out.mkdir(parents=True, exist_ok=True)
    salt = _salt(out)
    before = read_manifest(out) if (out / MANIFEST_FILE).is_file() else None
    if request.patient_from is None:
        request = replace(request, patient_from=before.patient_from if before else "id")
    prefix = _link(source, out)
    progress("looking for files", 0, 0)
    found = find_files(source)
    files = found.files
    if out.is_relative_to(source):
        own = f"{out.relative_to(source)}/"
        files = [path for path in files if not path.startswith(own)]
        found.left_out = {path: why for path, why in found.left_out.items() if not path.startswith(own)}
        found.left_out[own] = "the dataset's own folder"
    with Index(out / _INDEX_FILE) as index, Workers(request.workers) as workers:
        listing = request.table if lists_images(request.table) else None
        layout = find_layout(source, files, listing, request.task, request.labels)
        heap = Heap()
        if layout.heap:
            heap = _read_heap(request, files, index, progress, workers)
        if layout.kind == "nothing" and (heap.stacks or heap.slides or heap.broken):
            layout.kind = "DICOM"
        task = cast("Task", request.task or layout.task or ("slides" if heap.slides else "segmentation"))
        table = ClassTable(request.table)
        if request.table and not listing and not (heap.stacks or heap.slides):
            raise DataError(
                f"{request.table}: it names no image, and {request.source} holds no DICOM. Add a column image."
            )
        labels = _match_labels(heap, request)
        work = [
            *_file_work(layout, request, prefix),
            *_dicom_work(heap, labels, request, salt, table),
            *_slide_work(heap, request, salt, table),
        ]
        layout.bad += table.faults
        if not work and not layout.bad and not heap.broken:
            raise DataError(_nothing_found(request.source, files, layout, {**heap.left_out, **found.left_out}))
        results = list(_read_all(work, index, progress, workers))
    manifest = _compose(request, task, layout, heap, results, salt, before)
    reading = Reading(
        files, found.left_out, found.dangling, source, request.table, layout, heap, work, table.unmatched()
    )
    became, manifest = account(reading, manifest)
    write_manifest(out, manifest)
    became.write(out)
    _remove_stale(out, manifest)
    return manifest


def parse_labels(text: str) -> dict[int, str]:
    """Return label value -> name of ``1=liver,2=tumour`` or ``liver,tumour``.

    Raises:
        DataError: it is neither.
    """
    labels: dict[int, str] = {}
    for number, part in enumerate((p.strip() for p in text.split(",")), start=1):
        value, equals, name = part.partition("=")
        known = value_of(value) if equals else number
        if known is None or (equals and not name.strip()):
            raise DataError(f"--labels {text}: found {part!r}, expected VALUE=NAME, such as 1=liver,#ff0000=tumour")
        labels[known] = name.strip() if equals else part
    labels.setdefault(0, "background")
    return dict(sorted(labels.items()))


def _salt(out: Path) -> bytes:
    """Return the secret with which this dataset's patients are hashed; it never leaves the folder."""
    path = out / SALT_FILE
    if not path.is_file():
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(32))
    return path.read_bytes()


def _hash(salt: bytes, text: str, length: int = 16) -> str:
    return hmac.new(salt, text.encode(), hashlib.sha256).hexdigest()[:length]


def _link(source: Path, out: Path) -> str:
    """Make the dataset's link to its source and return the prefix of paths through it."""
    link = out / SOURCE_LINK
    if not link.is_symlink() or link.resolve() != source:
        unfinished = out / f".{SOURCE_LINK}.new"
        unfinished.unlink(missing_ok=True)
        unfinished.symlink_to(source)
        unfinished.replace(link)
    return f"{SOURCE_LINK}/"


def _nothing_found(source: Path, files: Sequence[str], layout: Layout, left_out: Mapping[str, str]) -> str:
    suffixes = Counter(Path(f).suffix or "no suffix" for f in files)
    found = ", ".join(f"{n} {s}" for s, n in suffixes.most_common(4)) or "no file"
    if left_out:
        found = ", ".join(f"{n} {kind}" for kind, n in Counter(left_out.values()).items())
    return (
        f"{source}: no image found (found {found}; layout: {layout.kind}). Expected DICOM, NIfTI, NRRD, MetaImage, "
        "PNG, JPEG, TIFF or slides, or a table with a column image."
    )


# --- DICOM headers


def _read_heap(request: Request, files: Sequence[str], index: Index, progress: Progress, workers: Workers) -> Heap:
    source, rule = request.source.resolve(), request.patient_from or "id"
    candidates = [f for f in files if not image_format(Path(f)) and not f.lower().endswith((*_NO_CASE, *SLIDES))]
    headers: list[tuple[str, Header]] = []
    fresh: list[tuple[str, str]] = []
    for path in candidates:
        try:
            seen = facts.stamp([source / path])
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
    heap.left_out |= {path: header["what"] for path, header in headers if header["kind"] == "foreign"}
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
    return {"kind": "foreign", "what": f"file that is no image ({path.suffix or 'no suffix'})"}


# --- what there is to read


def _file_work(layout: Layout, request: Request, prefix: str) -> Iterator[Work]:
    source, out = request.source.resolve(), request.out.resolve()
    slide_task = (request.task or layout.task) == "slides"
    names = {name: value for value, name in request.labels.items()}
    if slide_task and not names:
        drawn = {item.label for item in layout.items if isinstance(item.label, str) and is_regions(Path(item.label))}
        names = label_values(source / path for path in sorted(drawn))
        layout.labels |= {value: name for name, value in names.items()}
    for item in layout.items:
        if slide_task:
            yield SlideWork(source, prefix, out, item, request.tiles, names)
        elif isinstance(item.label, tuple):
            yield ComposedWork(source, prefix, item, out)
        else:
            yield FileWork(source, prefix, item)


def _match_labels(heap: Heap, request: Request) -> list[tuple[PlacedLabel, ...]]:
    """Return the label files of each image; those that lie on none are left out of the heap, with the reason."""
    wanted = {name: value for value, name in request.labels.items() if value}
    placed, reasons = match_labels(request.source.resolve(), heap.stacks, heap.labels, wanted or None, heap.slides)
    heap.unplaced = [label for label in heap.labels if label.path in reasons]
    heap.labels = [label for label in heap.labels if label.path not in reasons]
    heap.left_out |= reasons
    return placed


def _dicom_work(
    heap: Heap, placed: Sequence[tuple[PlacedLabel, ...]], request: Request, salt: bytes, table: ClassTable
) -> Iterator[Work]:
    values = _label_values(heap, request)
    for stack, labels in zip(heap.stacks, placed, strict=True):
        header = stack.header
        name = f"{_hash(salt, header['patient'], 8)}-{_hash(salt, header['series'], 8)}"
        name += f"-{stack.part}" if stack.part else ""
        if stack.kind == "flat":
            name += f"-{_hash(salt, header['instance'] or stack.slices[0].path, 6)}"
        number, split = table.find(header)
        yield StackWork(request.source.resolve(), request.out.resolve(), name, stack, labels, values, number, split)


def _slide_work(heap: Heap, request: Request, salt: bytes, table: ClassTable) -> Iterator[Work]:
    source, out = request.source.resolve(), request.out.resolve()
    names = {name: value for value, name in request.labels.items()}
    found, left_out = whole_slides(heap.slides)
    heap.left_out |= left_out
    for slide in found:
        header = slide.instances[0].header
        name = f"{_hash(salt, header['patient'], 8)}-{_hash(salt, slide.series, 8)}"
        said = [table.find(instance.header) for instance in slide.instances]
        label, split = next((one for one in said if one != (None, None)), (None, None))
        item = Item(name, header["person"], (slide.instances[0].path,), label, split, "SM")  # type: ignore[arg-type]
        files = tuple(instance.path for instance in slide.instances)
        yield SlideWork(source, f"{SOURCE_LINK}/", out, item, request.tiles, names, files)


def _label_values(heap: Heap, request: Request) -> dict[str, int]:
    """Return region name -> label value: as the user says, else in the order of the alphabet."""
    given = {name: value for value, name in request.labels.items() if value}
    if given:
        return given
    names = sorted({name for label in heap.labels for name in label.header["labels"].values()})
    return {name: number for number, name in enumerate(names, start=1)}


# --- reading


def _read_all(work: Sequence[Work], index: Index, progress: Progress, workers: Workers) -> Iterator[dict[str, Any]]:
    fresh: list[Work] = []
    done = 0
    for item in work:
        known = index.get(item.key, item.stamp())
        if known is None:
            fresh.append(item)
        else:
            done += 1
            yield known
    progress("reading images", done, len(work))
    by_key = {item.key: item for item in fresh}
    for key, result in workers.map(_read_one, fresh, broken=_broke_its_reader):
        index.put(key, by_key[key].stamp(), result)
        done += 1
        progress("reading images", done, len(work))
        yield result


def _read_one(work: Work) -> tuple[str, dict[str, Any]]:
    result = work.read()
    return work.key, {k: v.model_dump() if hasattr(v, "model_dump") else v for k, v in result.items() if v is not None}


def _broke_its_reader(work: Work) -> tuple[str, dict[str, Any]]:
    return work.key, work.set_aside(BROKE_ITS_READER)


# --- the manifest


def _compose(
    request: Request,
    task: Task,
    layout: Layout,
    heap: Heap,
    results: Iterable[dict[str, Any]],
    salt: bytes,
    before: Manifest | None,
) -> Manifest:
    entries: list[Entry] = []
    quarantine = list(layout.bad)
    results = list(results)
    masks = _taken_for_images(results)
    quarantine += [
        Quarantined(name=_hash(salt, path, 12), reason=reason, source=path) for path, reason in heap.broken.items()
    ]
    for result in results:
        if result["name"] in masks:
            quarantine.append(Quarantined(name=result["name"], reason=masks[result["name"]], source=result["source"]))
        elif "reason" in result:
            quarantine.append(Quarantined.model_validate(result))
        else:
            hashed = {key: _hash(salt, result[key]) for key in ("patient", "study") if result.get(key)}
            entries.append(Entry.model_validate({**result, **hashed}))
    entries = one_palette(entries)
    kind = "classes" if heap.labels else _label_kind(entries, layout, request)
    if kind == "instances":
        entries = [_as_one_class(entry) for entry in entries]
    labels = _labels(entries, layout, heap, request)
    usable = []
    for entry in sorted(entries, key=lambda e: e.name or ""):
        reasons = [*facts.faults(entry), *_outside_vocabulary(entry, labels, request, layout)]
        if reasons:
            quarantine.append(Quarantined(name=entry.name or "", reason="; ".join(reasons), source=entry.source))
        else:
            usable.append(entry)
    return Manifest(
        name=request.name,
        description=f"registered by oncofed, layout: {layout.kind}",
        task=task,
        modality=layout.modality or _modality(usable),
        labels={str(value): name for value, name in sorted(labels.items())},
        label_kind=kind,
        label_map=before.label_map if before else {},
        patient_from=request.patient_from or "id",
        reviewed=before.reviewed if before else [],
        decisions=before.decisions if before else [],
        training=[e for e in usable if e.split in {None, "training"}],
        validation=[e for e in usable if e.split == "validation"],
        test=[e for e in usable if e.split == "test"],
        quarantine=sorted(quarantine, key=lambda q: q.name),
    )


def _taken_for_images(results: Iterable[dict[str, Any]]) -> dict[str, str]:
    """Return name -> reason of cases that are masks: few whole numbers alone, on the grid of another's image."""
    grids: dict[str, str] = {}
    few = []
    for result in results:
        if "reason" in result:
            continue
        grid = f"{result.get('shape')} {result.get('affine')}"
        if result.get("looks_like_mask"):
            few.append((result["name"], grid))
        else:
            grids.setdefault(grid, result["source"])
    return {
        name: f"holds few whole numbers alone, on the grid of {grids[grid]}: it looks like a mask, expected an image. "
        "Name it as its image (CASE_seg beside CASE), or list both in a table (image, label)"
        for name, grid in few
        if grid in grids
    }


def _label_kind(entries: Sequence[Entry], layout: Layout, request: Request) -> Literal["classes", "instances"]:
    """Return "instances" where masks number their objects: 1, 2, … n, with another n in each image."""
    named = {v for v in {**layout.labels, **request.labels} if v}
    counts = [e.instances for e in entries if e.instances]
    if len(named) > 1 or not counts:
        return "classes"
    running = [
        e.instances > 64 or sorted(facts.label_counts(e.label_values or {}))[-1] <= e.instances + 2
        for e in entries
        if e.instances
    ]
    if max(counts) > _NUMBERED and len(set(counts)) > min(3, len(counts) - 1) and np.mean(running) > 0.8:
        return "instances"
    return "classes"


def _as_one_class(entry: Entry) -> Entry:
    if entry.label_values is None:
        return entry
    counts = facts.label_counts(entry.label_values)
    background = counts.get(0, 0)
    values = {"0": background, "1": sum(counts.values()) - background}
    return entry.model_copy(update={"label_values": {k: v for k, v in values.items() if v}})


def _labels(entries: Sequence[Entry], layout: Layout, heap: Heap, request: Request) -> dict[int, str]:
    """Return label value -> name; a value that nobody named has its own number as name."""
    found: set[int] = set()
    for entry in entries:
        found |= set(facts.label_counts(entry.label_values or {}))
        if isinstance(entry.label, int):
            found.add(entry.label)
    named = {**layout.labels, **{v: n for n, v in _label_values(heap, request).items()}, **request.labels}
    if heap.stacks and request.table and not lists_images(request.table):
        named |= {number: label for label, number in ClassTable(request.table).classes.items()}
    masks = any(isinstance(entry.label, str) for entry in entries)
    if masks or any(entry.label_values for entry in entries):
        named.setdefault(0, "background")
    explicit = bool(layout.labels or request.labels)
    return named if explicit and set(named) - {0} else {**{v: value_name(v) for v in sorted(found)}, **named}


def _outside_vocabulary(entry: Entry, labels: Mapping[int, str], request: Request, layout: Layout) -> list[str]:
    if not (layout.labels or request.labels) or entry.label_values is None:
        return []
    extra = sorted(set(facts.label_counts(entry.label_values)) - set(labels) - {0})
    if not extra:
        return []
    values = ", ".join(map(value_name, extra[:5]))
    return [f"its label holds the values {values}, expected only {sorted({0, *labels})}"]


def _modality(entries: Sequence[Entry]) -> dict[str, str]:
    found = Counter(entry.modality for entry in entries if entry.modality)
    return {"0": "/".join(sorted(found))} if found else {}


def _remove_stale(out: Path, manifest: Manifest) -> None:
    """Remove converted images of cases that are no longer there: a patient who withdrew is gone from here too."""
    kept = {path for e in manifest.entries for path in (*e.images, e.label, e.tiles) if isinstance(path, str)}
    for folder in ("images", "labels", "tiles"):
        for path in (out / folder).glob("*") if (out / folder).is_dir() and not (out / folder).is_symlink() else ():
            if f"{folder}/{path.name}" not in kept and path.suffix in {*SUFFIXES, ".npz"}:
                path.unlink()
    for path in (out / "slides").glob("*"):
        if f"slides/{path.name}" not in kept:
            shutil.rmtree(path)


def dataset_folder(name_or_folder: str | Path, datasets: Path) -> Path:
    """Return the folder of a dataset given by folder or by the name under which it is registered.

    Raises:
        DataError: there is none.
    """
    path = Path(name_or_folder).expanduser()
    if path.is_dir():
        return manifest_path(path).parent
    if (datasets / str(name_or_folder)).is_dir():
        return manifest_path(datasets / str(name_or_folder)).parent
    known = sorted(p.parent.name for p in datasets.glob("*/dataset.json"))
    raise DataError(
        f"{name_or_folder}: neither a folder nor a registered dataset. Registered in {datasets}: "
        f"{', '.join(known) or 'none'}. Register a folder with: oncofed data register FOLDER --dataset NAME"
    )
