"""Objects such as nuclei, learned from outlines on slides, each with its kind."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from oncofed.data.augment import Augmentation
from oncofed.data.case import Case
from oncofed.data.inputs import BatchSource, Preparation
from oncofed.data.region_patches import NO_OUTLINES, Cutting, OnSlide, RegionPatches
from oncofed.data.slides.canvas import SlideCanvas
from oncofed.data.slides.drawn import UNKNOWN, DrawnRegions, as_job, drawn_labels
from oncofed.data.spec import DataSpec
from oncofed.errors import DataError
from oncofed.tasks.metrics import Metric
from oncofed.tasks.objects import Objects
from oncofed.tasks.patient_statistics import mean_over_patients
from oncofed.tasks.pictures import Picture
from oncofed.tasks.registry import register_task_type
from oncofed.tasks.scores import Scores
from oncofed.tasks.slide_strips import SlideObjectMap
from oncofed.tasks.whole_slide.numbering import numbered
from oncofed.tasks.whole_slide.scoring import on_overview, where_known
from oncofed.tasks.whole_slide.settings import SlideObjectsSpec, require_resolution

_SAME_OBJECT = 0.5


@register_task_type("slide_objects")
class SlideObjects(Objects):
    """A task that finds every object of a slide, with its kind, scored by panoptic quality."""

    Settings = SlideObjectsSpec
    reads_slides = True
    extra_metrics = (Metric("f1"), Metric("iou"))
    _ignored = UNKNOWN

    def __init__(self, spec: SlideObjectsSpec, data: DataSpec) -> None:
        require_resolution(data)
        super().__init__(spec, data)
        self._slides = spec

    def input(self, augmentation: Augmentation) -> BatchSource:
        """Return patches around objects, each kind as often, with the depth inside each."""
        spec = self._slides
        cutting = Cutting(len(self.classes) + 1, spec.patches, spec.undrawn_value, objects=True)
        return RegionPatches(self.data, augmentation, cutting)

    def scoring_preparation(self) -> Preparation:
        """Return the slide, which is read where the network looks."""
        return OnSlide(self.data)

    def inference_preparation(self) -> Preparation:
        """Return the slide, which is read where the network looks."""
        return OnSlide(self.data)

    def evaluate_case(self, network: nn.Module, case: Case, device: torch.device, detailed: bool) -> dict[str, float]:
        """Return a slide's figures: pq, f1 and iou of all objects, and pq of each kind.

        Where what nobody drew is unknown, objects that touch no outline do not count.
        """
        undrawn = self._slides.undrawn_value
        with SlideCanvas.of(case, self.data, self.data.patch[0]) as canvas:
            drawn = self._outlines(case, canvas)
            wanted = where_known(case, drawn, canvas, undrawn)
            found = numbered(self._stitching(), self._separate, network, canvas, device, wanted=wanted)
        kinds = as_job(case, drawn.values, len(self.classes) + 1, undrawn)
        sizes = _shared_pixels(found, drawn)
        return _figures(sizes, found.classes, kinds, self.classes, undrawn == UNKNOWN)

    def summarise(self, outcomes: Sequence[tuple[str, dict[str, float]]]) -> Scores:
        """Return means over patients."""
        means = mean_over_patients(outcomes)
        by_class = {name: means[f"pq.{name}"] for name in self.classes.values() if f"pq.{name}" in means}
        return Scores(means.get("pq"), by_class, {name: means[name] for name in ("f1", "iou") if name in means})

    def picture(self, network: nn.Module, case: Case, device: torch.device) -> Picture:
        """Return the slide, small, with what was drawn and the kinds that were found."""
        with SlideCanvas.of(case, self.data, self.data.patch[0]) as canvas:
            drawn = self._outlines(case, canvas)
            found = numbered(self._stitching(), self._separate, network, canvas, device)
            pixels, scale = canvas.overview
            values = drawn.window(0, 0, pixels.shape[1], pixels.shape[0], scale)
            expected = as_job(case, values, len(self.classes) + 1, 0)
            shown = found.classes[on_overview(found, canvas)]
        expected[expected == UNKNOWN] = 0
        image = np.ascontiguousarray(pixels.swapaxes(0, 1))
        return Picture(image, expected.T.copy(), shown.T.copy(), downwards=True)

    def _outlines(self, case: Case, canvas: SlideCanvas) -> DrawnRegions:
        drawn = drawn_labels(case, canvas)
        if not isinstance(drawn, DrawnRegions):
            raise DataError(NO_OUTLINES)
        return drawn


def _shared_pixels(found: SlideObjectMap, drawn: DrawnRegions) -> Counter[tuple[int, int]]:
    """Return (number found, number drawn) -> pixels; 0 is of none."""
    total: Counter[tuple[int, int]] = Counter()
    for strip in found.strips:
        rows, columns = strip.shape
        values, expected = strip.values, drawn.numbers(0, strip.first, columns, rows)
        any_ = (values > 0) | (expected > 0)
        pairs, counts = np.unique(np.stack([values[any_], expected[any_]]), axis=1, return_counts=True)
        for one, other, count in zip(*pairs.tolist(), counts.tolist(), strict=True):
            total[one, other] += count
    return total


def _figures(
    shared: Counter[tuple[int, int]],
    found_kinds: NDArray[np.uint8],
    drawn_kinds: NDArray[np.uint8],
    classes: dict[int, str],
    examples: bool,
) -> dict[str, float]:
    """Return panoptic quality and its parts.

    Args:
        shared: see ``_shared_pixels``.
        found_kinds: of each number found; the first is of none.
        drawn_kinds: of each number drawn, from 1 on.
        classes: label value -> name.
        examples: objects found beside the outlines do not count.
    """
    found_sizes: Counter[int] = Counter()
    drawn_sizes: Counter[int] = Counter()
    for (one, other), count in shared.items():
        found_sizes[one] += count
        drawn_sizes[other] += count
    touching = {one for one, other in shared if one and other}
    matched = {
        (one, other): count / (found_sizes[one] + drawn_sizes[other] - count)
        for (one, other), count in shared.items()
        if one and other and count / (found_sizes[one] + drawn_sizes[other] - count) > _SAME_OBJECT
    }
    counted = [one for one in found_sizes if one and (one in touching or not examples)]
    known = [other for other in drawn_sizes if other and drawn_kinds[other - 1] in classes]

    def quality(ratios: list[float], objects: int) -> tuple[float, float, float]:
        f1 = 2 * len(ratios) / objects if objects else math.nan
        iou = float(np.mean(ratios)) if ratios else math.nan
        return (f1 * iou if ratios else 0.0 if objects else math.nan), f1, iou

    pq, f1, iou = quality(list(matched.values()), len(counted) + len(known))
    figures = {"pq": pq, "f1": f1, "iou": iou}
    for value, name in classes.items():
        ones = [one for one in counted if found_kinds[one] == value]
        others = [other for other in known if drawn_kinds[other - 1] == value]
        same = [
            ratio
            for (one, other), ratio in matched.items()
            if found_kinds[one] == value and drawn_kinds[other - 1] == value
        ]
        figures[f"pq.{name}"] = quality(same, len(ones) + len(others))[0]
    return figures
