"""Check a dataset as a whole: copies, splits, outliers, privacy."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from oncofed.data.answers import ACCEPT, REVIEWED, answer_to
from oncofed.data.copies import copy_groups
from oncofed.data.decisions import name_of, settled
from oncofed.data.dicom.series import WITHOUT_PLACE
from oncofed.data.grouping import millimetres
from oncofed.data.manifest import Entry, Manifest
from oncofed.data.spec import MODALITY_NAMES, DataSpec

# Limit for outliers, in median absolute deviations; 0.6745 makes them standard deviations (Iglewicz and Hoaglin, 1993,
# whose limit of 3.5 is for small homogeneous samples).
_FAR = 8.0
_TO_STANDARD = 0.6745
_FEWEST_FOR_OUTLIERS = 8
_MOST_OUTLIERS = 0.05
# Plausible sides of a voxel in mm: micro-CT has 0.001, and no volume of a patient has slices 50 apart.
_PLAUSIBLE = (0.001, 50.0)
_OF_PATIENTS = ("ct", "mri", "pet")
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
        cases: that it is about, if several.
    """

    kind: str
    case: str | None
    what: str
    severe: bool = True
    cases: tuple[str, ...] = ()

    @property
    def about(self) -> tuple[str, ...]:
        """Names of all cases that it is about."""
        return self.cases or ((self.case,) if self.case else ())

    def __str__(self) -> str:
        return f"{self.case}: {self.what}" if self.case else self.what


def find_all(manifest: Manifest, data: DataSpec | None = None) -> list[Finding]:
    """Return every finding over a dataset's cases.

    Args:
        manifest: the dataset, registered.
        data: a job's contract, for the modality; None compares the cases with each other.
    """
    found = (*shared_patients(manifest), *copies(manifest), *wrong_modality(manifest, data))
    return unsettled(manifest, (*found, *implausible_spacing(manifest), *outliers(manifest)))


def unsettled(manifest: Manifest, findings: Iterable[Finding]) -> list[Finding]:
    """Return the findings that no person dismissed."""
    accepted: dict[str, Mapping[str, int]] = {}
    left = []
    for finding in findings:
        answer = answer_to(finding.kind)
        name = answer.finding if answer else ""
        if name not in accepted:
            accepted[name] = settled(manifest, name, (ACCEPT, REVIEWED))
        # Findings about several cases were made from the open ones alone.
        looked_at = not finding.cases and finding.case in accepted[name]
        if not looked_at and f"{finding.kind}:{finding.case or ''}" not in manifest.reviewed:
            left.append(finding)
    return left


def shared_patients(manifest: Manifest) -> Iterator[Finding]:
    """Yield each patient in more than one list."""
    lists: dict[str, set[str]] = defaultdict(set)
    cases: dict[str, list[str]] = defaultdict(list)
    for split, entry in manifest.by_split():
        if entry.patient:
            lists[entry.patient].add(split)
            cases[entry.patient].append(name_of(entry))
    for patient, splits in lists.items():
        if len(splits) > 1:
            names = cases[patient]
            what = f"its patient {patient} is in {' and '.join(sorted(splits))}, expected one list only"
            yield Finding("same patient in two splits", names[0], what, cases=tuple(names))


def copies(manifest: Manifest) -> Iterator[Finding]:
    """Yield copies of images, and copies with different labels."""
    for group in copy_groups(manifest):
        contradiction = group.contradiction()
        if contradiction:
            first, second = contradiction
            how = "is the same file as" if group.exact else "looks the same as"
            what = f"its image {how} that of {name_of(first)}, and their labels contradict each other"
            what += "" if group.exact else ". Where they are other images that only look alike: --copies keep-all"
            names = tuple(name_of(entry) for _, entry in group.cases)
            yield Finding("copies with conflicting labels", name_of(second), what, cases=names)
            continue
        for (split, entry), copy in zip(group.cases[1:], group.copies[1:], strict=True):
            other_split, other = group.cases[copy.of]
            exact = copy.correlation is None
            how = "is the same file as" if exact else f"looks the same (correlation {copy.correlation:.4f}) as"
            patients = "another patient's " if entry.patient != other.patient else ""
            where = f" (in {other_split} and {split})" if other_split != split else ""
            kind = "duplicate image (checksum)" if exact else "duplicate image (perceptual)"
            yield Finding(kind, name_of(entry), f"its image {how} that of {patients}{name_of(other)}{where}")


def wrong_modality(manifest: Manifest, data: DataSpec | None) -> Iterator[Finding]:
    """Yield each case of another modality.

    Other than the job's or, without a job, than that of nearly all cases.
    """
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
        yield Finding("wrong modality", name_of(entry), f"its modality is {entry.modality}, expected {expected}")


def implausible_spacing(manifest: Manifest) -> Iterator[Finding]:
    """Yield each volume with implausible voxel sizes."""
    low, high = _PLAUSIBLE
    for entry in filter(_is_implausible, manifest.entries):
        sides = " x ".join(map(millimetres, entry.spacing or ()))
        what = f"its voxels are {sides} mm, expected {low:g} to {high:g}: is its unit right?"
        yield Finding("implausible spacing", name_of(entry), f"{what} Where it is not, export it in mm")


def _is_implausible(entry: Entry) -> bool:
    low, high = _PLAUSIBLE
    of_a_patient = not entry.modality or any(_is_modality(entry.modality, MODALITY_NAMES[m]) for m in _OF_PATIENTS)
    volume = len(entry.shape or []) == 3 and entry.spacing
    return bool(volume and of_a_patient and not all(low <= side <= high for side in entry.spacing or ()))


def outliers(manifest: Manifest) -> Iterator[Finding]:
    """Yield outliers of spacing or intensity within a modality."""
    groups: dict[tuple[object, ...], list[Entry]] = defaultdict(list)
    for entry in manifest.entries:
        if _is_implausible(entry):
            continue
        stain = tuple(sorted((k, v) for k, v in entry.tags.items() if k in {"stain", "sequence", "protocol"}))
        groups[entry.modality, entry.vendor, entry.dtype, len(entry.shape or []), stain].append(entry)
    for group in groups.values():
        if len(group) < _FEWEST_FOR_OUTLIERS:
            continue
        spaced = [entry for entry in group if entry.spacing]
        volumes = np.array([float(np.prod(entry.spacing or [1])) for entry in spaced])
        for number in _far(np.log(volumes)):
            sides = " x ".join(map(millimetres, spaced[number].spacing or ()))
            typical = float(np.median(volumes)) ** (1 / len(spaced[number].spacing or [1]))
            what = f"its voxels are {sides} mm, far from the others' (about {typical:.3g} mm a side)"
            yield Finding("outlier spacing", name_of(spaced[number]), what)
        bright = [entry for entry in group if entry.intensity and entry.intensity.high > entry.intensity.low]
        ranges = np.array([e.intensity.high - e.intensity.low for e in bright if e.intensity])
        for number in _far(np.log(ranges)):
            what = f"its intensities span {ranges[number]:.4g}, far from the others' {float(np.median(ranges)):.4g}"
            yield Finding("outlier intensity", name_of(bright[number]), what)


def loose_slices(manifest: Manifest) -> Iterator[Finding]:
    """Yield the number of flat images that may be slices."""
    looked_at = settled(manifest, "loose-slices")
    loose = [e for e in manifest.entries if WITHOUT_PLACE in e.notes and name_of(e) not in looked_at]
    if loose:
        kinds = " and ".join(sorted({entry.modality or "no modality" for entry in loose}))
        what = (
            f"{len(loose)} slices ({kinds}) have {WITHOUT_PLACE}, so that each is a flat image of its own. Export the "
            "series anew where they are to be volumes"
        )
        yield Finding("slices without a place", None, what, severe=False, cases=tuple(map(name_of, loose)))


def phi_warnings(manifest: Manifest) -> Iterator[Finding]:
    """Yield anything that may identify a patient.

    Burned-in text, names and dates in paths, faces in MR of the head.
    """
    for entry in manifest.entries:
        for note in entry.notes:
            if note.startswith("burned-in"):
                what = f"{note}: look at it, and mask the text or leave the image out"
                yield Finding("burned-in annotation", name_of(entry), what, severe=False)
        found = _NAME_IN_PATH.search(" / ".join(p for p in (entry.source, *entry.images) if p))
        if found:
            what = "its path looks as if it held a name, a record number or a date; rename the file"
            yield Finding("name in path", name_of(entry), what, severe=False)
        if any(note.startswith("header text") for note in entry.notes):
            what = "its header holds free text; oncofed data deidentify removes it"
            yield Finding("text in header", name_of(entry), what, severe=False)
    looked_at = settled(manifest, "faces")
    heads = [entry for entry in manifest.entries if _shows_face(entry) and name_of(entry) not in looked_at]
    if heads:
        what = (
            f"{len(heads)} MR or CT volumes are large enough to hold a face, from which a person can be recognised; "
            "remove faces with pydeface, mri_deface or quickshear before images are shared (weights hold none)"
        )
        yield Finding("faces", None, what, severe=False, cases=tuple(map(name_of, heads)))


def _shows_face(entry: Entry) -> bool:
    if not entry.shape or len(entry.shape) != 3 or not entry.spacing:
        return False
    extent = sorted(n * s for n, s in zip(entry.shape, entry.spacing, strict=True))
    words = " ".join((*entry.notes, *entry.tags.values(), *entry.images, entry.source or "")).lower()
    head = any(word in words for word in _HEAD_WORDS)
    return bool(
        _is_modality(entry.modality or "", ("mr", "mri", "ct")) and extent[0] > 90 and (head or extent[2] < 300)
    )


def _far(values: NDArray[np.float64]) -> list[int]:
    if not len(values):
        return []
    median = np.median(values)
    deviation = np.abs(values - median)
    # If more than half are identical, the spread is that of the rest, and at least a tenth.
    spread = max(float(np.median(deviation)), 0.1 * _TO_STANDARD)
    far = np.flatnonzero(_TO_STANDARD * deviation / spread > _FAR)
    # Many distant cases are no outliers, but from another scanner or protocol, which a dataset may have.
    return [int(n) for n in far] if len(far) <= max(1, _MOST_OUTLIERS * len(values)) else []


def _is_modality(found: str, allowed: Sequence[str]) -> bool:
    return bool(set(re.split(r"[^a-z-]+", found.lower())) & set(allowed))
