"""Account for a folder's files, labels and table rows."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unicodedata import normalize

from oncofed.data.absent import absences
from oncofed.data.case_readers import StackWork, Work, is_dicom
from oncofed.data.decisions import decided, is_labelled, name_of
from oncofed.data.dicom.matching import BESIDE, ON_EACH
from oncofed.data.dicom.references import named_twice, region_key
from oncofed.data.dicom.series import DicomIndex
from oncofed.data.files import Files
from oncofed.data.grouping import EXAMPLES, counted, named
from oncofed.data.layouts import ClassTable, FolderLayout
from oncofed.data.manifest import SPLITS, Entry, Manifest
from oncofed.data.unlabelled import why_unlabelled

# Start of a reason -> advice, for reasons that hold none.
_ADVICE = {
    "label whose regions are not": "name them with --labels too, where they are to be learned",
    "label whose": "export it again on the image that it was drawn on",
    "mask of": "nothing, where that is so; else list image and label in a table",
    "features without coordinates": "nothing: those with coordinates are taken",
    "features of another encoder": "nothing, where those that were asked for are meant",
    "features that the table": "add a row for them, or leave them out",
    "slide without": "extract its features, or register it by itself",
    "mask that": "name it in dataset.json or the table, or register its folder by itself",
    "file of a case": "bring what it lacks, and register again",
    "channel that": "bring it for every case, where it is to be learned from",
    "image that the table": "add a row for it to the table",
    "image or mask": "name it in dataset.json or the table, or register its folder by itself",
    "image that": "name it in dataset.json, or register its folder by itself",
    "image without": "name it as nnU-Net does: CASE_0000.nii.gz",
    "image outside": "move it to where the layout has its images, or register its folder by itself",
    "table that": "name it with --labels FILE if it says the labels",
    "workbook": "save it as CSV, and name it with --labels FILE if it says the labels",
    "folder that cannot": "give yourself the right to read it, and register again",
    "hidden": "rename it if it is of use",
    "link that": "bring the file that it stands for",
    "link to": "nothing: its files are used once",
    "copy of": "nothing: the other one is used",
    "unlabelled test": "nothing: no job learns from it",
    "one slice of another": "nothing, where it is a localizer; else bring the slices that it belongs to",
    "picture beside": "nothing, where it is a viewer's or a thumbnail; else register its folder by itself",
    "picture of a screen": "nothing: it is no image to learn from",
    "localizer": "nothing: it is no image to learn from",
    "DICOM": "nothing: it holds no image",
    "the dataset's own": "nothing: it is what registering writes",
    "file that is no image": "nothing, where that is so",
}
# Part of what is wrong with a cell -> what to do about it; the first that fits.
_REMEDIES = {
    "of one patient and contradict": "rows of one patient state one value: correct the table, or say per: case in "
    "--targets FILE where each image has a value of its own",
    "without time": "fill in time and event, or leave both blank",
    "without event": "fill in time and event, or leave both blank",
    "one number": "write one number, or leave the cell blank; a text that says that nothing is known: unknown: [TEXT] "
    "in --targets FILE",
    "single number": "write one number with its unit, or leave the cell blank",
    ", expected ": "correct the cell, or leave it blank; a text that says that nothing is known: unknown: [TEXT] in "
    "--targets FILE",
}
# The most serious losses come first.
_WEIGHTY = ("label", "mask", "cannot", "table", "image")


@dataclass
class Reading:
    """All that was found while a folder was read.

    Attributes:
        paths: of every file, inside the folder.
        passed_over: path that was not looked at -> why.
        dangling: paths of links that lead nowhere.
        source: the folder.
        table: named by the user.
        layout: what the folder holds.
        dicom: its DICOM.
        work: its cases.
        patient_from: how to tell patients of DICOM apart, if the user says; None: as before.
        rows: of a table that matched nothing.
        classes: the table of patients, studies or series.
        not_drawn: case -> paths of its label files that lie outside its image.
    """

    paths: Sequence[str]
    passed_over: Mapping[str, str]
    dangling: Sequence[str]
    source: Path
    table: Path | None
    layout: FolderLayout
    dicom: DicomIndex
    work: Sequence[Work]
    patient_from: str | None = None
    rows: Sequence[str] = field(default_factory=list)
    classes: ClassTable | None = None
    not_drawn: Mapping[str, Sequence[str]] = field(default_factory=dict)


def account(reading: Reading, manifest: Manifest) -> tuple[Files, Manifest]:
    """Return the account of files, and the manifest with counts."""
    files = _files(reading, manifest)
    with_cases = Counter(file.case for file in files if file.use is None and file.case)
    quarantine = [bad.model_copy(update={"files": with_cases.pop(bad.name, 0)}) for bad in manifest.quarantine]
    unlabelled = why_unlabelled(
        reading.work, reading.layout, reading.dicom, manifest, reading.table, reading.not_drawn, reading.classes
    )
    absent = list(absences(manifest))
    lacks: dict[str, list[str]] = defaultdict(list)
    for absence in absent:
        for case in absence.cases:
            lacks[case].append(absence.note)
    values: dict[str, Any] = {
        "quarantine": quarantine,
        "files": files.counts(),
        "left_out": files.reasons(),
        "remarks": [
            *reading.layout.remarks,
            *_alike_names(manifest.labels.values()),
            *_rule_without_dicom(reading),
            *_rows_without_image(reading),
            *_on_each(reading.work),
            *_joined(reading, manifest),
            *(absence.remark for absence in absent),
        ],
    }
    for split in SPLITS:
        values[split] = [_annotated(entry, unlabelled, lacks) for entry in getattr(manifest, split)]
    return files, manifest.model_copy(update=values)


def advice(reason: str) -> str:
    """Return advice on a reason; empty where it holds some."""
    if any(mark in reason for mark in (": ", "; ", ". ")):
        return ""
    if reason.endswith("no level of its pyramid"):
        return "nothing: it is no image to learn from"
    return next((what for start, what in _ADVICE.items() if reason.startswith(start)), "look at them")


def remedies(reasons: Iterable[str]) -> list[str]:
    """Return what to do about cells of targets that cannot be used, each once."""
    of_cells = [reason for reason in reasons if ": target " in reason]
    found = (next((what for part, what in _REMEDIES.items() if part in reason), "") for reason in of_cells)
    return [what for what in dict.fromkeys(found) if what]


def by_weight(reasons: Mapping[str, int]) -> list[tuple[str, int]]:
    """Return reasons, those that may have cost images first."""

    def weight(item: tuple[str, int]) -> tuple[int, int]:
        reason, count = item
        places = [place for place, word in enumerate(_WEIGHTY) if word in reason and "no image" not in reason]
        return min(places, default=len(_WEIGHTY)), -count

    return sorted(reasons.items(), key=weight)


def labelled_share(manifest: Manifest) -> str:
    """Return in words the share of labelled patients."""
    manifest = decided(manifest)
    everyone = {entry.patient or name_of(entry) for entry in manifest.entries}
    labelled = {entry.patient or name_of(entry) for entry in manifest.entries if is_labelled(entry)}
    share = f" ({len(labelled) / len(everyone):.0%})" if everyone else ""
    share = share.replace("%", " %")
    # 99.6 % must not be rounded to 100 %.
    share = share.replace("100 %", "99 %") if len(labelled) < len(everyone) else share
    return f"labels: {len(labelled):,} of {len(everyone):,} patients{share}"


def _files(reading: Reading, manifest: Manifest) -> Files:
    layout, dicom = reading.layout, reading.dicom
    files = Files([*reading.paths, *reading.passed_over], layout.kind.name)
    set_aside = {case.name: case for case in manifest.quarantine}
    for item in reading.work:
        for path, use in item.files():
            if path in reading.not_drawn.get(item.name, ()):
                continue
            if item.name in set_aside:
                files.leave_out(path, set_aside[item.name].reason, item.name)
            else:
                files.use(path, use, item.name)
    for case in manifest.quarantine:
        if case.source:
            files.leave_out(case.source, case.reason, case.name)
    for path in (*layout.tables, *_inside(reading.table, reading.source)):
        files.use(path, "table")
    for path, reason in {**dicom.left_out, **layout.left_out, **reading.passed_over}.items():
        files.leave_out(path, reason)
    for paths in reading.not_drawn.values():
        for path in paths:
            files.leave_out(path, BESIDE)
    for path in reading.dangling:
        files.leave_out(path, "link that leads nowhere")
    return files


def _inside(path: Path | None, folder: Path) -> list[str]:
    """Return a file's path inside a folder, if inside."""
    absolute, root = path.resolve() if path else None, folder.resolve()
    return [str(absolute.relative_to(root))] if absolute and absolute.is_relative_to(root) else []


def _annotated(entry: Entry | str, unlabelled: Mapping[str, str], lacks: Mapping[str, list[str]]) -> Entry | str:
    if isinstance(entry, str):
        return entry
    if is_labelled(entry):
        notes = lacks.get(name_of(entry))
        return entry.model_copy(update={"notes": [*entry.notes, *notes]}) if notes else entry
    return entry.model_copy(update={"unlabelled": unlabelled.get(name_of(entry))})


def _rule_without_dicom(reading: Reading) -> list[str]:
    """Return a remark where the patients' rule fits no DICOM."""
    files = [item.name for item in reading.work if not is_dicom(item)]
    if reading.patient_from in {None, "id"} or not files:
        return []
    remark = (
        f"--patient-from {reading.patient_from} tells patients of DICOM apart and changes nothing for "
        f"{counted(len(files), 'case')} of other files: {named(files)}. Say who each image's patient is in a table "
        "(image, label, patient), and register again"
    )
    return [remark]


def _rows_without_image(reading: Reading) -> list[str]:
    if not reading.rows or reading.table is None:
        return []
    dicom = [item for item in reading.work if is_dicom(item)]
    expected = (
        "the PatientID, StudyInstanceUID or SeriesInstanceUID of the images in its column patient, study or series"
    )
    if not dicom:
        names = ", ".join(repr(item.patient) for item in reading.layout.items[:EXAMPLES])
        expected = f"the images' patients in its column patient, such as {names}"
    remark = (
        f"rows of {reading.table.name} that match no image of the folder, {len(reading.rows):,}: "
        f"{named(reading.rows)}. Expected {expected}"
    )
    return [remark]


def _on_each(work: Iterable[Work]) -> list[str]:
    """Return a remark on label files drawn on several images."""
    images = Counter(
        label.path
        for item in work
        if isinstance(item, StackWork)
        for label in item.labels
        if any(ON_EACH in note for note in label.notes)
    )
    paths = [path for path, count in images.items() if count > 1]
    if not paths:
        return []
    remark = (
        f"label files that do not say which of several images they were drawn on, and lie on each, {len(paths):,}: "
        f"{named(paths)}. Look at them (oncofed data look); where an image is another's, export the label again with "
        "its references"
    )
    return [remark]


def _alike_names(names: Iterable[str]) -> list[str]:
    """Return remarks on names equal except for case or spaces."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups["".join(normalize("NFC", name).casefold().split())].append(name)
    return [
        f"classes whose names differ in case or spaces alone: {', '.join(map(repr, sorted(alike)))}. Where they are "
        "one class, write it alike everywhere (folders, table, regions), and register again"
        for alike in groups.values()
        if len(alike) > 1
    ]


def _joined(reading: Reading, manifest: Manifest) -> list[str]:
    """Return remarks on regions that several files label."""
    present = {name_of(entry) for entry in manifest.entries}
    regions: dict[str, list[str]] = defaultdict(list)
    written: dict[str, str] = {}
    for item in reading.work:
        if isinstance(item, StackWork) and item.name in present:
            outside = reading.not_drawn.get(item.name, ())
            drawn = [label for label in item.labels if label.path not in outside]
            for name in named_twice((label.header for label in drawn), item.stack.header, item.values):
                regions[written.setdefault(region_key(name), name)].append(item.name)
    return [
        f"images with several label files that name {name}, which are joined, {len(cases):,}: "
        f"{named(cases)}. Where they are versions of one "
        "contour, move all but the right one out of the folder, and register again"
        for name, cases in regions.items()
    ]
