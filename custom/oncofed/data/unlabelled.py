"""Explain why cases have no label."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from oncofed.data.case_readers import FileWork, SlideWork, StackWork, Work
from oncofed.data.dicom.series import DicomIndex
from oncofed.data.feature_work import FeatureWork
from oncofed.data.grouping import counted, named
from oncofed.data.images import image_format, stem
from oncofed.data.layouts import ClassTable, FolderLayout
from oncofed.data.layouts.kinds import DICOM
from oncofed.data.layouts.names import Named
from oncofed.data.manifest import Manifest


def why_unlabelled(
    work: Sequence[Work],
    layout: FolderLayout,
    dicom: DicomIndex,
    manifest: Manifest,
    table: Path | None,
    not_drawn: Mapping[str, Sequence[str]],
    classes: ClassTable | None = None,
) -> dict[str, str]:
    """Return unlabelled case -> reason.

    Args:
        work: the cases.
        layout: what the folder holds besides DICOM.
        dicom: its DICOM.
        manifest: of the cases that were read.
        table: named by the user.
        not_drawn: case -> paths of its label files that lie outside its image.
        classes: the table of patients, studies or series.
    """
    unplaced: dict[str, list[str]] = defaultdict(list)
    for label in dicom.unplaced:
        unplaced[label.header.patient].append(label.path)
    dropped = _dropped(layout, manifest)
    no_row = f"{table.name} has no row with a label for its patient, study or series" if table else ""
    why = {}
    for item in work:
        if isinstance(item, StackWork):
            patient = item.stack.header.patient
            doubt = classes.doubt(item.stack.header) if classes else None
            why[item.name] = _of_stack(unplaced.get(patient, ()), not_drawn.get(item.name, ()), doubt or no_row)
        elif isinstance(item, FeatureWork):
            why[item.name] = layout.kind.no_regions
        elif isinstance(item, SlideWork):
            why[item.name] = (no_row or DICOM.no_regions) if item.instances else layout.kind.no_regions
        elif isinstance(item, FileWork):
            why[item.name] = _of_files(item, layout, dropped, classes.nothing_stated(item.item) if classes else "")
    return why


def _of_stack(unplaced: Sequence[str], not_drawn: Sequence[str], no_row: str) -> str:
    if unplaced:
        return f"{counted(len(unplaced), 'label file')} of its patient on no image of the folder: {named(unplaced)}"
    if not_drawn:
        words = f"{counted(len(not_drawn), 'label file')} of its frame of reference, all beside it: {named(not_drawn)}"
        return f"{words}. Export the label again on the image that it was drawn on"
    return no_row or "no SEG and no structure set of the folder lies on it"


def _of_files(work: FileWork, layout: FolderLayout, dropped: Mapping[str, str], no_row: str) -> str:
    image = work.item.images[0]
    if image in layout.unlabelled:
        return layout.unlabelled[image]
    usual = layout.kind.no_label.format(labels=image.partition("/")[0].replace("images", "labels"))
    if found := dropped.get(stem(Path(image)).lower()):
        return f"{usual}; {found}" if layout.kind.lists_cases else found
    if no_row and not any(item.masks for item in layout.items):
        return no_row
    return f"{no_row}; {usual}" if no_row else usual


def _dropped(layout: FolderLayout, manifest: Manifest) -> dict[str, str]:
    """Return image name -> fate of its unused mask.

    Masks are matched by name, such as ct_1_tumour with ct_1.
    """
    lost = {path: ("left out", why) for path, why in layout.left_out.items() if image_format(Path(path))}
    lost |= {case.source: ("set aside", case.reason) for case in manifest.quarantine if case.source}
    found: dict[str, str] = {}
    for path, (became, why) in lost.items():
        if Named(path).role != "mask" and "mask" not in why:
            continue
        for name in _beginnings(stem(Path(path)).lower()):
            found.setdefault(name, f"{path} has its name, and was {became}: {why}")
    return found


def _beginnings(name: str) -> Iterator[str]:
    yield name
    yield from (name[: sign.start()] for sign in re.finditer(r"[^a-z0-9]", name))
