"""Rank cases for review, by how unusual their labels are."""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from oncofed.data.manifest import Entry, Manifest
from oncofed.data.placement import ENDS, FLAT_ENDS, FLAT_MIRRORED, MIRRORED, Placement
from oncofed.data.quality import find_all, phi_warnings

# With fewer cases than this, nothing is known to be usual.
_FEWEST = 8
_FEWEST_ALIKE = 4
# Limit for outliers, in standard deviations by the median absolute deviation (Iglewicz and Hoaglin, 1993), and the
# deviation to assume if all others are equal.
_FAR = 4.5
_TO_STANDARD = 1.4826
_LEAST_FIT_SPREAD, _LEAST_SHARE_SPREAD, _LEAST_SIZE_SPREAD, _LEAST_PLACE_SPREAD = 0.05, 0.05, 0.25, 0.05
# Logarithm of the contrast at a mask's border over that elsewhere: below the first it fits better elsewhere, which
# counts if other masks do not; below the second it counts by itself.
_BETTER_ELSEWHERE, _FAR_BETTER_ELSEWHERE = -0.08, -0.3
_MOST_TIMES = 100  # larger ratios are meaningless
_USUAL_PLACE = 0.5
_MOST_WEIGHT = 20.0
# Weight of findings of `oncofed data check`: shown, but ranked behind doubts about the label.
FINDING = 2.0
_FEW_VOXELS = 10
_MOST_OUTSIDE, _MOST_CUT = 0.3, 0.25
_SIDES = {"left": "left", "l": "left", "lh": "left", "right": "right", "r": "right", "rh": "right"}
_OFF_CENTRE = 0.08


@dataclass(frozen=True)
class Suspicion:
    """One reason to look at a case.

    Attributes:
        case: its name.
        kind: short name of the reason.
        what: the finding, compared with the other cases.
        weight: how much it matters; those above 0 make a case suspicious.
    """

    case: str
    kind: str
    what: str
    weight: float


def by_facts(manifest: Manifest) -> dict[str, list[Suspicion]]:
    """Return case -> suspicions from registering.

    Args:
        manifest: with every fact, for sizes of labels, copies and outliers.
    """
    return _by_case(_sizes(manifest), _notes(manifest), _findings(manifest))


def by_pixels(manifest: Manifest, placements: Sequence[Placement]) -> dict[str, list[Suspicion]]:
    """Return case -> suspicions from the labels' placement.

    Args:
        manifest: for the labels' names.
        placements: of the cases whose pixels were compared with their label.
    """
    parts: list[Iterable[Suspicion]] = []
    for dimensions in (2, 3):
        group = [p for p in placements if len(p.centre) == dimensions]
        parts += [_elsewhere(group), _other_place(group), _other_side(group, manifest), _shares(group)]
    unread = (Suspicion(p.name, "unreadable", p.problem, 2 * _MOST_WEIGHT) for p in placements if p.problem)
    return _by_case(*parts, unread)


def joined(*parts: Mapping[str, Sequence[Suspicion]]) -> dict[str, tuple[Suspicion, ...]]:
    """Return case -> reasons from all parts, the weightiest first."""
    found = _by_case(*(several for part in parts for several in part.values()))
    return {case: tuple(sorted(several, key=lambda s: -s.weight)) for case, several in found.items()}


def score(reasons: Sequence[Suspicion]) -> float:
    """Return a case's weight.

    That of its weightiest reason, plus a little for the others.
    """
    weights = sorted((reason.weight for reason in reasons), reverse=True)
    return weights[0] + 0.25 * sum(weights[1:]) if weights else 0.0


def remarks(manifest: Manifest, placements: Sequence[Placement]) -> list[str]:
    """Return oddities of most cases, which comparisons miss."""
    found = []
    counts: Counter[str] = Counter()
    totals: Counter[str] = Counter()
    for placement in placements:
        for how, fit in placement.fit.items():
            if not how.startswith("shifted"):
                totals[how] += 1
                counts[how] += fit < _BETTER_ELSEWHERE
    for how, count in counts.most_common(1):
        if totals[how] >= _FEWEST_ALIKE and count > totals[how] / 2:
            found.append(
                f"In {count} of {totals[how]} cases the label lies better on its image when it is {how}. Compare "
                "pictures and contours: what wrote the masks may have turned them all."
            )
    for (left, right), swapped in _swapped(placements, _pairs(manifest)).items():
        wrong = sum(swapped.values())
        if len(swapped) >= _FEWEST_ALIKE and wrong > len(swapped) / 2:
            found.append(
                f"In {wrong} of {len(swapped)} cases {left} lies to the right of {right}. Compare the names of the "
                "labels with their values, and the axes in the files' headers with the letters on the pictures."
            )
    return found


def _by_case(*parts: Iterable[Suspicion]) -> dict[str, list[Suspicion]]:
    found: dict[str, list[Suspicion]] = defaultdict(list)
    for suspicion in itertools.chain(*parts):
        found[suspicion.case].append(suspicion)
    return dict(found)


# --- from the pixels


def _elsewhere(group: Sequence[Placement]) -> Iterator[Suspicion]:
    """Yield masks that would fit better when moved."""
    worst: dict[str, tuple[float, str, float]] = {}
    for how in sorted({how for placement in group for how in placement.fit}):
        own = [placement for placement in group if how in placement.fit]
        fits = np.array([placement.fit[how] for placement in own])
        drops = _drops(fits, _LEAST_FIT_SPREAD)
        for placement, fit, drop in zip(own, fits, drops, strict=True):
            is_odd = fit < _BETTER_ELSEWHERE and drop > _FAR
            if (is_odd or fit < _FAR_BETTER_ELSEWHERE) and fit < worst.get(placement.name, (0.0,))[0]:
                worst[placement.name] = (float(fit), how, float(drop))
    for name, (fit, how, drop) in worst.items():
        times = f"{np.exp(-fit):.2g}" if fit > -np.log(_MOST_TIMES) else f"more than {_MOST_TIMES}"
        what = f"{how}, its contour would follow the image's edges {times} times as well as it does"
        yield Suspicion(name, "mask lies better elsewhere", what, _weight(max(drop, -fit / _LEAST_FIT_SPREAD)))
    levels = [p for p in group if p.fit]
    means = np.array([np.mean([v for how, v in p.fit.items() if how.startswith("mirrored")]) for p in levels])
    usual = float(np.median(means)) if len(means) else 0.0
    for placement, mean, drop in zip(levels, means, _drops(means, _LEAST_FIT_SPREAD), strict=True):
        if drop > _FAR and placement.name not in worst:
            what = (
                f"its contour follows the image's edges {np.exp(mean):.2g} times as well as a mirrored one would, in "
                f"most cases {np.exp(usual):.2g} times"
            )
            yield Suspicion(placement.name, "contour off the edges", what, _weight(float(drop)))


def _other_place(group: Sequence[Placement]) -> Iterator[Suspicion]:
    """Yield masks in an unusual part of the image."""
    placed = [(placement, placement.place) for placement in group if placement.place is not None]
    if len(placed) < _FEWEST:
        return
    total = np.sum([cells for _, cells in placed], axis=0)
    own = np.array([_alike(total - cells, cells) for _, cells in placed])
    if np.median(own) < _USUAL_PLACE:
        return
    centres = np.array([placement.centre for placement, _ in placed])
    usual = np.median(centres, axis=0)
    for (placement, cells), alike, drop in zip(placed, own, _drops(own, _LEAST_PLACE_SPREAD), strict=True):
        if drop <= _FAR:
            continue
        where = _direction(np.array(placement.centre) - usual)
        mirrored = max(
            ((_alike(total - cells, np.flip(cells, axes)), axes) for axes in _axes(cells.ndim)), key=lambda m: m[0]
        )
        what = f"its label lies {where} than in most cases"
        if mirrored[0] > alike + 0.15:
            words = " and ".join((MIRRORED if cells.ndim == 3 else FLAT_MIRRORED)[axis] for axis in mirrored[1])
            what += f"; mirrored {words}, it would lie as theirs do"
        yield Suspicion(placement.name, "label lies elsewhere than others'", what, _weight(float(drop)))


def _other_side(group: Sequence[Placement], manifest: Manifest) -> Iterator[Suspicion]:
    """Yield classes on the unusual side of the body."""
    names = _names(manifest)
    pairs = _pairs(manifest)
    swapped = _swapped(group, pairs)
    for (left, right), cases in swapped.items():
        for case, is_swapped in cases.items():
            if is_swapped:
                what = f"{left} lies to the right of {right}"
                yield Suspicion(case, "left and right exchanged", what, _MOST_WEIGHT)
    paired = {value for values in pairs.values() for value in values}
    for value, name in names.items():
        offsets = {p.name: p.centres[value][0] - 0.5 for p in group if value in p.centres and value not in paired}
        if len(offsets) < _FEWEST:
            continue
        usual = float(np.median(list(offsets.values())))
        mostly = np.mean([offset * usual > 0 for offset in offsets.values()])
        if abs(usual) < _OFF_CENTRE or mostly < 0.8:
            continue
        for case, offset in offsets.items():
            if offset * usual < 0 and abs(offset) > _OFF_CENTRE:
                side, other = ("right", "left") if offset > 0 else ("left", "right")
                what = f"{name} lies in the {side} half of the image, in {mostly:.0%} of the cases in the {other}"
                yield Suspicion(case, "class on the other side", what, 0.75 * _MOST_WEIGHT)


def _shares(group: Sequence[Placement]) -> Iterator[Suspicion]:
    """Yield masks outside the body, cut off or fragmented."""
    outside = {p.name: p.outside for p in group if p.outside is not None}
    for case, share, drop, usual in _high(outside, _LEAST_SHARE_SPREAD):
        if share > _MOST_OUTSIDE:
            what = f"{share:.0%} of its mask lies outside the body or the specimen, in most cases {usual:.0%}"
            yield Suspicion(case, "mask outside the body", what, 0.8 * _weight(drop))
    for case, share, drop, usual in _high({p.name: p.cut for p in group}, _LEAST_SHARE_SPREAD):
        if share > _MOST_CUT:
            what = f"{share:.0%} of its contour is the image's edge, in most cases {usual:.0%}"
            yield Suspicion(case, "mask touches the image's edge", what, 0.5 * _weight(drop))
    pieces = {p.name: float(np.log(p.pieces)) for p in group if p.pieces}
    for case, number, drop, usual in _high(pieces, _LEAST_SIZE_SPREAD):
        what = f"its mask is in {np.exp(number):.0f} pieces, in most cases in {np.exp(usual):.0f}"
        yield Suspicion(case, "mask in many pieces", what, 0.4 * _weight(drop))


# --- from the facts of all cases


def _sizes(manifest: Manifest) -> Iterator[Suspicion]:
    """Yield labels of unusual size, or without a usual class."""
    masked = [entry for entry in manifest.entries if isinstance(entry.label, str) and entry.label_values]
    for entry in masked:
        count = sum(n for value, n in (entry.label_values or {}).items() if float(value) != 0)
        if count <= _FEW_VOXELS and not entry.tiles:
            what = f"its label has {count} {'voxel' if count == 1 else 'voxels'} in all"
            yield Suspicion(_name(entry), "very few voxels", what, 0.5 * _MOST_WEIGHT)
    if manifest.label_kind == "instances":
        return
    for value, name in _names(manifest).items():
        sizes = {_name(e): _size(e, value) for e in masked if not e.tiles}
        there = {case: float(np.log(size)) for case, size in sizes.items() if size > 0}
        if len(there) < _FEWEST:
            continue
        usual = float(np.median(list(there.values())))
        for case, size, drop in zip(there, there.values(), _drops(np.array([*there.values()]), 0.25), strict=True):
            if abs(drop) > _FAR:
                times = f"{np.exp(size - usual):.2g}"
                what = f"{name} is {times} times as large as in most cases"
                yield Suspicion(case, "label of an unusual size", what, 0.6 * _weight(abs(float(drop))))
        if len(there) >= 0.9 * len(sizes):
            for case in sizes.keys() - there.keys():
                what = f"it has no {name}, which {len(there)} of {len(sizes)} cases have"
                yield Suspicion(case, "class is missing", what, 0.4 * _MOST_WEIGHT)


def _notes(manifest: Manifest) -> Iterator[Suspicion]:
    for entry in manifest.entries:
        for note in entry.notes:
            if re.search(r"\b(label|mask|contour|segment)", note, re.I):
                yield Suspicion(_name(entry), "note on its label", note, 1.0)


def _findings(manifest: Manifest) -> Iterator[Suspicion]:
    for finding in find_all(manifest):
        if finding.case:
            yield Suspicion(finding.case, finding.kind, finding.what, FINDING)
    for finding in phi_warnings(manifest):
        if finding.case and f"{finding.kind}:{finding.case}" not in manifest.reviewed:
            yield Suspicion(finding.case, finding.kind, finding.what, 0.0)


# --- shared helpers


def _drops(values: NDArray[np.float64], least: float) -> NDArray[np.float64]:
    """Return standard deviations below the median; 0: too few cases."""
    if len(values) < _FEWEST:
        return np.zeros(len(values))
    median = np.median(values)
    spread = max(_TO_STANDARD * float(np.median(np.abs(values - median))), least)
    return np.asarray((median - values) / spread)


def _high(values: Mapping[str, float], least: float) -> Iterator[tuple[str, float, float, float]]:
    """Yield (case, value, deviations above the median, median) of outliers."""
    drops = -_drops(np.array(list(values.values())), least)
    usual = float(np.median(list(values.values()))) if values else 0.0
    for (case, value), drop in zip(values.items(), drops, strict=True):
        if drop > _FAR:
            yield case, value, float(drop), usual


def _weight(deviations: float) -> float:
    return float(min(deviations, _MOST_WEIGHT))


def _alike(usual: NDArray[np.float32], cells: NDArray[np.float32]) -> float:
    one, other = usual.ravel(), cells.ravel()
    return float(np.corrcoef(one, other)[0, 1]) if one.std() > 0 and other.std() > 0 else 0.0


def _axes(dimensions: int) -> list[tuple[int, ...]]:
    axes = range(dimensions)
    return [chosen for n in range(1, dimensions + 1) for chosen in itertools.combinations(axes, n)]


def _direction(offset: NDArray[np.float64]) -> str:
    ends = ENDS if len(offset) == 3 else FLAT_ENDS
    axis = int(np.argmax(np.abs(offset)))
    if abs(offset[axis]) < 0.01:
        return "in other places"
    return f"{abs(offset[axis]):.0%} of the image further to the {ends[axis][int(offset[axis] > 0)]}"


def _names(manifest: Manifest) -> dict[int, str]:
    named = {int(float(value)): name for value, name in manifest.labels.items() if float(value) != 0}
    return {value: name if name.strip() != str(value) else f"label {value}" for value, name in named.items()}


def _pairs(manifest: Manifest) -> dict[tuple[str, str], tuple[int, int]]:
    """Return (left name, right name) -> values, of paired names."""
    sides: dict[str, dict[str, tuple[str, int]]] = defaultdict(dict)
    for value, name in _names(manifest).items():
        words = [word for word in re.split(r"[^a-z0-9]+", name.lower()) if word]
        said = [_SIDES[word] for word in words if word in _SIDES]
        if len(said) == 1:
            rest = " ".join(word for word in words if word not in _SIDES)
            sides[rest][said[0]] = (name, value)
    return {
        (found["left"][0], found["right"][0]): (found["left"][1], found["right"][1])
        for found in sides.values()
        if len(found) == 2
    }


def _swapped(
    placements: Sequence[Placement], pairs: Mapping[tuple[str, str], tuple[int, int]]
) -> dict[tuple[str, str], dict[str, bool]]:
    """Return name pair -> case -> whether left lies right.

    Volumes only.
    """
    return {
        names: {
            p.name: p.centres[left][0] > p.centres[right][0]
            for p in placements
            if len(p.centre) == 3 and left in p.centres and right in p.centres
        }
        for names, (left, right) in pairs.items()
    }


def _size(entry: Entry, value: int) -> float:
    """Return a label's size in mm³, mm² or voxels."""
    count = next((n for v, n in (entry.label_values or {}).items() if float(v) == value), 0)
    return count * float(np.prod(entry.spacing or [1]))


def _name(entry: Entry) -> str:
    return entry.name or entry.images[0]
