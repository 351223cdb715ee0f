"""Scores of sites as words of a sum, and the federation's scores from it.

Each figure is a value times a weight, and the weight: the sum of both is the mean over the sites that have it. A number
travels as four words of 16 bits, so that its sum is exact whatever its size.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from oncofed.privacy.evaluations import round_figure
from oncofed.privacy.pooled import SUMS
from oncofed.privacy.secure_aggregation.figures import bits_of
from oncofed.privacy.secure_aggregation.ring import FRACTION_BITS
from oncofed.tasks.metrics import Metric

LOSS, MEAN, PATIENTS = "loss", "mean", "patients"
# Numbers of a result that say how a model does; with them in the sum none leaves otherwise.
SCORES = frozenset({LOSS, "evaluation", "personal", "gain"}) | SUMS
_CLASS, _MORE = "class.", "more."
_LIMBS, _LIMB_BITS = 4, 16
_BASE = 1 << _LIMB_BITS
# The ring's factor of the summand, and the value of an integer: with both, it is its own word.
FACTOR = 1 / 16
_UNIT = 2.0**-FRACTION_BITS / FACTOR
_NUMBERS = 2  # of a figure: value times weight, and weight
# 24 bits of a number lie behind the point, and its last word has a sign.
_LARGEST = 2.0 ** (_LIMBS * _LIMB_BITS - 1 - FRACTION_BITS)


@dataclass(frozen=True)
class SummedScores:
    """A model's scores over the sites of a sum.

    Attributes:
        mean: of the sites that have a score, weighted by cases where the job selects so; None: too few have one.
        loss: mean training loss of the sites; None where it is not told.
        by_class: mean of the sites that tell a class's score.
        more: the same of further figures.
        sites: that have a score.
        patients: behind their scores.
    """

    mean: float | None = None
    loss: float | None = None
    by_class: dict[str, float] = field(default_factory=dict)
    more: dict[str, float] = field(default_factory=dict)
    sites: int = 0
    patients: int = 0


class ScoreForm:
    """Which figures a job's sites add, and in which order.

    Args:
        classes: names of the job's classes.
        metrics: further ones that its task declares.
        by_cases: whether a site's scores count by its cases. All of them count alike: from figures that are weighted
            otherwise, a server would have two equations for the same scores.

    Attributes:
        figures: their names, sorted.
        alone: indices of those in a sum whose sites have not the same ones: the mean, and its patients.
    """

    def __init__(self, classes: Sequence[str], metrics: Sequence[Metric], by_cases: bool = False) -> None:
        self._by_cases = by_cases
        of_classes = [f"{metric.name}.{name}" for metric in metrics if metric.per_class for name in classes]
        of_all = [metric.name for metric in metrics if not metric.per_class]
        more = {_MORE + name for name in (*of_classes, *of_all)}
        self.figures = tuple(sorted({LOSS, MEAN, PATIENTS, *(_CLASS + name for name in classes), *more}))
        self.alone = frozenset(self.figures.index(name) for name in (MEAN, PATIENTS))

    @property
    def words(self) -> int:
        """Number of words."""
        return len(self.figures) * _NUMBERS * _LIMBS

    def bits(self, found: Collection[int]) -> bytes:
        """Return ``Ready.figures``.

        Args:
            found: indices of the figures that a result has, as of ``found_in``.
        """
        return bits_of(found, len(self.figures))

    def found_in(self, numbers: Mapping[str, Any]) -> dict[int, tuple[float, float]]:
        """Return value and weight of the figures in a result's numbers, by index; none without a mean.

        Args:
            numbers: as they may leave the site.
        """
        evaluation = numbers.get("evaluation") or {}
        mean = evaluation.get("mean")
        if mean is None:
            return {}
        weight = max(int(evaluation.get("cases", 0)), 1) if self._by_cases else 1
        found = {LOSS: (numbers.get(LOSS), 1), MEAN: (mean, weight), PATIENTS: (evaluation["patients"]["mean"], 1)}
        found |= {_CLASS + name: (value, weight) for name, value in evaluation["by_class"].items()}
        found |= {_MORE + name: (value, weight) for name, value in evaluation["more"].items()}
        index = {name: at for at, name in enumerate(self.figures)}
        fits = {
            index[name]: (float(value), float(weight))
            for name, (value, weight) in found.items()
            if name in index and value is not None and math.isfinite(value) and abs(value) * weight < _LARGEST
        }
        return fits if index[MEAN] in fits else {}

    def encoded(self, found: Mapping[int, tuple[float, float]], only: Collection[int]) -> Tensor:
        """Return a site's summand.

        Args:
            found: as of ``found_in``.
            only: indices of the figures that may be in it.

        Returns:
            float32 of ``words`` numbers: integers of 16 bits, times 2^-20.
        """
        limbs = [0] * self.words
        for at, (value, weight) in found.items():
            if at in only:
                for number, one in enumerate((value * weight, weight)):
                    first = (at * _NUMBERS + number) * _LIMBS
                    limbs[first : first + _LIMBS] = _limbs_of(one)
        return torch.tensor(limbs, dtype=torch.float32) * _UNIT

    def decoded(self, summed: Tensor) -> SummedScores:
        """Return the federation's scores.

        Args:
            summed: the sum of the sites' summands, each times ``FACTOR``.
        """
        limbs = [round(one) for one in (summed.double() / (_UNIT * FACTOR)).tolist()]
        numbers = [_number_of(limbs[first : first + _LIMBS]) for first in range(0, len(limbs), _LIMBS)]
        sums = {name: (numbers[_NUMBERS * at], numbers[_NUMBERS * at + 1]) for at, name in enumerate(self.figures)}
        means = {name: value / weight for name, (value, weight) in sums.items() if weight > 0}
        told = {name: round_figure(value) for name, value in means.items()}
        return SummedScores(
            mean=told.get(MEAN),
            loss=told.get(LOSS),
            by_class=_of(_CLASS, told),
            more=_of(_MORE, told),
            sites=round(sums[PATIENTS][1]),
            patients=round(sums[PATIENTS][0]),
        )


def _limbs_of(number: float) -> list[int]:
    whole = round(number * (1 << FRACTION_BITS))
    limbs = []
    for _ in range(_LIMBS - 1):
        whole, low = divmod(whole, _BASE)
        limbs.append(low)
    return [*limbs, whole]


def _number_of(limbs: Sequence[int]) -> float:
    return sum(limb << _LIMB_BITS * place for place, limb in enumerate(limbs)) / (1 << FRACTION_BITS)


def _of(prefix: str, figures: Mapping[str, float]) -> dict[str, float]:
    return {name.removeprefix(prefix): value for name, value in figures.items() if name.startswith(prefix)}
