"""Tell the volumes of one series apart, by their headers.

Scanners put time points, echoes, b-values, phases, kernels into one series. A header, or a pair of headers, tells
volumes apart if the slices with each value have distinct, evenly spaced places, and the slices of no two values
interleave. Slices that no header tells apart are refused, with the headers that differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise

import numpy as np
from numpy.typing import NDArray

from oncofed.data.dicom.directions import together
from oncofed.data.dicom.duplicates import at_one_place, copies_among, place_tolerance
from oncofed.data.dicom.image_header import TELLING
from oncofed.data.dicom.regular import EVEN, as_volume, rounding
from oncofed.data.dicom.stacks import Digests, Slice, Stack, refused

IN_PLANE = "place in the plane (ImagePositionPatient)"
FOLDER = "the folder of the files"  # if an anonymiser left nothing else
# Times are the last resort: in many series each slice has a different one.
_TIMES = ("AcquisitionDateTime", "AcquisitionDate", "AcquisitionTime", "TriggerTime", "SeriesTime", "ContentTime")
_ORDER = (*_TIMES, "FrameReferenceTime", "InstanceNumber")  # headers by which volumes may be ordered
_KEYS = tuple(keyword for keyword in TELLING if keyword not in {*_TIMES, "InstanceNumber"})
_NUMBERS = {
    "EchoTime",
    "InversionTime",
    "RepetitionTime",
    "FlipAngle",
    "DiffusionBValue",
    "SliceThickness",
    "KVP",
    "ReconstructionDiameter",
}
# Slices that differ in one of these are of different images, wherever they lie.
_PHYSICAL = (
    "EchoTime",
    "InversionTime",
    "DiffusionBValue",
    "ConvolutionKernel",
    "ComplexImageComponent",
    "Units",
)
# The same, for slices that do not form one volume.
_IMAGED = {*_PHYSICAL, "SliceThickness", "KVP", "FlipAngle"}
_SHOWN = {*_IMAGED, "TemporalPositionIdentifier", "AcquisitionNumber"}
# Independent of the acquisition, and changed when an image is sent again.
_OF_SENDING = {
    "SeriesNumber",
    "SeriesDescription",
    "ProtocolName",
    "StudyInstanceUID",
    "FrameOfReferenceUID",
    FOLDER,
    *_ORDER,
}
_SAME_NUMBER = 1e-3
_FEWEST_PLACES = 3
_FEWEST_OF_TWO = 4  # least number of slices of two volumes
_LONGEST_VALUE = 24

Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Partition:
    """A partition of slices into volumes, by headers."""

    keys: tuple[str, ...]
    labels: Labels

    @property
    def count(self) -> int:
        """Number of volumes."""
        return int(self.labels.max()) + 1


def volumes(group: list[Slice], digests: Digests) -> tuple[list[Stack], set[str]]:
    """Return the volumes of slices, and the paths of copies.

    The slices have one direction, size and pixel size.

    Args:
        group: the slices, in any order.
        digests: called for slices at one place that no header tells apart.
    """
    places = _Places(group)
    if places.is_free(np.arange(len(group))):
        return _without_collision(group, places), set()
    found, why_not = _divide(places)
    copies = _copied(places, found, digests)
    if found is not None and not copies:
        return _divided(group, found), set()
    if copies:
        stacks, more = volumes([item for item in group if item.path not in copies], digests)
        return stacks, copies | more
    twice = len(group) - places.count
    what = f"has {twice} of {len(group)} slices at positions of others, and {why_not}"
    return [
        refused(group, f"{what}. Export each volume as a series of its own, or leave out what is there twice")
    ], set()


class _Places:
    """Places of slices along their normal, and their headers.

    Attributes:
        level: number of each slice's place along the normal.
        count: of places.
    """

    def __init__(self, group: Sequence[Slice]) -> None:
        self.group = group
        positions = np.array([item.header.position for item in group])
        turned = np.array([item.header.orientation for item in group]).mean(axis=0)
        axes = np.stack([turned[:3], turned[3:], np.cross(turned[:3], turned[3:])], axis=1)
        self._in_plane = (positions @ axes)[:, :2]
        self.along = (positions @ axes)[:, 2]
        order = np.argsort(self.along, kind="stable")
        self.reach = place_tolerance(group)
        steps = np.diff(self.along[order]) > self.reach
        self.level = np.empty(len(group), np.int64)
        self.level[order] = np.concatenate([[0], np.cumsum(steps)])
        self.count = int(self.level.max()) + 1

    def is_free(self, part: Labels) -> bool:
        """Return whether a part's slices have distinct places."""
        return len(np.unique(self.level[part])) == len(part)

    def is_even(self, part: Labels) -> bool:
        """Return whether a part's slices are evenly spaced."""
        along = np.sort(self.along[part])
        gap = float(along[-1] - along[0]) / max(1, len(along) - 1)
        off = np.abs(along - along[0] - np.arange(len(along)) * gap).max()
        return bool(off <= max(EVEN * gap, rounding(gap)))

    def values(self, keyword: str) -> Labels:
        """Return each slice's value of a header, as a number.

        Numbers that differ by rounding are one value.
        """
        if keyword == IN_PLANE:
            return _numbered(together(self._in_plane, 4 * max(self.reach, 0.05)).tolist())
        if keyword == FOLDER:
            return _numbered([item.path.rpartition("/")[0] for item in self.group])
        texts = [item.header.tells.get(keyword, "") for item in self.group]
        return _numbered(_rounded(texts) if keyword in _NUMBERS else texts)

    def moments(self, keyword: str) -> list[float] | None:
        """Return all slices' times or numbers; None if incomplete."""
        try:
            return [float(item.header.tells[keyword]) for item in self.group]
        except (KeyError, ValueError):
            return None


def _numbered(values: Sequence[object]) -> Labels:
    numbers: dict[object, int] = {}
    return np.array([numbers.setdefault(value, len(numbers)) for value in values])


def _rounded(values: Sequence[str]) -> list[object]:
    """Return values, with nearly equal numbers made equal."""
    try:
        numbers = {value: float(value) for value in set(values) if value}
    except ValueError:
        return list(values)
    same: dict[str, object] = {"": ""}
    before = None
    for value in sorted(numbers, key=lambda v: numbers[v]):
        near = before is not None and numbers[value] - numbers[before] <= _SAME_NUMBER * max(1, abs(numbers[value]))
        same[value] = same[before] if near and before is not None else numbers[value]
        before = value
    return [same[value] for value in values]


def _without_collision(group: list[Slice], places: _Places) -> list[Stack]:
    """Return the volumes of slices at distinct places.

    A single one, unless headers tell several apart.
    """
    stack = as_volume(group)
    physical = [Partition((key,), places.values(key)) for key in _PHYSICAL]
    differing = [p for p in physical if p.count > 1]
    if stack.reason is None:
        for partition in differing:
            if all(len(part) > 1 and places.is_even(part) for part in _parts_of(partition)):
                return _divided(group, partition)
        noted = tuple(f"its slices differ in {partition.keys[0]}" for partition in differing)
        return [replace(stack, notes=(*stack.notes, *noted))]
    if len(group) < _FEWEST_OF_TWO:
        return [stack]
    apart = [p for p in _single(places, _KEYS) if p.keys[0] in _IMAGED or _do_not_interleave(p, places)]
    best, _ = _chosen([p for p in apart if _fits(p, places)])
    return _divided(group, best) if best is not None else [stack]


def _divide(places: _Places) -> tuple[Partition | None, str]:
    """Return a partition of slices sharing places, or a reason."""
    keys, times = _single(places, (*_KEYS, IN_PLANE)), _single(places, _TIMES)
    for candidates in (
        keys,
        _pairs(keys, keys),
        times,
        _pairs(keys, times),
        _single(places, (FOLDER,)),
        _in_order(places),
    ):
        best, conflict = _chosen([p for p in candidates if _fits(p, places)])
        if best is not None or conflict:
            return best, conflict
    for candidates in (keys, times):
        best, _ = _chosen([p for p in candidates if _fits(p, places, whole=False)])
        if best is not None:
            return best, ""
    differing = [f"{p.keys[0]} ({p.count} values)" for p in (*keys, *times)]
    if not differing:
        return None, "no header tells them apart"
    return None, f"what differs between them does not divide them into whole volumes: {', '.join(differing[:6])}"


def _copied(places: _Places, partition: Partition | None, digests: Digests) -> set[str]:
    """Return the paths of copies among slices that share places.

    If slices are divided into volumes, some may have been sent again under another description or time: one of them is
    compared with the slices at its place, and the rest only if it is a copy.
    """
    group = places.group
    if partition is not None:
        parts = sorted(_parts_of(partition), key=len)
        if not set(partition.keys) <= _OF_SENDING or 2 * len(parts[0]) > len(parts[-1]):
            return set()
        again = parts[0][len(parts[0]) // 2]
        probes = [group[int(number)] for number in np.flatnonzero(places.level == places.level[again])]
        if not copies_among([probes], digests(probes)):
            return set()
    alike = at_one_place(group)
    return copies_among(alike, digests([item for items in alike for item in items]))


def _single(places: _Places, keys: Iterable[str]) -> list[Partition]:
    """Return the partitions by single headers."""
    found: dict[bytes, Partition] = {}
    for key in keys:
        labels = places.values(key)
        if labels.max() > 0:
            found.setdefault(labels.tobytes(), Partition((key,), labels))
    return list(found.values())


def _pairs(first: Sequence[Partition], second: Sequence[Partition]) -> Iterator[Partition]:
    """Yield the partitions by two headers together."""
    pairs = combinations(first, 2) if first is second else ((a, b) for a in first for b in second)
    for a, b in pairs:
        labels = _numbered(list(zip(a.labels.tolist(), b.labels.tolist(), strict=True)))
        if labels.max() > max(a.labels.max(), b.labels.max()):
            yield Partition((*a.keys, *b.keys), labels)


def _in_order(places: _Places) -> Iterator[Partition]:
    """Yield partitions by order, in time or number.

    Each place has the same number of slices; the first of each place form the first volume, and so on. All slices of a
    volume come before those of the next one.
    """
    counts = np.bincount(places.level)
    if places.count < _FEWEST_PLACES or counts.min() != counts.max():
        return
    for key in _ORDER:
        moments = places.moments(key)
        if moments is None:
            continue
        times = np.array(moments)
        order = np.lexsort([times, places.level])
        labels = np.empty(len(times), np.int64)
        labels[order] = np.tile(np.arange(counts[0]), places.count)
        ends = [(times[labels == n].min(), times[labels == n].max()) for n in range(counts[0])]
        if all(one[1] < two[0] for one, two in pairwise(ends)):
            yield Partition((key,), _numbered(labels.tolist()))


def _parts_of(partition: Partition) -> list[Labels]:
    order = np.argsort(partition.labels, kind="stable")
    bounds = np.cumsum(np.bincount(partition.labels))[:-1]
    return np.split(order, bounds)


def _fits(partition: Partition, places: _Places, whole: bool = True) -> bool:
    """Return whether a partition's parts are volumes.

    Args:
        partition: the partition.
        places: of its slices.
        whole: require each part to be evenly spaced; else one is enough, and gaps of the others are reported later.
    """
    parts = _parts_of(partition)
    single = places.count > 1 and min(map(len, parts)) < 2
    if single or not all(places.is_free(part) for part in parts):
        return False
    even = [places.is_even(part) for part in parts]
    return (all(even) if whole else any(even)) and not _halves(parts, places)


def _halves(parts: Sequence[Labels], places: _Places) -> bool:
    """Return whether two parts are halves of one volume.

    They interleave, and are evenly spaced together.
    """
    levels = [frozenset(places.level[part].tolist()) for part in parts]
    by_levels: dict[frozenset[int], Labels] = dict(zip(levels, parts, strict=True))
    for first, second in combinations(by_levels, 2):
        between = max(min(first), min(second)) < min(max(first), max(second))
        if (
            between
            and first.isdisjoint(second)
            and places.is_even(np.concatenate([by_levels[first], by_levels[second]]))
        ):
            return True
    return False


def _do_not_interleave(partition: Partition, places: _Places) -> bool:
    ends = sorted((places.along[part].min(), places.along[part].max()) for part in _parts_of(partition))
    return all(one[1] < two[0] for one, two in pairwise(ends))


def _chosen(fitting: Sequence[Partition]) -> tuple[Partition | None, str]:
    """Return the partition with fewest volumes, or a contradiction."""
    if not fitting:
        return None, ""
    best = min(fitting, key=lambda p: p.count)
    for other in fitting:
        crossed = len(np.unique(np.stack([best.labels, other.labels]), axis=1).T) != other.count
        if crossed:
            return None, (
                f"its headers contradict each other: {_named(best)} divides them into {best.count} volumes, "
                f"{_named(other)} into {other.count} others"
            )
    return best, ""


def _named(partition: Partition) -> str:
    return " and ".join(partition.keys)


def _divided(group: list[Slice], partition: Partition) -> list[Stack]:
    note = f"its series holds {partition.count} volumes, which differ in {_named(partition)}"
    stacks = []
    for part in _parts_of(partition):
        slices = [group[number] for number in part]
        stack = as_volume(slices)
        own_values = _values_of(partition.keys, slices[0].header.tells)
        stacks.append(replace(stack, notes=(note, *own_values, *stack.notes)))
    return stacks


def _values_of(keys: Iterable[str], tells: Mapping[str, str]) -> list[str]:
    """Return a volume's values of headers.

    Only numbers and codes: free text may name somebody.
    """
    return [f"{key} {tells[key][:_LONGEST_VALUE]}" for key in keys if key in _SHOWN and tells.get(key)]
