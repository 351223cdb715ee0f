"""What is wrong with a dataset as a whole: copies, patients on two sides, cases unlike all others, names in paths."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from oncofed.data import facts
from oncofed.data.dicom.series import WITHOUT_PLACE
from oncofed.data.manifest import Entry, Manifest
from oncofed.data.spec import MODALITY_NAMES, DataSpec

# Thumbnails that correlate by more than this show the same image, rescaled, re-encoded or resampled.
_SAME_IMAGE = 0.998
_ROWS_AT_ONCE = 512
# Median absolute deviations beyond which a case is unlike the others; 0.6745 makes them standard deviations (Iglewicz
# and Hoaglin, 1993, whose limit of 3.5 is for small samples of one kind of thing).
_FAR = 8.0
_TO_STANDARD = 0.6745
_FEWEST_FOR_OUTLIERS = 8
_MOST_OUTLIERS = 0.05
_HEAD_WORDS = ("head", "brain", "skull", "neuro", "hippocamp", "iac", "orbit")
_NAME_IN_PATH = re.compile(
    r"[A-Z][a-z]+(?:\^|,_?\s?|_)[A-Z][a-z]+|\bMRN[-_]?\d{4,}|\b(19|20)\d\d[-_]?[01]\d[-_]?[0-3]\d\b"
)


@dataclass(frozen=True)
class Finding:
    """Something that a person should look at.

    Attributes:
        kind: short name of the check.
        case: name of the case; None for the dataset as a whole.
        what: what was found.
        severe: the case or dataset does not fit; otherwise a warning.
    """

    kind: str
    case: str | None
    what: str
    severe: bool = True

    def __str__(self) -> str:
        return f"{self.case}: {self.what}" if self.case else self.what


def find_all(manifest: Manifest, data: DataSpec | None = None) -> list[Finding]:
    """Return every finding over a dataset's cases.

    Args:
        manifest: the dataset, registered.
        data: a job's contract, for the modality; None compares the cases with each other.
    """
    return [
        *shared_patients(manifest),
        *copies(manifest),
        *wrong_modality(manifest, data),
        *outliers(manifest),
    ]


def shared_patients(manifest: Manifest) -> Iterator[Finding]:
    """Yield each patient who is in more than one list."""
    lists: dict[str, set[str]] = defaultdict(set)
    first: dict[str, str] = {}
    for split, entry in manifest.by_split():
        if entry.patient:
            lists[entry.patient].add(split)
            first.setdefault(entry.patient, _name(entry))
    for patient, splits in lists.items():
        if len(splits) > 1:
            what = f"its patient {patient} is in {' and '.join(sorted(splits))}, expected one list only"
            yield Finding("same patient in two splits", first[patient], what)


def copies(manifest: Manifest) -> Iterator[Finding]:
    """Yield each image that is another one's copy, by checksum or by its looks, across patients or splits."""
    cases = list(manifest.by_split())
    by_checksum: dict[str, int] = {}
    reported: set[int] = set()
    for number, (_, entry) in enumerate(cases):
        if not entry.checksum:
            continue
        other = by_checksum.setdefault(entry.checksum, number)
        if other != number:
            reported.add(number)
            yield _copy(cases[other], cases[number], "is the same file as that of", "duplicate image (checksum)")
    for one, two, correlation in _alike([entry for _, entry in cases]):
        # Two visits of one patient may look alike, on one side of the split they do no harm.
        apart = cases[one][0] != cases[two][0] or cases[one][1].patient != cases[two][1].patient
        if two not in reported and apart:
            reported.add(two)
            how = f"looks the same (correlation {correlation:.4f}) as that of"
            yield _copy(cases[one], cases[two], how, "duplicate image (perceptual)")


def wrong_modality(manifest: Manifest, data: DataSpec | None) -> Iterator[Finding]:
    """Yield each case of another modality than the job's, or, without a job, than nearly all others."""
    known = [entry for entry in manifest.entries if entry.modality]
    if data is not None:
        allowed = MODALITY_NAMES[data.modality]
        expected = f"{data.modality} ({', '.join(allowed).upper()})"
        odd = [entry for entry in known if not _is_modality(entry.modality or "", allowed)]
    else:
        counts = Counter(entry.modality for entry in known)
        usual, count = counts.most_common(1)[0] if counts else (None, 0)
        expected = f"{usual}, which {count} of {len(known)} cases are"
        odd = [entry for entry in known if entry.modality != usual] if count > 0.8 * len(known) else []
    for entry in odd:
        yield Finding("wrong modality", _name(entry), f"its modality is {entry.modality}, expected {expected}")


def outliers(manifest: Manifest) -> Iterator[Finding]:
    """Yield each case whose spacing or intensity is far from that of all others of its modality."""
    groups: dict[tuple[object, ...], list[Entry]] = defaultdict(list)
    for entry in manifest.entries:
        stain = tuple(sorted((k, v) for k, v in entry.tags.items() if k in {"stain", "sequence", "protocol"}))
        groups[entry.modality, entry.vendor, entry.dtype, len(entry.shape or []), stain].append(entry)
    for group in groups.values():
        if len(group) < _FEWEST_FOR_OUTLIERS:
            continue
        spaced = [entry for entry in group if entry.spacing]
        volumes = np.array([float(np.prod(entry.spacing or [1])) for entry in spaced])
        for number in _far(np.log(volumes)):
            sides = " x ".join(f"{s:g}" for s in spaced[number].spacing or ())
            typical = float(np.median(volumes)) ** (1 / len(spaced[number].spacing or [1]))
            what = f"its voxels are {sides} mm, far from the others' (about {typical:.3g} mm a side)"
            yield Finding("outlier spacing", _name(spaced[number]), what)
        bright = [entry for entry in group if entry.intensity and entry.intensity.high > entry.intensity.low]
        ranges = np.array([e.intensity.high - e.intensity.low for e in bright if e.intensity])
        for number in _far(np.log(ranges)):
            what = f"its intensities span {ranges[number]:.4g}, far from the others' {float(np.median(ranges)):.4g}"
            yield Finding("outlier intensity", _name(bright[number]), what)


def loose_slices(manifest: Manifest) -> Iterator[Finding]:
    """Yield how many flat images would be slices of volumes, had their headers said where they lie."""
    loose = [entry for entry in manifest.entries if WITHOUT_PLACE in entry.notes]
    if loose:
        kinds = " and ".join(sorted({entry.modality or "no modality" for entry in loose}))
        what = (
            f"{len(loose)} slices ({kinds}) have {WITHOUT_PLACE}, so that each is a flat image of its own. Export the "
            "series anew where they are to be volumes"
        )
        yield Finding("slices without a place", None, what, severe=False)


def phi_warnings(manifest: Manifest) -> Iterator[Finding]:
    """Yield what may identify a patient: burned-in text, names and dates in paths, faces in MR of the head."""
    for entry in manifest.entries:
        for note in entry.notes:
            if note.startswith("burned-in"):
                what = f"{note}: look at it, and mask the text or leave the image out"
                yield Finding("burned-in annotation", _name(entry), what, severe=False)
        found = _NAME_IN_PATH.search(" / ".join(p for p in (entry.source, *entry.images) if p))
        if found:
            what = "its path looks as if it held a name, a record number or a date; rename the file"
            yield Finding("name in path", _name(entry), what, severe=False)
        if any(note.startswith("header text") for note in entry.notes):
            what = "its header holds free text; oncofed data deidentify removes it"
            yield Finding("text in header", _name(entry), what, severe=False)
    heads = [entry for entry in manifest.entries if _shows_face(entry)]
    if heads:
        what = (
            f"{len(heads)} MR or CT volumes are large enough to hold a face, from which a person can be recognised; "
            "remove faces with pydeface, mri_deface or quickshear before images are shared (weights hold none)"
        )
        yield Finding("faces", None, what, severe=False)


def _shows_face(entry: Entry) -> bool:
    if not entry.shape or len(entry.shape) != 3 or not entry.spacing:
        return False
    extent = sorted(n * s for n, s in zip(entry.shape, entry.spacing, strict=True))
    words = " ".join((*entry.notes, *entry.tags.values(), *entry.images, entry.source or "")).lower()
    head = any(word in words for word in _HEAD_WORDS)
    return bool(
        _is_modality(entry.modality or "", ("mr", "mri", "ct")) and extent[0] > 90 and (head or extent[2] < 300)
    )


def _alike(entries: Sequence[Entry]) -> Iterator[tuple[int, int, float]]:
    by_length: dict[int, list[tuple[int, NDArray[np.float32]]]] = defaultdict(list)
    for number, entry in enumerate(entries):
        values = facts.thumbnail_values(entry)
        if values is not None:
            by_length[len(values)].append((number, values))
    for group in by_length.values():
        numbers = [number for number, _ in group]
        matrix = np.stack([values for _, values in group])
        for start in range(0, len(matrix), _ROWS_AT_ONCE):
            block = matrix[start : start + _ROWS_AT_ONCE] @ matrix.T
            rows, columns = np.nonzero(block > _SAME_IMAGE)
            for row, column in zip(rows + start, columns, strict=True):
                if row < column:
                    yield numbers[row], numbers[column], float(block[row - start, column])


def _copy(one: tuple[str, Entry], two: tuple[str, Entry], how: str, kind: str) -> Finding:
    where = f" (in {one[0]} and {two[0]})" if one[0] != two[0] else ""
    patients = "another patient's " if one[1].patient != two[1].patient else ""
    return Finding(kind, _name(two[1]), f"its image {how} {patients}{_name(one[1])}{where}")


def _far(values: NDArray[np.float64]) -> list[int]:
    if not len(values):
        return []
    median = np.median(values)
    deviation = np.abs(values - median)
    # Where more than half are alike to the last digit, the spread is taken from the rest, and is at least a tenth.
    spread = max(float(np.median(deviation)), 0.1 * _TO_STANDARD)
    far = np.flatnonzero(_TO_STANDARD * deviation / spread > _FAR)
    # Many that are far are no outliers: another scanner or protocol, which the dataset is meant to have.
    return [int(n) for n in far] if len(far) <= max(1, _MOST_OUTLIERS * len(values)) else []


def _is_modality(found: str, allowed: Sequence[str]) -> bool:
    return bool(set(re.split(r"[^a-z-]+", found.lower())) & set(allowed))


def _name(entry: Entry) -> str:
    return entry.name or entry.images[0]
