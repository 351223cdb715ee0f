"""Targets of kind ``objects``: single objects, each with its outline, beside other targets of the image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from oncofed.tasks.metrics import Metric
from oncofed.tasks.objects import Objects
from oncofed.tasks.targets.base import TARGET_KINDS, TargetSettings
from oncofed.tasks.targets.mask import MaskHead, MaskTarget

_PRIMARY, *_MORE = Objects.extra_metrics


class ObjectsTarget(MaskTarget):
    """A target whose objects are found one by one."""

    kind: str = "objects"
    learned_by: ClassVar[tuple[str, ...]] = ("objects",)


@TARGET_KINDS.register("objects")
class ObjectsHead(MaskHead):
    """The figures of objects, made of each case's: panoptic quality first."""

    Settings: ClassVar[type[TargetSettings]] = ObjectsTarget
    primary: ClassVar[Metric] = replace(_PRIMARY, title=Objects.metric_name)
    metrics: ClassVar[tuple[Metric, ...]] = tuple(replace(metric, per_class=True) for metric in _MORE)

    @property
    def asks(self) -> str:
        """What it finds."""
        return f"each {self.members[0]} by itself"

    def encoded(self, figures: Mapping[str, float]) -> NDArray[np.float64]:
        """Return a case's figures as an answer, (values,); see ``object_scores``."""
        return super().encoded({f"{name}.{self.members[0]}": value for name, value in figures.items()})
