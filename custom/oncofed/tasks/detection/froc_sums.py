"""FROC over the patients of several sites, from counts of boxes.

A box's score stays at the site. The site sends, of each class, how many objects its images have, and how many hits and
false positives lie between fixed edges of the score, in cells of five patients or more. Objects that were missed in one
to four patients are counted in the lowest cell of hits: how many they are is the difference of two numbers that leave.
How unequally objects lie in patients stays: number and sum of squares together give away single patients' numbers.

A site of fewer than ten patients, or of one to nine objects, sends nothing: beside five that a number counts it would
tell of one to four others, of five patients with six objects that one has two, and of six objects where one was missed.

A site's own curve leaves where each of its steps is of five patients, or nobody (``curve_may_leave``): a sensitivity
times the number of objects is that of hits, and the difference of two is a step. Cells of hits then end where they
leave five patients, or nobody, between themselves and the curve's points.

How far the mean sensitivity is off, measured on made scores of nodules, a dozen other boxes a scan, 30 times: at three
sites of 200 to 300 patients 0.001 on average and at most 0.0022; of 60 to 100, 0.003 and 0.006; of 25 to 40, 0.01 and
0.026. The sensitivity at one rate is off by two to three times as much. With the bins alone, without cells of five
patients, the error stays below 0.002: patients bound it, not bins.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oncofed.suppression import LEAST_PATIENTS
from oncofed.tasks.detection.figures import FALSE_POSITIVES, patients_of_steps, steps_of_hits
from oncofed.tasks.detection.outcome import Matched
from oncofed.tasks.metrics import Metric
from oncofed.tasks.pooled import BINS, DIGITS_OF_ODDS, NORMAL, Cells, added, bins_of, by_bin, cells_of, spans
from oncofed.tasks.pooled_target import Line, Plot, PooledTarget, Table, TargetFigure
from oncofed.tasks.sum_forms import are_cells, is_count, is_patients, is_sum

_DIGITS_OF_EXTENT = 2
_MOST_EXTENT = 10_000.0  # of a case, mm²: five slides' whole glass
_MOST_OBJECTS = 100_000  # of a case
_FEWEST = 2 * LEAST_PATIENTS  # patients of a site, and objects: five, and five others
_LIKELY_MISSED = 2  # where none to four patients have missed objects, and nobody is to know
_KEYS = {"patients", "with_objects", "with_misses", "extent", "objects", "hits", "false_positives"}
_KINDS = ("hits", "false_positives")


def curve_may_leave(cases: Sequence[tuple[str, Matched]]) -> bool:
    """Return whether a site's sensitivities of one class tell of five patients or more, at each step.

    Args:
        cases: patient's key and boxes of each image.
    """
    objects = sum(case.objects for _, case in cases)
    if not objects:
        return True
    enough = min(objects, len({patient for patient, _ in cases})) >= _FEWEST
    return enough and all(len(step) >= LEAST_PATIENTS for step in patients_of_steps(cases))


def froc_sums(cases: Sequence[tuple[str, Matched]]) -> dict[str, Any] | None:
    """Return a site's counts of one class's boxes.

    Args:
        cases: patient's key and boxes of each image.

    Returns:
        patients: their number; with_objects: how many of them have objects, or fewer, in fives; with_misses: how many
        have some that no box hit, likewise, 0 where the lowest cell of hits has them; extent: images, or mm² of tissue;
        objects: their number; hits and false_positives: [lowest bin, boxes, sum of their log odds, sum of squares,
        fewest patients whose boxes they are], from the highest bin down. None where a number would tell of one to four
        patients.
    """
    everybody = {patient for patient, _ in cases}
    objects: Counter[str] = Counter()
    for patient, case in cases:
        objects[patient] += case.objects
    bearers = {patient for patient, number in objects.items() if number}
    missed = {patient for patient, case in cases if case.objects > case.hits.sum()}
    if len(everybody) < _FEWEST or 0 < objects.total() < _FEWEST or 0 < len(bearers) < LEAST_PATIENTS:
        return None
    scores = np.concatenate([case.scores for _, case in cases])
    hits = np.concatenate([case.hits for _, case in cases])
    keys = np.array([patient for patient, case in cases for _ in case.scores], dtype=object)
    steps = np.concatenate(steps_of_hits([case for _, case in cases])) if curve_may_leave(cases) else None
    parts = {}
    for kind, chosen, points in zip(_KINDS, (hits, ~hits), (steps, None), strict=True):
        parts[kind] = _cells(scores[chosen], keys[chosen], len(everybody), points)
        if chosen.any() and not parts[kind]:
            return None
    bearers_told = told_patients(len(bearers), len(everybody))
    sums = {
        "patients": len(everybody),
        "with_objects": bearers_told,
        "with_misses": told_patients(len(missed), bearers_told),
        "extent": round(sum(case.extent for _, case in cases), _DIGITS_OF_EXTENT),
        "objects": objects.total(),
        **parts,
    }
    return _with_misses_in_a_cell(sums, LEAST_PATIENTS)


@dataclass(frozen=True)
class FrocSums:
    """One class's counts of boxes: their form, suppression and figures.

    Attributes:
        primary: the mean sensitivity.
        sensitivities: at each of ``FALSE_POSITIVES``.
        per: by what false positives are counted, such as "an image".
        most_boxes: of an image.
    """

    primary: Metric
    sensitivities: Sequence[Metric]
    per: str
    most_boxes: int
    members: tuple[str, ...] = ()
    tempered: tuple[str, ...] = ()
    makes_mean: bool = False
    has_own_figure: bool = False

    def is_site_sums(self, value: Any, most: int) -> bool:
        """Return whether a value has the form of ``froc_sums``."""
        if not isinstance(value, Mapping) or set(value) != _KEYS or not is_patients(value["patients"], most):
            return False
        patients, objects, bearers = value["patients"], value["objects"], value["with_objects"]
        if patients < _FEWEST or (bearers and objects < _FEWEST):
            return False
        if not is_count(objects, _MOST_OBJECTS * most) or not is_sum(
            value["extent"], 0, _MOST_EXTENT * most, _DIGITS_OF_EXTENT
        ):
            return False
        if not (bearers == 0 == objects or (is_patients(bearers, patients) and objects >= bearers)):
            return False
        if not all(_are_cells(value[kind], patients) for kind in _KINDS):
            return False
        boxes, missed = [_boxes(value[kind]) for kind in _KINDS], value["with_misses"]
        if not (boxes[0] == objects if missed == 0 else is_patients(missed, bearers) and objects - boxes[0] >= missed):
            return False
        # Missed objects may be among them, which no box is of.
        return bool(sum(boxes) <= self.most_boxes * most + objects)

    def withhold(self, sums: Mapping[str, Any], minimum: int) -> dict[str, Any] | None:
        """Return coarser counts; None where too few patients are behind one."""
        levels = _levels(sums["patients"], minimum)
        if not levels or 0 < sums["with_objects"] < minimum:
            return None
        beside = {kind: [[*row[:4], min(row[4], levels[-1])] for row in sums[kind]] for kind in _KINDS}
        coarse = {kind: _coarser(beside[kind], minimum) for kind in _KINDS}
        bearers = told_patients(sums["with_objects"], sums["patients"], minimum)
        if any(bool(coarse[kind]) != bool(sums[kind]) for kind in _KINDS):
            return None
        missed = told_patients(sums["with_misses"], bearers, minimum)
        return _with_misses_in_a_cell({**sums, **coarse, "with_objects": bearers, "with_misses": missed}, minimum)

    def over_sites(self, of_sites: Sequence[Mapping[str, Any]]) -> PooledTarget | None:
        """Return the sensitivities over all sites; None without objects."""
        objects = sum(one["objects"] for one in of_sites)
        extent = sum(one["extent"] for one in of_sites)
        if not objects or not extent:
            return None
        hits, false = _Boxes.of_objects(of_sites), _Boxes.of(one["false_positives"] for one in of_sites)
        # A patient's objects are found together: they count as one patient.
        bearers = sum(one["with_objects"] for one in of_sites)
        values, bounds, intervals = [], [], []
        for rate in FALSE_POSITIVES:
            # The first box that is one false positive too many; what scores higher counts.
            beyond = int(np.floor(rate * extent + 1e-9))
            likely = _share(hits.above(false.place(beyond)), objects)
            low, high = (hits.surely(false.highest(beyond)), hits.perhaps(false.lowest(beyond)))
            bounds.append((_share(low, objects), _share(high, objects)))
            values.append(min(max(likely, bounds[-1][0]), bounds[-1][1]))
            # Other patients have more or fewer false positives (Poisson), so that the threshold lies elsewhere.
            reach = math.sqrt(max(beyond, 1))
            ends = [hits.above(false.place(max(beyond + shift, 0))) for shift in (-reach, reach)]
            intervals.append(score_interval(values[-1], bearers, (ends[1] - ends[0]) / objects / 2))
        patients = sum(one["patients"] for one in of_sites)
        mean = TargetFigure(
            title=self.primary.label,
            value=float(np.mean(values)),
            patients=patients,
            interval=score_interval(float(np.mean(values)), bearers),
            bounds=(float(np.mean([low for low, _ in bounds])), float(np.mean([high for _, high in bounds]))),
        )
        at = {
            metric.name: TargetFigure(
                title=metric.label,
                value=value,
                patients=patients,
                interval=interval,
                bounds=within,
            )
            for metric, value, within, interval in zip(self.sensitivities, values, bounds, intervals, strict=True)
        }
        return PooledTarget(
            kind="boxes",
            patients=patients,
            figures={self.primary.name: mean, **at},
            tables=[self._counts(objects, extent, None if hits.unsure else hits.total, false.total)],
            plots=[self._curve(hits, false, objects, extent)],
        )

    def thresholds(self, of_sites: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Return none: FROC is of all thresholds."""
        del of_sites
        return {}

    def use_thresholds(self, thresholds: Mapping[str, float]) -> None:
        """Use none: FROC is of all thresholds."""

    def _counts(self, objects: int, extent: float, hits: float | None, false: float) -> Table:
        unit = self.per.partition(" ")[2]
        columns = ["images" if unit == "image" else "slides" if unit == "slide" else unit]
        return Table(
            title="All sites",
            columns=[*columns, "objects", "hits", "false positives"],
            rows={"at any score": [extent, objects, None if hits is None else round(hits), round(false)]},
        )

    def _curve(self, hits: _Boxes, false: _Boxes, objects: int, extent: float) -> Plot:
        rates, shares = np.cumsum(false.by_bin[::-1]) / extent, np.cumsum(hits.by_bin[::-1]) / objects
        shown = np.flatnonzero(np.append(rates[:-1] <= FALSE_POSITIVES[-1], False))
        points = {(round(float(rates[n]), 4), round(float(shares[n]), 4)) for n in shown}
        return Plot(
            title="FROC, patients of all sites",
            x=f"false positives {self.per}",
            y="sensitivity",
            lines=[Line(name="model", points=sorted({(0.0, 0.0), *points}))],
        )


@dataclass(frozen=True)
class _Boxes:
    """Boxes of all sites by score.

    Attributes:
        spans: (lowest bin, highest bin, boxes) of each cell, (cell, 3).
        by_bin: those of a cell spread over its bins, (bin,).
        unsure: of cells that reach down to the lowest bin, those of whom some may be missed objects.
    """

    spans: NDArray[np.int64]
    by_bin: NDArray[np.float64]
    unsure: int = 0

    @classmethod
    def of(cls, sites: Any) -> _Boxes:
        """Return the boxes of sites' cells."""
        cells: list[Cells] = [[row[:4] for row in rows] for rows in sites]
        return cls(spans(cells), sum((by_bin(rows) for rows in cells), start=np.zeros(BINS)))

    @classmethod
    def of_objects(cls, of_sites: Sequence[Mapping[str, Any]]) -> _Boxes:
        """Return the hits of sites, of which some count missed objects of one to four patients, or none, among them."""
        unsure = [one["hits"] for one in of_sites if one["hits"] and not one["with_misses"]]
        likely = [[*rows[:-1], _fewer(rows[-1])] for rows in unsure]
        sure = cls.of(one["hits"] for one in of_sites if one["with_misses"])
        both = cls.of([*(one["hits"] for one in of_sites if one["with_misses"]), *unsure])
        return cls(both.spans, sure.by_bin + cls.of(likely).by_bin, sum(rows[-1][1] for rows in unsure))

    @property
    def total(self) -> float:
        """Number of boxes."""
        return float(self.spans[:, 2].sum())

    def place(self, number: float) -> float:
        """Return where the box after ``number`` higher ones lies, in bins; below all if there is none."""
        if number + 0.5 > self.total:
            return 0.0
        down = np.cumsum(self.by_bin[::-1])
        inside = int(np.searchsorted(down, number + 0.5))
        before = down[inside - 1] if inside else 0.0
        return float(BINS - inside - (number + 0.5 - before) / max(self.by_bin[BINS - 1 - inside], 1e-12))

    def above(self, place: float) -> float:
        """Return how many boxes lie above a place."""
        edge = int(np.ceil(place))
        part = (edge - place) * self.by_bin[edge - 1] if edge > place else 0.0
        return float(self.by_bin[edge:].sum() + part)

    def highest(self, number: int) -> int:
        """Return the highest bin of the box after ``number`` higher ones; below all if there is none."""
        return self._bin_after(number, self.spans[:, 1])

    def lowest(self, number: int) -> int:
        """Return the lowest bin of the box after ``number`` higher ones; below all if there is none."""
        return self._bin_after(number, self.spans[:, 0])

    def surely(self, bin_: int) -> float:
        """Return how many boxes lie above a bin, wherever in its cell a box lies."""
        # Those cells end in bin 0; they count where no score is too low.
        return float(self.spans[self.spans[:, 0] > bin_, 2].sum()) - (self.unsure if bin_ < 0 else 0)

    def perhaps(self, bin_: int) -> float:
        """Return how many boxes may lie in a bin or above it."""
        return float(self.spans[self.spans[:, 1] >= bin_, 2].sum())

    def _bin_after(self, number: int, bins: NDArray[np.int64]) -> int:
        if number >= self.total:
            return -1
        order = np.argsort(-bins, kind="stable")
        return int(bins[order][np.searchsorted(np.cumsum(self.spans[order, 2]), number, side="right")])


def _cells(
    scores: NDArray[np.float64], patients: NDArray[np.object_], everybody: int, steps: NDArray[np.int64] | None
) -> list[list[Any]]:
    """Return cells of boxes, each with the most patients of whom it ends a group; see ``_coarser``.

    Args:
        scores: of the boxes.
        patients: key of each one's patient.
        everybody: number of the site's patients.
        steps: of the curve that each box is in, where the curve may leave, too.
    """
    cells, bins = cells_of(scores, patients.tolist()), bins_of(scores)
    if steps is not None:
        cells = _apart_from(steps, cells, bins, patients)
    people = [set(patients[(bins >= low) & (bins <= top)]) for low, top, _ in spans([cells])]
    levels = [LEAST_PATIENTS] * len(cells)
    # Groups of more patients are made of groups of fewer, so that the difference of two is a group, too.
    for level in _levels(everybody)[1:]:
        group: set[str] = set()
        for n, own in enumerate(people):
            group |= own
            if levels[n] == level // 2 and len(group) >= level:
                levels[n], group = level, set()
    return [[*cell, level] for cell, level in zip(cells, levels, strict=True)]


def _apart_from(
    steps: NDArray[np.int64], cells: Cells, bins: NDArray[np.int64], patients: NDArray[np.object_]
) -> Cells:
    """Merge cells until each ends five patients, or nobody, away from the curve's points.

    Args:
        steps: of the curve that each box is in, each of five patients or more.
        cells: of the boxes.
        bins: of each box.
        patients: key of each one's patient.
    """
    found: Cells = []
    rest: list[Any] | None = None
    top = BINS
    for cell in cells:
        rest = added(rest, cell) if rest else list(cell)
        inside, below = (bins >= cell[0]) & (bins < top), bins < cell[0]
        if all(_are_of_enough(steps[part], patients[part]) for part in (inside, below)):
            found.append(rest)
            rest, top = None, cell[0]
    return found


def _are_of_enough(steps: NDArray[np.int64], patients: NDArray[np.object_]) -> bool:
    return all(len(set(patients[steps == step])) >= LEAST_PATIENTS for step in set(steps.tolist()))


def _with_misses_in_a_cell(sums: Mapping[str, Any], minimum: int) -> dict[str, Any]:
    """Return counts that do not tell how many objects were missed, where too few patients have them.

    The lowest cell of hits takes them, its mean and spread unchanged: it looks as one of hits alone. Both are rounded
    first, or digits of their sums would tell by how many it grew.
    """
    if sums["with_misses"] >= minimum or not sums["hits"]:
        return dict(sums)
    *above, (lowest, boxes, total, squares, level) = sums["hits"]
    more = boxes + sums["objects"] - _boxes(sums["hits"])
    scaled = [round(round(part / boxes, DIGITS_OF_ODDS) * more, DIGITS_OF_ODDS) for part in (total, squares)]
    return {**sums, "with_misses": 0, "hits": [*above, [lowest, more, *scaled, level]]}


def _fewer(cell: Sequence[Any]) -> list[Any]:
    """Return a cell of hits without as many missed objects as are likely in it."""
    left = cell[1] - min(_LIKELY_MISSED, cell[1] / 2)
    return [cell[0], left, *(part * left / cell[1] for part in cell[2:4]), cell[4]]


def score_interval(share: float, number: float, error: float = 0.0) -> tuple[float, float]:
    """Return the 95 % interval of a share of some number of independent ones (Wilson, 1927).

    Args:
        share: of them.
        number: of them.
        error: further standard error of the share, independent of theirs.
    """
    variance = share * (1 - share) / number
    if variance > 0:
        number *= variance / (variance + error**2)
    middle = (share + NORMAL**2 / (2 * number)) / (1 + NORMAL**2 / number)
    reach = NORMAL * math.sqrt(share * (1 - share) / number + (NORMAL / number / 2) ** 2) / (1 + NORMAL**2 / number)
    return max(middle - reach, 0.0), min(middle + reach, 1.0)


def _levels(patients: int, least: int = LEAST_PATIENTS) -> list[int]:
    """Return numbers of patients, each twice the one before, with enough others beside the most."""
    return [LEAST_PATIENTS << n for n in range((max(patients - least, 0) // LEAST_PATIENTS).bit_length())]


def _coarser(cells: Sequence[Sequence[Any]], minimum: int) -> list[list[Any]]:
    """Merge cells until enough patients are behind each."""
    found: list[list[Any]] = []
    rest: list[Any] | None = None
    for cell in cells:
        rest = _merged(rest, cell) if rest else list(cell)
        if rest[4] >= minimum:
            found.append(rest)
            rest = None
    if found:
        found[-1] = [0, *(_merged(found[-1], rest) if rest else found[-1])[1:]]
    return found


def _merged(one: Sequence[Any], lower: Sequence[Any]) -> list[Any]:
    sums = (round(one[n] + lower[n], DIGITS_OF_ODDS) for n in (2, 3))
    return [lower[0], one[1] + lower[1], *sums, max(one[4], lower[4])]


def told_patients(patients: int, everybody: int, least: int = LEAST_PATIENTS) -> int:
    """Return a number of patients, or a lower one that does not tell of fewer than ``least`` others.

    In fives: of exactly five with six objects, one would have two.
    """
    return min(patients, max(least, everybody - least)) // LEAST_PATIENTS * LEAST_PATIENTS


def _are_cells(value: Any, patients: int) -> bool:
    """Return whether a value is a list of cells, with as many boxes as patients at least."""
    if not isinstance(value, list) or not all(isinstance(row, list) and len(row) == 5 for row in value):
        return False
    levels = _levels(patients)
    return (
        are_cells([row[:4] for row in value])
        and all(is_count(row[4], patients) and row[4] in levels for row in value)
        and all(row[1] >= level for level in levels for row in _coarser(value, level))
    )


def _boxes(cells: Sequence[Sequence[Any]]) -> int:
    return sum(cell[1] for cell in cells)


def _share(hits: float, objects: int) -> float:
    return min(hits / objects, 1.0)
