"""Compose the dataset from the cases that were read."""

from __future__ import annotations

import hashlib
import hmac
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from oncofed.data import case_facts
from oncofed.data.case_results import CaseRefused, CaseResult
from oncofed.data.decisions import is_labelled
from oncofed.data.dicom.references import region_key
from oncofed.data.dicom.series import DicomIndex
from oncofed.data.exif import by_siblings
from oncofed.data.label_codes import codes_of_names
from oncofed.data.layouts import FolderLayout
from oncofed.data.manifest import Entry, Intensity, Manifest, Quarantined, Task
from oncofed.data.masks import name_of_rest, value_name
from oncofed.data.palettes import one_palette, own_colours
from oncofed.data.register_options import RegisterOptions
from oncofed.data.slides.regions import is_regions, read_regions

_NUMBERED = 8


def hashed_key(salt: bytes, text: str, length: int = 16) -> str:
    """Return the salted hash of an identity.

    It stands for a patient, study or file outside the registered folder.
    """
    return hmac.new(salt, text.encode(), hashlib.sha256).hexdigest()[:length]


def region_values(dicom: DicomIndex, options: RegisterOptions) -> dict[str, int]:
    """Return region name -> label value.

    As the user states it, else in alphabetical order. Names that differ only in case or surrounding spaces are one
    region, under the most frequent spelling.
    """
    given = {name: value for value, name in options.labels.items() if value}
    if given:
        return given
    written: dict[str, Counter[str]] = defaultdict(Counter)
    for label in dicom.labels:
        for name in label.header.labels.values():
            written[region_key(name)][name] += 1
    names = sorted(max(sorted(forms), key=lambda form: forms[form]) for forms in written.values())
    return {name: number for number, name in enumerate(names, start=1)}


def compose(
    options: RegisterOptions,
    task: Task,
    layout: FolderLayout,
    dicom: DicomIndex,
    classes: Mapping[str, int],
    results: Sequence[CaseResult],
    salt: bytes,
    before: Manifest | None,
) -> Manifest:
    """Return the list of a folder's cases, usable or not.

    Args:
        options: what was registered.
        task: type of task that the dataset is for.
        layout: what the folder holds besides DICOM.
        dicom: its DICOM.
        classes: class -> number, from the table of DICOM patients, studies or series.
        results: of reading each case.
        salt: of the patients' hashes.
        before: the dataset as last registered; what people wrote into it is kept.
    """
    entries: list[Entry] = []
    quarantine = list(layout.bad)
    mask_reasons = _taken_for_images(results)
    quarantine += [
        Quarantined(name=hashed_key(salt, path, 12), reason=reason, source=path)
        for path, reason in dicom.broken.items()
    ]
    for result in results:
        if isinstance(result, CaseRefused):
            quarantine.append(result.quarantined())
        elif result.name in mask_reasons:
            quarantine.append(
                Quarantined(name=result.name, reason=mask_reasons[result.name], source=result.entry.source)
            )
        else:
            entries.append(_pseudonymous(result.entry, salt))
    # Numbered objects keep their numbers, with a palette or without.
    if not (own_colours(entries) and _label_kind(entries, layout, options) == "instances"):
        entries = one_palette(entries)
    entries = _with_boxes(by_siblings(entries), before)
    kind = "classes" if dicom.labels else _label_kind(entries, layout, options)
    if kind == "instances":
        entries = [_as_one_class(entry) for entry in entries]
    labels = _labels(entries, layout, dicom, classes, options)
    usable = []
    for entry in sorted(entries, key=lambda e: e.name or ""):
        of_mask = case_facts.mask_faults(entry, _is_looked_through(entry, options.out))
        of_mask += _outside_vocabulary(entry, labels, options, layout)
        reasons = [*case_facts.image_faults(entry), *of_mask]
        reasons += [] if is_labelled(entry) else entry.unread.values()
        # With targets it is used without the mask; see ``case_checks``.
        if reasons and not (reasons == of_mask and entry.targets):
            may_be_right = reasons == [case_facts.EMPTY] and not entry.tiles
            quarantine.append(
                Quarantined(
                    name=entry.name or "",
                    reason="; ".join(reasons),
                    source=entry.source,
                    case=entry if may_be_right else None,
                )
            )
        else:
            usable.append(entry)
    return Manifest(
        name=options.name,
        description=f"registered by oncofed, layout: {layout.kind.name}",
        task=task,
        modality=layout.modality or _modality(usable),
        labels={str(value): name for value, name in sorted(labels.items())},
        label_kind=kind,
        targets=dict(layout.targets),
        codes=_codes(labels, dicom),
        label_map=before.label_map if before else {},
        patient_from=(options.patient_from if dicom.stacks or dicom.slides else None) or "id",
        reviewed=before.reviewed if before else [],
        decisions=before.decisions if before else [],
        training=[e for e in usable if e.split in {None, "training"}],
        validation=[e for e in usable if e.split == "validation"],
        test=[e for e in usable if e.split == "test"],
        quarantine=sorted(quarantine, key=lambda q: q.name),
    )


def _pseudonymous(entry: Entry, salt: bytes) -> Entry:
    known = {"patient": entry.patient, "study": entry.study}
    return entry.model_copy(update={key: hashed_key(salt, text) for key, text in known.items() if text})


def _with_boxes(entries: Sequence[Entry], before: Manifest | None) -> list[Entry]:
    """Return entries with the boxes that were stated of the same images."""
    stated = {(entry.source, entry.checksum): entry.boxes for entry in (before.entries if before else ())}
    return [entry.model_copy(update={"boxes": stated.get((entry.source, entry.checksum))}) for entry in entries]


def _taken_for_images(results: Iterable[CaseResult]) -> dict[str, str]:
    """Return name -> reason of masks taken for images.

    They hold few whole numbers only, on the grid of another case's image.
    """
    grids: dict[str, str] = {}
    candidates = []
    for result in results:
        if isinstance(result, CaseRefused) or _is_constant(result.entry.intensity):
            continue
        grid = f"{result.entry.shape} {result.entry.affine}"
        if result.looks_like_mask:
            candidates.append((result.name, grid))
        else:
            grids.setdefault(grid, result.entry.source or "")
    return {
        name: f"holds few whole numbers alone, on the grid of {grids[grid]}: it looks like a mask, expected an image. "
        "Name it as its image (CASE_seg beside CASE), or list both in a table (image, label)"
        for name, grid in candidates
        if grid in grids
    }


def _is_constant(intensity: Intensity | None) -> bool:
    """Return whether an image is constant, which is a fault."""
    return intensity is not None and intensity.low == intensity.high and intensity.std == 0


def _label_kind(
    entries: Sequence[Entry], layout: FolderLayout, options: RegisterOptions
) -> Literal["classes", "instances"]:
    """Return "instances" where masks number their objects.

    Their values are 1, 2, … n, and n differs between images.
    """
    named = {v for v in {**layout.labels, **options.labels} if v}
    counts = [e.instances for e in entries if e.instances]
    if len(named) > 1 or not counts:
        return "classes"
    running = [
        e.instances > 64 or sorted(case_facts.label_counts(e.label_values or {}))[-1] <= e.instances + 2
        for e in entries
        if e.instances
    ]
    if max(counts) > _NUMBERED and len(set(counts)) > min(3, len(counts) - 1) and np.mean(running) > 0.8:
        return "instances"
    return "classes"


def _as_one_class(entry: Entry) -> Entry:
    if entry.label_values is None:
        return entry
    counts = case_facts.label_counts(entry.label_values)
    background = counts.get(0, 0)
    values = {"0": background, "1": sum(counts.values()) - background}
    return entry.model_copy(update={"label_values": {k: v for k, v in values.items() if v}})


def _labels(
    entries: Sequence[Entry],
    layout: FolderLayout,
    dicom: DicomIndex,
    classes: Mapping[str, int],
    options: RegisterOptions,
) -> dict[int, str]:
    """Return label value -> name, or its number if unnamed."""
    found: set[int] = set()
    for entry in entries:
        found |= set(case_facts.label_counts(entry.label_values or {}))
        if isinstance(entry.label, int):
            found.add(entry.label)
    named = {**layout.labels, **{v: n for n, v in region_values(dicom, options).items()}, **options.labels}
    if dicom.stacks:
        named |= {number: label for label, number in classes.items()}
    masks = any(isinstance(entry.label, str) for entry in entries)
    if masks or any(entry.label_values for entry in entries):
        named.setdefault(0, name_of_rest(named.values()))
    explicit = bool(layout.labels or options.labels)
    return named if explicit and set(named) - {0} else {**{v: value_name(v) for v in sorted(found)}, **named}


def _codes(labels: Mapping[int, str], dicom: DicomIndex) -> dict[str, str]:
    """Return label value -> code of each label that all files of segmentations code alike."""
    files = [label.header for label in dicom.labels]
    found = codes_of_names(
        ({number: region_key(name) for number, name in header.labels.items()}, header.codes) for header in files
    )
    return {str(value): found[region_key(name)] for value, name in labels.items() if region_key(name) in found}


def _is_looked_through(entry: Entry, folder: Path) -> bool:
    """Return whether a slide's file of regions is there and empty: somebody looked, and found nothing.

    Jobs of objects learn from such a slide; others set it aside.
    """
    if not entry.tiles or not isinstance(entry.label, str) or not is_regions(path := folder / entry.label):
        return False
    return not any(case_facts.label_counts(entry.label_values or {})) and not read_regions(path)


def _outside_vocabulary(
    entry: Entry, labels: Mapping[int, str], options: RegisterOptions, layout: FolderLayout
) -> list[str]:
    if not (layout.labels or options.labels) or entry.label_values is None:
        return []
    extra = sorted(set(case_facts.label_counts(entry.label_values)) - set(labels) - {0})
    if not extra:
        return []
    values = ", ".join(map(value_name, extra[:5]))
    return [f"its label holds the values {values}, expected only {', '.join(map(value_name, sorted({0, *labels})))}"]


def _modality(entries: Sequence[Entry]) -> dict[str, str]:
    found = Counter(entry.modality for entry in entries if entry.modality)
    return {"0": "/".join(sorted(found))} if found else {}
