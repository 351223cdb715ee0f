"""Aspects of a dataset, each as found and as a job expects it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from oncofed.data import case_facts
from oncofed.data.case_checks import channels_fit, contract_faults
from oncofed.data.covariate_report import CovariateReport
from oncofed.data.decisions import name_of
from oncofed.data.feature_report import WantedFeatures, misfits, summarise
from oncofed.data.grouping import counted, millimetres
from oncofed.data.label_mapping import Supervision, Vocabulary, alike
from oncofed.data.looked_for import tells
from oncofed.data.manifest import Entry, Manifest
from oncofed.data.masks import value_name
from oncofed.data.spec import MODALITY_NAMES, DataSpec
from oncofed.errors import DataError

# How a row says that the list under the table tells more.
BELOW = "see below"
_MOST_VALUES = 8
_ONE = {2: "flat image", 3: "volume"}
Verdict = Literal["fits", "converted", "does not fit"]


@dataclass(frozen=True)
class Row:
    """One aspect of a dataset, as found and as expected."""

    aspect: str
    found: str
    expected: str
    verdict: Verdict
    how: str = ""


def modality_row(manifest: Manifest, data: DataSpec) -> Row:
    """Return the row on modality."""
    names = {entry.modality for entry in manifest.entries if entry.modality} or set(manifest.modality.values())
    found = ", ".join(sorted(names)) or "not known"
    words = set(re.split(r"[^a-z-]+", found.lower()))
    everything = {word for allowed in MODALITY_NAMES.values() for word in allowed}
    fits = bool(words & set(MODALITY_NAMES[data.modality])) or not words & everything
    return Row("modality", found, data.modality, "fits" if fits else "does not fit")


def covariate_row(found: CovariateReport) -> Row:
    """Return a covariate's row; where nobody has it, the network is told that it is missing."""
    how = "missing everywhere" if found.is_missing else ""
    return Row(found.column.name, found.found, found.expected, "converted" if how else "fits", how)


def feature_rows(entries: Sequence[Entry], wanted: WantedFeatures) -> list[Row]:
    """Return the row on slides' features; none where no slide brings any."""
    found = summarise(entries)
    if not found:
        return []
    how = found.differ or misfits(entries, wanted)
    return [Row("features", found.found, f"of {wanted.encoder}", "does not fit" if how else "fits", how)]


def image_rows(entries: Sequence[Entry], data: DataSpec) -> list[Row]:
    """Return the rows on images: size, channels, spacing, orientation.

    Args:
        entries: whose sizes are known; at least one.
        data: the contract.
    """
    return [_dimensions(entries, data), _channels(entries, data), _spacing(entries, data), _orientation(entries, data)]


def _dimensions(entries: Sequence[Entry], data: DataSpec) -> Row:
    counts = Counter(len(entry.shape or []) for entry in entries)
    words = {2: "flat images", 3: "volumes"}
    found = ", ".join(
        f"{n} {words.get(d, f'of {d} axes') if n > 1 else _ONE.get(d, f'of {d} axes')}" for d, n in counts.most_common()
    )
    sizes = [side for entry in entries for side in entry.shape or []]
    expected = words[data.dimensions]
    if data.size_range:
        expected += f", {data.size_range[0]} to {data.size_range[1]} a side"
    faulty = [entry for entry in entries if _faults(entry, data, "voxels, expected", "flat", "volume")]
    how = _named(faulty)
    small = sum(min(entry.shape or [0]) < min(data.patch) for entry in entries)
    if not how and small:
        return Row(
            "size",
            f"{found}, {_range(sizes)} a side",
            expected,
            "converted",
            f"{small} padded to the patch",
        )
    return Row("size", f"{found}, {_range(sizes)} a side", expected, "does not fit" if how else "fits", how)


def _channels(entries: Sequence[Entry], data: DataSpec) -> Row:
    counts = Counter(entry.channels or 1 for entry in entries)
    found = ", ".join(f"{c} ({counted(n, 'case')})" for c, n in counts.most_common())
    expected = f"{len(data.channels)} ({', '.join(data.channels)})"
    bad = [entry for entry in entries if not channels_fit(entry.channels or 1, data)]
    if bad:
        return Row("channels", found, expected, "does not fit", _named(bad))
    if any((entry.channels or 1) != len(data.channels) for entry in entries):
        how = "grey becomes colour" if len(data.channels) == 3 else "colour becomes grey"
        return Row("channels", found, expected, "converted", how)
    return Row("channels", found, expected, "fits")


def _spacing(entries: Sequence[Entry], data: DataSpec) -> Row:
    sides = [side for entry in entries for side in entry.spacing or []]
    found = f"{_range(sides, millimetres)} mm" if sides else "not known"
    expected = " x ".join(f"{s:g}" for s in data.spacing) + " mm" if data.spacing else "each image's own"
    if data.spacing_range:
        expected += f", from {data.spacing_range[0]:g} to {data.spacing_range[1]:g} mm"
    bad = [entry for entry in entries if _faults(entry, data, "mm", "pixels are")]
    if bad:
        return Row("spacing", found, expected, "does not fit", _named(bad))
    target = list(data.spacing or ())
    others = [
        e
        for e in entries
        if data.spacing and any(abs(a - b) > 1e-3 * min(1.0, b) for a, b in zip(e.spacing or [], target, strict=False))
    ]
    if others:
        return Row("spacing", found, expected, "converted", f"{counted(len(others), 'case')} resampled")
    return Row("spacing", found, expected, "fits")


def _orientation(entries: Sequence[Entry], data: DataSpec) -> Row:
    counts = Counter(entry.orientation or ("not known" if len(entry.shape or []) == 3 else "flat") for entry in entries)
    found = ", ".join(f"{name} ({n})" for name, n in counts.most_common(4))
    if data.dimensions == 2:
        return Row("orientation", found, "flat", "fits")
    others = sum(n for name, n in counts.items() if name not in {data.orientation, "not known"})
    if others:
        return Row("orientation", found, data.orientation, "converted", f"{counted(others, 'case')} reoriented")
    return Row("orientation", found, data.orientation, "fits")


def label_rows(
    manifest: Manifest, data: DataSpec, wanted: Supervision, vocabulary: Vocabulary, entries: Sequence[Entry]
) -> list[Row]:
    """Return the rows on masks, classes or boxes."""
    word = {"mask": "a mask", "class": "a class", "boxes": "boxes or a mask"}[wanted.kind]
    labelled = [entry for entry in entries if wanted.of_entry(manifest, entry)]
    return [
        labels_row(manifest, wanted, vocabulary),
        Row(
            "cases",
            f"{len(labelled)} with {word} of {len(entries)}",
            f"at least {data.minimum_cases}",
            "fits" if len(labelled) >= data.minimum_cases else "does not fit",
        ),
        *_looked_for(manifest, wanted, vocabulary, labelled),
    ]


def mask_rows(manifest: Manifest, wanted: Supervision, vocabulary: Vocabulary, entries: Sequence[Entry]) -> list[Row]:
    """Return the rows on masks beside targets, of which a case may lack either."""
    masked = [
        entry for entry in entries if wanted.has_mask(entry) and _is_usable(manifest, entry, wanted.classes, vocabulary)
    ]
    found = Row("masks", f"{len(masked)} of {counted(len(entries), 'case')} have one", "any number", "fits")
    if not masked:
        return [found]
    return [labels_row(manifest, wanted, vocabulary), found, *_looked_for(manifest, wanted, vocabulary, masked)]


def _is_usable(manifest: Manifest, entry: Entry, classes: Mapping[int, str], vocabulary: Vocabulary) -> bool:
    """Return whether a mask beside targets can be learned from."""
    held = case_facts.label_counts(entry.label_values or {}).keys()
    is_known = manifest.label_kind == "instances" or held <= _known(classes, vocabulary)
    return is_known and not case_facts.mask_faults(entry, may_be_empty=bool(entry.tiles))


def _known(classes: Mapping[int, str], vocabulary: Vocabulary) -> set[int]:
    """Return the values that a mask may have."""
    return {0, *(classes if vocabulary.values is None else vocabulary.values)}


def labels_row(manifest: Manifest, wanted: Supervision, vocabulary: Vocabulary) -> Row:
    """Return the row on names of labels."""
    shown = {v: n for v, n in manifest.labels.items() if wanted.kind == "class" or int(float(v)) != 0}
    found = ", ".join(f"{v} {n}" if n != v else v for v, n in shown.items()) or "without names"
    expected = ", ".join(f"{value} {name}" for value, name in wanted.classes.items())
    if vocabulary.problems:
        return Row("labels", found, expected, "does not fit", BELOW)
    if vocabulary.how:
        return Row("labels", found, expected, "converted", "; ".join(vocabulary.how))
    return Row("labels", found, expected, "fits")


def with_values(row: Row, manifest: Manifest, classes: Mapping[int, str], vocabulary: Vocabulary) -> Row:
    """Return the row of labels, with unknown values."""
    if row.aspect != "labels" or manifest.label_kind == "instances":
        return row
    held = Counter(
        v for e in manifest.entries if isinstance(e.label, str) for v in case_facts.label_counts(e.label_values or {})
    )
    outside = sorted(held.keys() - _known(classes, vocabulary))
    if not outside:
        return row
    names = {value: classes.get(value, "NAME") for value in sorted(held.keys() - {0})}
    listed = ", ".join(f"{value_name(value)} in {counted(held[value], 'case')}" for value in outside[:_MOST_VALUES])
    more = f" and {len(outside) - _MOST_VALUES} more" if len(outside) > _MOST_VALUES else ""
    how = f"{listed}{more}: none of the job's"
    if len(names) <= _MOST_VALUES:
        option = ",".join(f"{value_name(value)}={name}" for value, name in names.items())
        how += f"; register again with --labels {option} (background: none of them)"
    return replace(row, verdict="does not fit", how="; ".join(filter(None, (row.how, how))))


def _looked_for(
    manifest: Manifest, wanted: Supervision, vocabulary: Vocabulary, labelled: Sequence[Entry]
) -> Iterator[Row]:
    """Yield each class's, or region's, row: patients in whom it was looked for."""
    if not wanted.partial or vocabulary.problems:
        return
    patients: dict[str, set[str]] = {name: set() for name in wanted.structures}
    for entry in labelled:
        try:
            found = alike(manifest, entry, wanted, vocabulary)
        except DataError:  # which sets the case aside, with this reason
            continue
        for name, values in wanted.structures.items():
            if tells(found, values):
                patients[name].add(entry.patient or name_of(entry))
    everyone = len({entry.patient or name_of(entry) for entry in labelled})
    for name, values in wanted.structures.items():
        having = len(patients[name])
        how = "unknown in the others" if having < everyone else ""
        aspect = f"{name} ({', '.join(map(str, values))})"
        yield Row(
            aspect, f"looked for in {having} of {everyone} patients", "any number", "converted" if how else "fits", how
        )


def _faults(entry: Entry, data: DataSpec, *words: str) -> list[str]:
    return [fault for fault in contract_faults(entry, data) if any(word in fault for word in words)]


def _range(values: Sequence[float], written: Callable[[float], str] = str) -> str:
    low, high = written(min(values)), written(max(values))
    return low if low == high else f"{low} to {high}"


def _named(entries: Sequence[Entry]) -> str:
    names = [entry.name or entry.images[0] for entry in entries]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
