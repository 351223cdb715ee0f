"""Figures of detection: FROC and average precision."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from oncofed.tasks.detection.outcome import Matched
from oncofed.tasks.metrics import Metric

# False positives an image at which the competition performance metric looks (van Ginneken et al., Medical Image
# Analysis 2010).
FALSE_POSITIVES = (1 / 8, 1 / 4, 1 / 2, 1.0, 2.0, 4.0, 8.0)
_NAMES = ("1_8", "1_4", "1_2", "1", "2", "4", "8")
_RECALLS = np.linspace(0, 1, 101)


def sensitivities_at(per: str) -> tuple[Metric, ...]:
    """Return the metrics of ``sensitivities``, with false positives ``per`` ("an image") in their titles."""
    return tuple(
        Metric(f"sensitivity_{name}", f"sensitivity at {name.replace('_', '/')} false positives {per}")
        for name in _NAMES
    )


SENSITIVITIES = sensitivities_at("an image")
PRECISION = Metric("ap", "average precision", per_class=True)
MEAN_PRECISION = Metric("map", "mean average precision")


def sensitivities(cases: Sequence[Matched]) -> NDArray[np.float64] | None:
    """Return the sensitivity at each of ``FALSE_POSITIVES``; None without objects.

    The share of objects found at the lowest score with no more false positives an image, or mm² of tissue
    (free-response ROC, Bunch et al. 1977). Scores that are equal are told apart by nothing: they count together.

    Args:
        cases: boxes of one class, an image each.
    """
    objects = sum(case.objects for case in cases)
    if not objects:
        return None
    true, false = _by_score(cases)
    # The first point is that of no box at all.
    true, false = np.insert(true, 0, 0), np.insert(false, 0, 0)
    extent = sum(case.extent for case in cases)
    reached = np.searchsorted(false / extent, FALSE_POSITIVES, side="right") - 1
    return np.asarray(true[reached] / objects, np.float64)


def steps_of_hits(cases: Sequence[Matched]) -> list[NDArray[np.int64]]:
    """Return at which point of the curve each hit comes in, of each case, (hit,).

    Points are those of ``FALSE_POSITIVES``, from 0 on; the last has boxes of any score.

    Args:
        cases: boxes of one class, an image each.
    """
    _, false = _by_score(cases)
    # Above them all is no box.
    scores = np.append(np.inf, np.unique(np.concatenate([case.scores for case in cases]))[::-1])
    extent = sum(case.extent for case in cases)
    least = scores[np.searchsorted(false / extent, FALSE_POSITIVES, side="right")]
    return [(least > case.scores[case.hits, None]).sum(axis=1) for case in cases]


def patients_of_steps(cases: Sequence[tuple[str, Matched]]) -> list[set[str]]:
    """Return the patients whose objects make each step of the curve.

    The last step is of objects that no box hit. Steps without objects are left out.

    Args:
        cases: patient's key and boxes of one class, of each image.
    """
    found: dict[int, set[str]] = defaultdict(set)
    for (patient, case), steps in zip(cases, steps_of_hits([case for _, case in cases]), strict=True):
        missed = [len(FALSE_POSITIVES) + 1] if case.objects > len(steps) else []
        for step in {*steps.tolist(), *missed}:
            found[step].add(patient)
    return list(found.values())


def average_precision(cases: Sequence[Matched]) -> float | None:
    """Return the mean precision at 101 recalls, as COCO has it; None without objects.

    But where COCO takes boxes of equal scores in the order of cases, they count together here, as above: the value does
    not depend on that order. Of scores that all differ it is COCO's.

    Args:
        cases: boxes of one class, an image each.
    """
    objects = sum(case.objects for case in cases)
    if not objects:
        return None
    true, false = _by_score(cases)
    precision = true / (true + false)
    # At a recall counts the best precision at this recall or a higher one.
    best = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    return float(best[np.searchsorted(true / objects, _RECALLS, side="left")].mean())


def _by_score(cases: Sequence[Matched]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return hits and false positives down to each distinct score, falling."""
    scores = np.concatenate([case.scores for case in cases])
    order = np.argsort(-scores, kind="stable")
    scores, hits = scores[order], np.concatenate([case.hits for case in cases])[order]
    last = np.append(scores[1:] != scores[:-1], True)[: len(scores)]
    return np.cumsum(hits)[last], np.cumsum(~hits)[last]
