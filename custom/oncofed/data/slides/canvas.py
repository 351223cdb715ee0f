"""A slide's pixels on a job's working grid."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from oncofed.data.case import Case
from oncofed.data.slides import TileReader, TileSpec
from oncofed.data.slides.levels import Pixels
from oncofed.data.slides.tissue import Mask, find_tissue
from oncofed.data.spec import DataSpec
from oncofed.data.stain.of_case import Normaliser, sketches_of
from oncofed.data.stain.sketch import SLIDE_COLOURS, sketch
from oncofed.errors import DataError

# Fat, lumina and cracks up to twice this width are within tissue.
_CLOSED_MICRONS = 25.0
# Tiles that tell a slide's brightness, and its stain where nobody registered it. Least spread of a channel.
_SAMPLED, _LEAST_SPREAD = 16, 1.0
_HALF = 127.5  # of the brightest pixel


class SlideCanvas:
    """A slide at a job's resolution; thread-safe.

    Coordinates are working pixels from the slide's upper left corner, x to the right and y down.

    Args:
        path: of the slide.
        data: of the job: ``spacing`` is the side of a working pixel, ``background`` whether slides are inverted,
            ``stain`` what they are normalised to.
        side: of what is read at once, in working pixels.
        sketches: of the slide's stain, as it was registered; empty: the slide itself tells.

    Attributes:
        size: working pixels across and down.
        pixel: side of a working pixel, in pixels of the finest level.

    Raises:
        DataError: the slide cannot be read, is coarser than the job, or the job names no resolution.
    """

    def __init__(self, path: Path, data: DataSpec, side: int, sketches: tuple[str, ...] = ()) -> None:
        if data.spacing is None:
            raise DataError(
                "is a whole slide, and the job does not say at which resolution it is read. Say so in the job, in mm a "
                "pixel: data.spacing: [0.0005, 0.0005] is 0.5 microns, about 20x"
            )
        self.side, self.mpp = side, data.spacing[0] * 1000
        self._inverted = data.background == "dark"
        self._normaliser = Normaliser(data.stain, data.template) if data.stain.normalise != "none" else None
        self._keeps_colours = data.stain.is_used
        self._registered = sketches
        self._reader = TileReader(path, TileSpec(side, self.mpp))
        self.pixel = self._reader.step / side
        finest = self._reader.levels[0]
        self.finest = (finest.width, finest.height)
        self.size = (math.ceil(finest.width / self.pixel), math.ceil(finest.height / self.pixel))

    @classmethod
    def of(cls, case: Case, data: DataSpec, side: int) -> SlideCanvas:
        """Open a case's slide, whose stain is that of its registration."""
        return cls(case.image, data, side, sketches_of(case))

    def __enter__(self) -> SlideCanvas:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reader.close()

    @property
    def pixel_mm2(self) -> float:
        """Area of a working pixel."""
        return (self._reader.levels[0].mpp * self.pixel / 1000) ** 2

    @cached_property
    def overview(self) -> tuple[Pixels, float]:
        """Overview (row, column, 3), and working pixels per pixel of it."""
        pixels, scale = self._reader.overview()
        return pixels, scale / self.pixel

    @cached_property
    def tissue(self) -> Mask:
        """Where the overview shows tissue, with what it encloses closely."""
        pixels, scale = self.overview
        found = find_tissue(pixels, self.mpp * scale).mask
        reach = max(1, round(_CLOSED_MICRONS / (self.mpp * scale)))
        padded = np.pad(found, reach)
        closed: Mask = ndimage.binary_closing(padded, ndimage.generate_binary_structure(2, 1), reach)
        return closed[reach:-reach, reach:-reach] | found

    @property
    def tissue_mm2(self) -> float:
        """Area of the tissue."""
        return float(self.tissue.sum()) * self.overview[1] ** 2 * self.pixel_mm2

    def tissue_at(self, x: int, y: int, width: int, height: int) -> Mask:
        """Return which working pixels of a box are tissue, (height, width)."""
        scale, mask = self.overview[1], self.tissue
        rows = ((np.arange(y, y + height) + 0.5) / scale).astype(int).clip(0, mask.shape[0] - 1)
        columns = ((np.arange(x, x + width) + 0.5) / scale).astype(int).clip(0, mask.shape[1] - 1)
        found: Mask = mask[rows][:, columns]
        return found

    def shows_tissue(self, x: int, y: int, width: int, height: int) -> bool:
        """Return whether a box shows any tissue."""
        scale, mask = self.overview[1], self.tissue
        first, last = (int(max(low, 0) / scale) for low in (y, x)), (y + height, x + width)
        (top, left), (bottom, right) = first, (max(math.ceil(high / scale), 1) for high in last)
        return bool(mask[top:bottom, left:right].any())

    def read(self, x: int, y: int) -> Pixels:
        """Return (side, side, 3) uint8 with its corner at (x, y), as the job sees it; white beyond the slide."""
        found = self._plain(x, y)
        if self._normaliser:
            found = self._normaliser.window(found, self._sketches)
        return 255 - found if self._inverted else found

    def _plain(self, x: int, y: int) -> Pixels:
        return self._reader.read(round(x * self.pixel), round(y * self.pixel))

    @cached_property
    def _sketches(self) -> tuple[str, ...]:
        return self._registered or (sketch(self._sampled(self._plain), SLIDE_COLOURS),)

    def _sampled(self, read: Callable[[int, int], Pixels]) -> Pixels:
        """Return some of the tissue's pixels, (pixel, 3); none where there is no tissue."""
        rows, columns = np.nonzero(self.tissue)
        if not len(rows):
            return np.zeros((0, 3), np.uint8)
        at = np.unique(np.linspace(0, len(rows) - 1, _SAMPLED).astype(int))
        places = (np.stack([columns[at], rows[at]], 1) + 0.5) * self.overview[1] - self.side / 2
        corners = np.rint(places).astype(int).tolist()
        return np.concatenate([read(x, y)[self.tissue_at(x, y, self.side, self.side)] for x, y in corners])

    @cached_property
    def scale(self) -> tuple[Tensor, Tensor]:
        """What a network's input is less, and by which it is divided, (channel, 1, 1) float32.

        Mean and spread of the tissue's channels, one for the whole slide: windows scaled by themselves would leave
        steps between them. Where the job says something of stains, colours are kept, scaled to -1 to 1.

        Raises:
            DataError: the slide shows no tissue.
        """
        if not self.tissue.any():
            raise DataError("shows no tissue, so that there is nothing to look at. Leave it out")
        if self._keeps_colours:
            return torch.full((3, 1, 1), _HALF), torch.full((3, 1, 1), _HALF)
        values = self._sampled(self.read).astype(np.float64)
        found = [values.mean(0), np.maximum(values.std(0), _LEAST_SPREAD)]
        mean, spread = (torch.from_numpy(part.astype(np.float32))[:, None, None] for part in found)
        return mean, spread


def as_input(pixels: Pixels, scale: tuple[Tensor, Tensor]) -> Tensor:
    """Return pixels (y, x, 3) as a network sees them, (channel, x, y) float32."""
    return scaled(torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 1, 0))), scale)


def scaled(image: Tensor, scale: tuple[Tensor, Tensor]) -> Tensor:
    """Return an image (…, channel, x, y) less the mean, by the spread."""
    return (image.float() - scale[0]) / scale[1]
