"""Metrics that a task declares.

A task's scores hold no others, so no others leave a site.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

_ROUNDING = 1e-6


@dataclass(frozen=True)
class Metric:
    """An additional metric of a model.

    It is not used to choose the best round.

    Attributes:
        name: in ``Scores.extra_metrics`` and ``result.json``; for a class ``NAME.CLASS``.
        title: for people; empty: the name.
        per_class: each class has its own value.
        unit: of the values; empty: none.
        bounds: least and greatest value.
        thresholded: it counts answers on one side of a threshold. A model whose outputs are shifted moves one answer
            after another over it, and the figures would tell them: it leaves a site for the job's tested model alone.

    Example:
        >>> distance = Metric("hd95_mm", "95 % Hausdorff distance", per_class=True, unit="mm", bounds=(0, 100_000))
        >>> distance.label, distance.admits(3.2), distance.admits(-1)
        ('95 % Hausdorff distance (mm)', True, False)
    """

    name: str
    title: str = ""
    per_class: bool = False
    unit: str = ""
    bounds: tuple[float, float] = (0.0, 1.0)
    thresholded: bool = False

    @property
    def label(self) -> str:
        """Title and unit."""
        title = self.title or self.name.replace("_", " ")
        return f"{title} ({self.unit})" if self.unit else title

    def admits(self, value: float) -> bool:
        """Return whether a value lies within the bounds.

        NaN, for classes that no case has, is allowed; rounding may exceed the bounds by a millionth.
        """
        low, high = self.bounds
        return math.isnan(value) or low - _ROUNDING <= value <= high + _ROUNDING
