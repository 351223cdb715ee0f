"""Register a folder: from any layout to ``dataset.json``.

Image files stay where they are; the dataset's folder reaches them through its link ``source``. DICOM is converted once,
to NIfTI (volumes), PNG or TIFF (flat images) in the dataset's folder, without its headers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from oncofed.data.accounts import Reading, account
from oncofed.data.case_readers import FileWork, SlideWork, StackWork, Work, distinct_work
from oncofed.data.case_results import CaseFound, CaseResult, from_json, to_json
from oncofed.data.composed import ComposedWork
from oncofed.data.composition import compose, hashed_key, region_values
from oncofed.data.dicom.indexing import index_folder
from oncofed.data.dicom.matching import PlacedLabel, match_labels
from oncofed.data.dicom.series import DicomIndex
from oncofed.data.dicom.study_dates import placeholder_remarks, with_study_days
from oncofed.data.dicom.whole_slides import whole_slides
from oncofed.data.feature_work import FeatureWork
from oncofed.data.features.survey import Agreed
from oncofed.data.folder import Found, find_files
from oncofed.data.index import Index
from oncofed.data.layouts import ClassTable, FolderLayout, Item, find_layout, lists_images
from oncofed.data.layouts.features import as_stores, features_of_folder, lists_slides
from oncofed.data.layouts.kinds import DICOM, FEATURES, NOTHING, TABLE
from oncofed.data.layouts.telling import all_taken_for_masks
from oncofed.data.leftovers import remove_leftovers
from oncofed.data.manifest import (
    MANIFEST_FILE,
    Manifest,
    Task,
    manifest_path,
    read_manifest,
    write_manifest,
)
from oncofed.data.patient_keys import salt_for, told_apart
from oncofed.data.register_options import Progress, RegisterOptions, parse_labels
from oncofed.data.slides.regions import is_regions, label_values
from oncofed.data.workers import BROKE_ITS_READER, Workers
from oncofed.errors import DataError

__all__ = ["Progress", "RegisterOptions", "dataset_folder", "parse_labels", "register", "which_is_taken"]

SOURCE_LINK = "source"
INDEX_FILE = ".index.sqlite"


def register(options: RegisterOptions, progress: Progress | None = None) -> Manifest:
    """Read a folder and write ``options.out/dataset.json``.

    Only files that changed since the last time are read.

    Args:
        options: what to register.
        progress: called with (step, number done, number in all).

    Raises:
        DataError: the folder cannot be used at all. A single bad case is no error: it is in ``quarantine``.
        OSError: ``options.out`` cannot be written to; an existing manifest is unchanged.
    """
    progress = progress or (lambda what, done, total: None)
    source, out = _folders(options)
    out.mkdir(parents=True, exist_ok=True)
    salt = salt_for(out, options.patients_of)
    before = read_manifest(out) if (out / MANIFEST_FILE).is_file() else None
    patient_from = options.patient_from
    if options.patient_from is None:
        options = replace(options, patient_from=before.patient_from if before else "id")
    prefix = _link(source, out)
    progress("looking for files", 0, 0)
    found = _files_to_read(source, out, options.only)
    if options.features:
        as_stores(found)
    files = found.files
    with Index(out / INDEX_FILE) as index, Workers(options.workers) as workers:
        lists = lists_slides if options.features else lists_images
        listing = options.table if lists(options.table, options.targets) else None
        layout, agreed = _layout(options, files, listing, progress)
        dicom = DicomIndex()
        if layout.kind.may_hold_dicom:
            dicom = index_folder(source, files, options.patient_from or "id", index, progress, workers)
        if layout.kind is NOTHING and (dicom.stacks or dicom.slides or dicom.broken):
            layout.kind = DICOM
        task = cast("Task", options.task or layout.task or ("slides" if dicom.slides else "segmentation"))
        table = ClassTable(None if listing else options.table, dicom.headers, options.targets, layout.items)
        _require_table(options, listing, layout, dicom, table)
        if options.table and not listing:
            layout.items = [table.with_patient(item) for item in layout.items]
            layout.targets = {**layout.targets, **table.targets}
            layout.remarks += table.remarks
        labels = _match_labels(dicom, options)
        work = [
            *(_feature_work(layout, options, prefix, agreed) if agreed else _file_work(layout, options, prefix)),
            *_dicom_work(dicom, labels, options, salt, table),
            *_slide_work(dicom, options, salt, table),
        ]
        work = distinct_work(work, {bad.name for bad in layout.bad})
        layout.bad += table.faults
        if not work and not layout.bad and not dicom.broken:
            raise DataError(_nothing_found(options.source, files, layout, {**dicom.left_out, **found.left_out}))
        results = with_study_days(list(_read_all(work, index, progress, workers)), dicom.headers)
    layout.remarks += placeholder_remarks(dicom.headers)
    manifest = compose(options, task, layout, dicom, table.classes, results, salt, before)
    other = read_manifest(options.patients_of) if options.patients_of else None
    manifest = manifest.model_copy(update={"told_apart": told_apart(manifest.entries, before, other)})
    reading = Reading(
        paths=files,
        passed_over=found.left_out,
        dangling=found.dangling,
        source=source,
        table=options.table,
        layout=layout,
        dicom=dicom,
        work=work,
        patient_from=patient_from,
        rows=table.unmatched(),
        classes=table,
        not_drawn={r.name: r.not_drawn for r in results if isinstance(r, CaseFound) and r.not_drawn},
    )
    became, manifest = account(reading, manifest)
    write_manifest(out, manifest)
    became.write(out)
    remove_leftovers(out, before, manifest)
    return manifest


def _folders(options: RegisterOptions) -> tuple[Path, Path]:
    """Return the images' folder and the dataset's.

    Raises:
        DataError: there are no images there, or the dataset would lie among them.
    """
    source, out = options.source.resolve(), options.out.resolve()
    if not source.is_dir():
        raise DataError(f"{options.source}: no such folder. Name the folder that holds the images.")
    if source == out:
        raise DataError(f"{options.source}: the dataset's folder cannot be the images' own. Name another with --out.")
    return source, out


def _layout(
    options: RegisterOptions, files: Sequence[str], listing: Path | None, progress: Progress
) -> tuple[FolderLayout, Agreed | None]:
    """Return the cases of a folder; of features, also what they have in common."""
    source, targets = options.source.resolve(), options.targets
    if options.features is None:
        return find_layout(source, files, listing, options.task, options.labels, options.classes, targets), None
    return features_of_folder(
        source,
        files,
        options.features,
        options.slides or listing,
        None if options.table and not listing else targets,
        lambda done, total: progress("looking at features", done, total),
    )


def _require_table(
    options: RegisterOptions, listing: Path | None, layout: FolderLayout, dicom: DicomIndex, table: ClassTable
) -> None:
    """Refuse a table that says nothing of the folder, and targets without a table.

    Raises:
        DataError: see there.
    """
    named = options.table or options.slides
    if options.targets and not named and layout.kind is not TABLE and not (layout.kind is FEATURES and layout.tables):
        raise DataError("--targets names columns, and no table was found. Name it: --labels TABLE")
    if not options.table or listing or dicom.stacks or dicom.slides:
        return
    if options.targets is None:
        raise DataError(f"{options.table}: it names no image, and {options.source} holds no DICOM. Add a column image.")
    if table.classes:
        raise DataError(
            f"{options.table}: its column label is that of patients, and {options.source} holds no DICOM. Name it as a "
            "target, such as --targets diagnosis=class:label, or add a column image; where it is of no use, take it "
            "out of the table."
        )
    if not any(table.knows(item) for item in layout.items):
        patients = ", ".join(f"{item.patient!r}" for item in layout.items[:3])
        raise DataError(
            f"{options.table}: no row is of a patient of {options.source}, whose images are of {patients}. Expected "
            "these in the column patient; or add a column image"
        )


def _files_to_read(source: Path, out: Path, only: frozenset[str] | None) -> Found:
    """Return a folder's files, without those of the dataset and those that nobody wants."""
    found = find_files(source)
    if out.is_relative_to(source):
        own = f"{out.relative_to(source)}/"
        found.files = [path for path in found.files if not path.startswith(own)]
        found.left_out = {path: why for path, why in found.left_out.items() if not path.startswith(own)}
        found.left_out[own] = "the dataset's own folder"
    if only is not None:
        found.left_out |= dict.fromkeys((path for path in found.files if path not in only), "not of the cohort")
        found.files = [path for path in found.files if path in only]
    return found


def _link(source: Path, out: Path) -> str:
    """Link the dataset to its source; return the paths' prefix."""
    link = out / SOURCE_LINK
    if not link.is_symlink() or link.resolve() != source:
        unfinished = out / f".{SOURCE_LINK}.new"
        unfinished.unlink(missing_ok=True)
        unfinished.symlink_to(source)
        unfinished.replace(link)
    return f"{SOURCE_LINK}/"


def _nothing_found(source: Path, files: Sequence[str], layout: FolderLayout, left_out: Mapping[str, str]) -> str:
    if why := all_taken_for_masks(layout.left_out):
        return (
            f"{source}: no image found: {why}, and they hold few values as masks do. Register the folder of their "
            "images with them, or, where they are images, rename it."
        )
    suffixes = Counter(Path(f).suffix or "no suffix" for f in files)
    found = ", ".join(f"{n} {s}" for s, n in suffixes.most_common(4)) or "no file"
    if left_out:
        found = ", ".join(f"{n} {kind}" for kind, n in Counter(left_out.values()).items())
    return (
        f"{source}: no image found (found {found}; layout: {layout.kind.name}). Expected DICOM, NIfTI, NRRD, "
        "MetaImage, PNG, JPEG, TIFF or slides, or a table with a column image."
    )


# --- the cases to read


def _file_work(layout: FolderLayout, options: RegisterOptions, prefix: str) -> Iterator[Work]:
    source, out = options.source.resolve(), options.out.resolve()
    slide_task = (options.task or layout.task) == "slides"
    names = {name: value for value, name in options.labels.items()}
    named = tuple(sorted({**layout.labels, **options.labels}))
    if slide_task and not names:
        drawn = {item.label for item in layout.items if isinstance(item.label, str) and is_regions(Path(item.label))}
        names = label_values(source / path for path in sorted(drawn))
        layout.labels |= {value: name for name, value in names.items()}
    for item in layout.items:
        if slide_task:
            yield SlideWork(root=source, prefix=prefix, out=out, item=item, tiles=options.tiles, names=names)
        elif isinstance(item.label, tuple):
            yield ComposedWork(root=source, prefix=prefix, item=item, named=named, out=out)
        else:
            yield FileWork(root=source, prefix=prefix, item=item, named=named)


def _feature_work(layout: FolderLayout, options: RegisterOptions, prefix: str, agreed: Agreed) -> Iterator[Work]:
    assert options.features is not None
    for item in layout.items:
        yield FeatureWork(options.source.resolve(), prefix, item, options.features, agreed)


def _match_labels(dicom: DicomIndex, options: RegisterOptions) -> list[tuple[PlacedLabel, ...]]:
    """Return each image's label files.

    Files that match no image are left out, with the reason.
    """
    wanted = {name: value for value, name in options.labels.items() if value}
    placed, reasons = match_labels(options.source.resolve(), dicom.stacks, dicom.labels, wanted or None, dicom.slides)
    dicom.unplaced = [label for label in dicom.labels if label.path in reasons]
    dicom.labels = [label for label in dicom.labels if label.path not in reasons]
    dicom.left_out |= reasons
    return placed


def _dicom_work(
    dicom: DicomIndex,
    placed: Sequence[tuple[PlacedLabel, ...]],
    options: RegisterOptions,
    salt: bytes,
    table: ClassTable,
) -> Iterator[Work]:
    values = region_values(dicom, options)
    for stack, labels in zip(dicom.stacks, placed, strict=True):
        header = stack.header
        name = f"{hashed_key(salt, header.patient, 8)}-{hashed_key(salt, header.series, 8)}"
        name += f"-{stack.part}" if stack.part else ""
        if stack.kind == "flat":
            name += f"-{hashed_key(salt, header.instance or stack.slices[0].path, 6)}"
        number, split = table.find(header)
        stated = table.stated(header)
        yield StackWork(
            root=options.source.resolve(),
            out=options.out.resolve(),
            name=name,
            stack=stack,
            labels=labels,
            values=values,
            class_label=number,
            split=split,
            stated=stated,
        )


def _slide_work(dicom: DicomIndex, options: RegisterOptions, salt: bytes, table: ClassTable) -> Iterator[Work]:
    source, out = options.source.resolve(), options.out.resolve()
    names = {name: value for value, name in options.labels.items()}
    found, left_out = whole_slides(dicom.slides)
    dicom.left_out |= left_out
    for slide in found:
        header = slide.instances[0].header
        name = f"{hashed_key(salt, header.patient, 8)}-{hashed_key(salt, slide.series, 8)}"
        rows = [table.find(instance.header) for instance in slide.instances]
        label, split = next((row for row in rows if row != (None, None)), (None, None))
        stated = table.stated(header)
        files = tuple(instance.path for instance in slide.instances)
        yield SlideWork(
            root=source,
            prefix=f"{SOURCE_LINK}/",
            out=out,
            item=Item(
                name=name,
                patient=header.person,
                images=files[:1],
                label=label,
                split=split,
                modality="SM",
                tags=dict(stated.tags),
                targets=stated.targets,
                unread=stated.unread,
                looked_for=stated.looked_for,
            ),
            tiles=options.tiles,
            names=names,
            instances=files,
        )


# --- reading


def _read_all(work: Sequence[Work], index: Index, progress: Progress, workers: Workers) -> Iterator[CaseResult]:
    fresh: list[Work] = []
    done = 0
    for item in work:
        known = index.get(item.key, item.stamp())
        if known is None:
            fresh.append(item)
        else:
            done += 1
            yield from_json(known)
    progress("reading images", done, len(work))
    by_key = {item.key: item for item in fresh}
    for key, values in workers.map(_read_one, fresh, broken=_broke_its_reader):
        index.put(key, by_key[key].stamp(), values)
        done += 1
        progress("reading images", done, len(work))
        yield from_json(values)


def _read_one(work: Work) -> tuple[str, dict[str, Any]]:
    return work.key, to_json(work.read())


def _broke_its_reader(work: Work) -> tuple[str, dict[str, Any]]:
    return work.key, to_json(work.set_aside(BROKE_ITS_READER))


def dataset_folder(name_or_folder: str | Path, datasets: Path) -> Path:
    """Return a dataset's folder by path or registered name.

    A folder without ``dataset.json`` but with a registered dataset's name stands for that dataset: it is likely its
    source.

    Raises:
        DataError: there is none.
    """
    path, registered = Path(name_or_folder).expanduser(), datasets / str(name_or_folder)
    if path.is_dir() and ((path / MANIFEST_FILE).is_file() or not (registered / MANIFEST_FILE).is_file()):
        return manifest_path(path).parent
    if registered.is_dir():
        return manifest_path(registered).parent
    known = sorted(p.parent.name for p in datasets.glob("*/dataset.json"))
    raise DataError(
        f"{name_or_folder}: neither a folder nor a registered dataset. Registered in {datasets}: "
        f"{', '.join(known) or 'none'}. Register a folder with: oncofed data register FOLDER --dataset NAME"
    )


def which_is_taken(name_or_folder: str | Path, datasets: Path) -> str:
    """Return which dataset an ambiguous name means.

    Empty unless both a folder and a registered dataset have the name. Also empty for a folder that was registered under
    its own name: both are the same images.
    """
    path, registered = Path(name_or_folder).expanduser(), datasets / str(name_or_folder)
    source = registered / SOURCE_LINK
    if not path.is_dir() or not (registered / MANIFEST_FILE).is_file() or path.resolve() == registered.resolve():
        return ""
    if (path / MANIFEST_FILE).is_file():
        return f"{name_or_folder}: the folder {path.resolve()} is taken, not the dataset that is registered so"
    if source.is_symlink() and source.resolve() == path.resolve():
        return ""
    return f"{name_or_folder}: the dataset registered in {registered} is taken, not the folder {path.resolve()}"
