"""Patches in and around what was drawn on slides, and slides as they are predicted.

A patch is cut half as large again as the network sees, so that training draws it at many places. Patches of a slide are
at the same places each time: they hang on the slide's content alone.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from oncofed.data.augment import Augmentation
from oncofed.data.case import Case
from oncofed.data.inputs import BatchSource, Preparation, Prepared, object_distances
from oncofed.data.slides.canvas import SlideCanvas, scaled
from oncofed.data.slides.drawn import UNKNOWN, DrawnLabels, DrawnRegions, as_job, drawn_labels
from oncofed.data.spec import DataSpec
from oncofed.data.stain.of_case import sketches_of
from oncofed.errors import DataError

_VERSION = 2
# Cells along a patch, among which its centre is chosen.
_CELLS = 8
_MOST_THREADS = 8
NO_OUTLINES = "its objects are in a mask image, expected their outlines in a GeoJSON file"

# Number of a patch, channels, and the part of it.
Window = tuple[int, slice, slice, slice]


@dataclass(frozen=True)
class Cutting:
    """How patches are cut of a slide.

    Attributes:
        classes: with background.
        each: patches of each class, of a slide.
        undrawn: label value where nobody drew.
        objects: single outlines are objects, each with its depth.
        partial: slides may lack classes.
    """

    classes: int
    each: int
    undrawn: int
    objects: bool = False
    partial: bool = False


class RegionPatches(BatchSource):
    """Patches of slides, each class as often at the centre.

    A batch holds image (batch, channel, x, y) float32 and label (batch, 1, x, y) uint8; with objects also distance
    (batch, 1, x, y) float32; with partial labels also known (batch, class) bool.

    Args:
        spec: the job's data.
        augmentation: how much is changed at random.
        cutting: of the patches.
    """

    def __init__(self, spec: DataSpec, augmentation: Augmentation, cutting: Cutting) -> None:
        super().__init__(spec, augmentation)
        self._cutting = cutting
        self._side = spec.patch[0] + spec.patch[0] // 2

    def prepare(self, case: Case) -> Prepared:
        """Cut a slide's patches.

        Returns:
            patches (patch, channel, x, y) and marks (patch, 1, x, y) uint8, of (patch,) int64: the class at each
            centre, mean and spread (channel, 1, 1) float32; with objects also depth (patch, 1, x, y) float16.

        Raises:
            DataError: the slide or its regions cannot be read, or nothing of them can be learned from.
        """
        with SlideCanvas.of(case, self.spec, self._side) as canvas:
            drawn = self._drawn(case, canvas)
            corners, of = self._places(case, canvas, drawn)
            mean, spread = canvas.scale
            with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as pool:
                pixels = list(pool.map(lambda at: canvas.read(*at), corners))
            maps = self._maps(case, drawn, corners)
        return {
            "patches": torch.from_numpy(np.stack(pixels).transpose(0, 3, 2, 1).copy()),
            "of": torch.from_numpy(of),
            "mean": mean,
            "spread": spread,
            **maps,
        }

    def truth(self, case: Case) -> Prepared:
        """Return which classes were looked for on a slide."""
        if not self._cutting.partial:
            return {}
        values = range(self._cutting.classes)
        known = [value == 0 or case.looked_for is None or value in case.looked_for for value in values]
        return {"known": torch.tensor(known)}

    def size(self, case: Case) -> int | None:
        """Return at most how many bytes the prepared case takes."""
        return self._cutting.classes * self._cutting.each * self._side**2 * (6 if self._cutting.objects else 4)

    def draw(self, prepared: Prepared, generator: Generator) -> Prepared:
        """Return a part of a patch whose centre is of a random class."""
        window = self._window(prepared, generator)
        drawn = {
            "image": self._image(prepared, window),
            "label": prepared["marks"][window],
        }
        if "depth" in prepared:
            drawn["distance"] = prepared["depth"][window].float()
        return drawn | {name: prepared[name] for name in ("known",) if name in prepared}

    def change(self, batch: dict[str, Tensor], generator: Generator) -> dict[str, Tensor]:
        """Return a batch whose maps are changed at random."""
        maps = super().change({name: values for name, values in batch.items() if name != "known"}, generator)
        return {**batch, **maps}

    def _more_settings(self) -> list[Any]:
        return [_VERSION, *vars(self._cutting).values()]

    def _drawn(self, case: Case, canvas: SlideCanvas) -> DrawnLabels:
        """Return what was drawn on a slide.

        Raises:
            DataError: it cannot be read, or is of another kind than the job learns.
        """
        drawn = drawn_labels(case, canvas)
        if self._cutting.objects and not isinstance(drawn, DrawnRegions):
            raise DataError(NO_OUTLINES)
        return drawn

    def _maps(self, case: Case, drawn: DrawnLabels, corners: Sequence[tuple[int, int]]) -> Prepared:
        """Return what lies on patches of these corners."""
        side, marks, depths = self._side, [], []
        for x, y in corners:
            marks.append(self._as_job(case, drawn.window(x, y, side, side)).T)
            if self._cutting.objects:
                assert isinstance(drawn, DrawnRegions)
                depths.append(object_distances(drawn.numbers(x, y, side, side).T).astype(np.float16))
        maps = {"marks": torch.from_numpy(np.stack(marks)[:, None])}
        return maps | ({"depth": torch.from_numpy(np.stack(depths)[:, None])} if depths else {})

    def _window(self, prepared: Prepared, generator: Generator) -> Window:
        """Return which part of which patch is drawn."""
        of = prepared["of"]
        there = torch.unique(of)
        value = there[torch.randint(len(there), (), generator=generator)]
        of_value = torch.nonzero(of == value).flatten()
        number = int(of_value[torch.randint(len(of_value), (), generator=generator)])
        spare = self._side - self.spec.patch[0] + 1
        x, y = torch.randint(spare, (2,), generator=generator).tolist()
        return number, slice(None), slice(x, x + self.spec.patch[0]), slice(y, y + self.spec.patch[0])

    def _image(self, prepared: Prepared, window: Window) -> Tensor:
        return scaled(prepared["patches"][window], (prepared["mean"], prepared["spread"]))

    def _places(
        self, case: Case, canvas: SlideCanvas, drawn: DrawnLabels
    ) -> tuple[list[tuple[int, int]], NDArray[np.int64]]:
        """Return the corners of patches, and the class at the centre of each.

        Raises:
            DataError: there is none.
        """
        digest = hashlib.sha256((case.entry.checksum if case.entry and case.entry.checksum else case.name).encode())
        random = np.random.default_rng(int.from_bytes(digest.digest()[:8], "big"))
        corners: list[tuple[int, int]] = []
        of: list[int] = []
        for value, all_centres in self._centres(case, canvas, drawn).items():
            centres = all_centres
            if len(centres) > self._cutting.each:
                centres = centres[random.choice(len(centres), self._cutting.each, replace=False)]
            corners += [(int(x), int(y)) for x, y in np.rint(centres - self._side / 2)]
            of += [value] * len(centres)
        if not corners:
            raise DataError(
                "has no region of the job's classes, and the job takes what is not drawn for unknown: nothing can be "
                "learned from it. Leave it out, or let the job take it for background (task.undrawn)"
            )
        return corners, np.array(of, np.int64)

    def _centres(self, case: Case, canvas: SlideCanvas, drawn: DrawnLabels) -> dict[int, NDArray[np.float64]]:
        """Return class -> where patches may have their centres, (place, 2); each class is there."""
        values, cell = drawn.coarse(canvas, max(1, self.spec.patch[0] // _CELLS))
        marks = self._as_job(case, values)
        tissue = _tissue_of_cells(canvas, marks.shape, cell)
        marks = np.where(tissue | (values > 0), marks, UNKNOWN).astype(np.uint8)
        small = self._missed(case, drawn, cell)
        found = {}
        for value in range(self._cutting.classes):
            rows, columns = np.nonzero(marks == value)
            centres = (np.stack([columns, rows], axis=1) + 0.5) * cell
            found[value] = np.concatenate([centres, small.get(value, np.zeros((0, 2)))])
        return found

    def _missed(self, case: Case, drawn: DrawnLabels, cell: int) -> dict[int, NDArray[np.float64]]:
        """Return class -> middles of regions that may lie between the centres of cells."""
        if not isinstance(drawn, DrawnRegions):
            return {}
        values = self._as_job(case, drawn.values)
        middles = (drawn.boxes[:, :2] + drawn.boxes[:, 2:]) / 2
        small = (drawn.boxes[:, 2:] - drawn.boxes[:, :2]).max(axis=1, initial=0) < 2 * cell
        return {value: middles[small & (values == value)] for value in np.unique(values[small]).tolist()}

    def _as_job(self, case: Case, values: NDArray[np.int64]) -> NDArray[np.uint8]:
        return as_job(case, values, self._cutting.classes, self._cutting.undrawn)


def _tissue_of_cells(canvas: SlideCanvas, shape: Sequence[int], cell: int) -> NDArray[np.bool_]:
    scale, mask = canvas.overview[1], canvas.tissue
    rows, columns = (
        ((np.arange(count) + 0.5) * cell / scale).astype(int).clip(0, side - 1)
        for count, side in zip(shape, mask.shape, strict=True)
    )
    found: NDArray[np.bool_] = mask[rows][:, columns]
    return found


# --- slides as they are predicted


class OnSlide(Preparation):
    """A slide that is read where a network looks.

    ``slide`` holds the bytes of its path, uint8: a whole slide fits into no memory. ``colours`` holds those of its
    stain's sketches, where the job normalises stains.
    """

    def prepare(self, case: Case) -> Prepared:
        """Return where the slide is, once it could be opened."""
        with SlideCanvas.of(case, self.spec, self.spec.patch[0]):
            prepared = {"slide": _as_tensor(os.fsencode(case.image))}
        if self.spec.stain.normalise != "none":
            prepared["colours"] = _as_tensor("\n".join(sketches_of(case)).encode())
        return prepared

    def size(self, case: Case) -> int | None:
        """Return about how many bytes the prepared case takes."""
        return len(os.fsencode(case.image))


class SlideOr(Preparation):
    """Slides as ``OnSlide`` prepares them, other images as another preparation does.

    Args:
        spec: the job's data.
        images: prepares images.
    """

    def __init__(self, spec: DataSpec, images: Preparation) -> None:
        super().__init__(spec)
        self._images, self._slides = images, OnSlide(spec)

    @property
    def settings(self) -> str:
        """Settings of the images' preparation."""
        return self._images.settings

    def prepare(self, case: Case) -> Prepared:
        """Return the prepared case."""
        return self._of(case).prepare(case)

    def prepare_all(self, cases: Sequence[Case]) -> Iterator[tuple[int, Prepared]]:
        """Yield each case's number and prepared case."""
        yield from ((number, self.prepare(case)) for number, case in enumerate(cases))

    def size(self, case: Case) -> int | None:
        """Return about how many bytes the prepared case takes."""
        return self._of(case).size(case)

    def _of(self, case: Case) -> Preparation:
        return self._slides if case.tiles else self._images


def open_slide_of(prepared: Prepared, spec: DataSpec) -> SlideCanvas:
    """Open a slide prepared by ``OnSlide``, in windows of the job's patch.

    Raises:
        DataError: it cannot be read.
    """
    path = Path(os.fsdecode(_as_bytes(prepared["slide"])))
    sketches = _as_bytes(prepared["colours"]).decode().split() if "colours" in prepared else []
    return SlideCanvas(path, spec, spec.patch[0], tuple(sketches))


def _as_tensor(text: bytes) -> Tensor:
    return torch.tensor(list(text), dtype=torch.uint8)


def _as_bytes(values: Tensor) -> bytes:
    return bytes(values.cpu().tolist())
