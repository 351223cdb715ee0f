"""Objects on slides as boxes: those of outlines, or squares around points.

Each outline of a GeoJSON file is an object, with the box that just encloses it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator

from oncofed.data.augment import Augmentation
from oncofed.data.boxes import Boxes, painted
from oncofed.data.case import Case
from oncofed.data.inputs import Prepared
from oncofed.data.located import ObjectBatches, own_objects
from oncofed.data.region_patches import NO_OUTLINES, Cutting, RegionPatches
from oncofed.data.slides.canvas import SlideCanvas
from oncofed.data.slides.drawn import DrawnLabels, DrawnRegions, as_job
from oncofed.data.slides.regions import is_regions, read_regions
from oncofed.data.spec import DataSpec
from oncofed.errors import DataError


def drawn_objects(case: Case, canvas: SlideCanvas, point_size: float | None) -> DrawnRegions:
    """Return the objects that were drawn on a slide.

    Args:
        case: of a slide.
        canvas: the slide.
        point_size: side of the square that a point stands for, in microns; None: the job does not say.

    Raises:
        DataError: they cannot be read, or are points and the job does not say how large these are.
    """
    if case.boxes is not None or not is_regions(case.mask):
        raise DataError(NO_OUTLINES if case.boxes is None else "its boxes are in a table, expected outlines in GeoJSON")
    points = sum(len(region.points) for region in read_regions(case.mask)) if point_size is None else 0
    if points:
        raise DataError(
            f"marks {points} objects by points alone, and the job does not say how large these are. Say it in microns: "
            "task.point_size"
        )
    return DrawnRegions(case.mask, {name: value for value, name in case.label_names}, canvas, point_size)


def boxes_on(case: Case, drawn: DrawnRegions, classes: int) -> Boxes:
    """Return the boxes of the job's classes, in working pixels.

    Args:
        case: says what the dataset's label values are in the job.
        drawn: on its slide.
        classes: of the job, with background.
    """
    labels = as_job(case, drawn.values, classes, 0).astype(np.int64)
    known = (labels > 0) & (labels < classes)
    return Boxes(drawn.boxes[known], labels[known])


class SlideBoxPatches(ObjectBatches, RegionPatches):
    """Patches of slides around objects, each class as often, and away from them.

    A batch is that of ``BoxPatches``.

    Args:
        spec: the job's data.
        augmentation: how much is changed at random.
        classes: with background.
        each: patches of each class, of a slide.
        point_size: see ``drawn_objects``.
    """

    def __init__(
        self, spec: DataSpec, augmentation: Augmentation, classes: int, each: int, point_size: float | None
    ) -> None:
        super().__init__(spec, augmentation, Cutting(classes, each, undrawn=0))
        self._point_size = point_size

    def size(self, case: Case) -> int | None:
        """Return at most how many bytes the prepared case takes."""
        return self._cutting.classes * self._cutting.each * self._side**2 * 5

    def draw(self, prepared: Prepared, generator: Generator) -> Prepared:
        """Return a part of a patch whose centre is an object's, or away from all."""
        window = self._window(prepared, generator)
        objects = own_objects(prepared["objects"][window], prepared["centres.classes"][window[0]])
        return {"image": self._image(prepared, window), **objects}

    def _drawn(self, case: Case, canvas: SlideCanvas) -> DrawnRegions:
        return drawn_objects(case, canvas, self._point_size)

    def _centres(self, case: Case, canvas: SlideCanvas, drawn: DrawnLabels) -> dict[int, NDArray[np.float64]]:
        found = self._boxes(case, drawn)
        middles = (found.corners[:, :2] + found.corners[:, 2:]) / 2
        objects = {value: middles[found.labels == value] for value in range(1, self._cutting.classes)}
        return {0: super()._centres(case, canvas, drawn)[0], **objects}

    def _maps(self, case: Case, drawn: DrawnLabels, corners: Sequence[tuple[int, int]]) -> Prepared:
        """Return ``objects`` (patch, 1, x, y) int16, and ``centres.classes`` (patch, most) int64, 0 beyond the last."""
        found, maps, classes = self._boxes(case, drawn), [], []
        for corner in corners:
            here = found.corners - np.array([*corner, *corner])
            near = ((here[:, :2] < self._side) & (here[:, 2:] > 0)).all(axis=1)
            maps.append(painted(here[near], (self._side, self._side)))
            classes.append(torch.from_numpy(found.labels[near]))
        padded = torch.nn.utils.rnn.pad_sequence(classes, batch_first=True)
        return {"objects": torch.from_numpy(np.stack(maps)[:, None]), "centres.classes": padded}

    def _boxes(self, case: Case, drawn: DrawnLabels) -> Boxes:
        assert isinstance(drawn, DrawnRegions)
        return boxes_on(case, drawn, self._cutting.classes)

    def _more_settings(self) -> list[Any]:
        return [*super()._more_settings(), self._point_size]
