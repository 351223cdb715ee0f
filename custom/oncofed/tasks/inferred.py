"""A model's answer for one case.

Scores, reports and predictions share it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from oncofed.data.inputs import Prepared
from oncofed.data.references import affine_of
from oncofed.tasks.slide_strips import SlideMap

Affine = NDArray[np.float64]
# Place of a vector that lies nowhere: its file has no coordinates, or it describes a whole slide.
UNPLACED = -1


@dataclass(frozen=True)
class TargetGrid:
    """The grid of an answer, from label file or image.

    Attributes:
        affine: (4, 4), from voxels to RAS+ in mm; of a flat image its pixel sizes.
        shape: size along each axis.
    """

    affine: Affine
    shape: tuple[int, ...]


def target_grid(prepared: Prepared) -> TargetGrid:
    """Return the grid of a prepared case's answer."""
    if "label" in prepared:
        return TargetGrid(affine_of(prepared, "label"), tuple(prepared["label"].shape))
    return TargetGrid(affine_of(prepared, "file"), tuple(prepared["file.shape"].tolist()))


@dataclass(frozen=True)
class LabelMap:
    """A segmentation.

    Attributes:
        values: label values on the target grid, (x, y[, z]) uint8 or int16, on the device that computed them.
        affine: (4, 4), from voxels to RAS+ in mm.
        entropy: of each voxel, (x, y[, z]) uint8; see ``tasks.entropy``; None: not requested.
    """

    values: Tensor
    affine: Affine
    entropy: Tensor | None = None


@dataclass(frozen=True)
class ObjectMap:
    """Single objects.

    Attributes:
        numbers: a number for each object on the target grid, zero elsewhere, (x, y[, z]) int32.
        affine: (4, 4); of a flat image its pixel sizes.
        entropy: as in ``LabelMap``, of object against background.
    """

    numbers: NDArray[np.int32]
    affine: Affine
    entropy: Tensor | None = None


@dataclass(frozen=True)
class ClassScores:
    """A classifier's answer for an image or a slide.

    Attributes:
        logits: one per class, (class,) float64, before calibration.
    """

    logits: NDArray[np.float64]

    def probabilities(self, temperature: float = 1.0) -> NDArray[np.float64]:
        """Return probabilities (class,) at a temperature.

        Guo et al., ICML 2017.
        """
        scaled = self.logits / temperature
        powers = np.exp(scaled - scaled.max())
        found: NDArray[np.float64] = powers / powers.sum()
        return found


@dataclass(frozen=True)
class TileAttention:
    """Attention of each tile of a bag.

    Attributes:
        attention: weight of each tile, (tile,) float32, with sum one over a case; None: the network has none.
        places: upper left corner of each tile, (tile, 2) int32: x and y in pixels of the finest level, or ``UNPLACED``.
        slides: number of each tile's slide among those of the case, (tile,) int16; None: the case is one slide.
        largest: attention that a heat map shows as one; None: the largest of these tiles.
    """

    attention: NDArray[np.float32] | None
    places: NDArray[np.int32]
    slides: NDArray[np.int16] | None = None
    largest: float | None = None

    def of_slide(self, number: int) -> TileAttention:
        """Return the tiles of one slide of the case, on the scale of all of them."""
        chosen = np.full(len(self.places), number == 0) if self.slides is None else self.slides == number
        if self.attention is None:
            return TileAttention(None, self.places[chosen])
        return TileAttention(self.attention[chosen], self.places[chosen], largest=float(self.attention.max(initial=0)))

    @property
    def is_placed(self) -> bool:
        """Whether there is attention with places, so that it can be drawn."""
        return self.attention is not None and len(self.places) > 0 and not (self.places == UNPLACED).all(axis=1).any()

    @property
    def shares(self) -> NDArray[np.float32]:
        """Attention relative to the largest, (tile,)."""
        assert self.attention is not None
        largest = float(self.attention.max(initial=0)) if self.largest is None else self.largest
        return np.asarray(self.attention / max(largest, float(np.finfo(np.float32).tiny)), np.float32)

    def drawn(self, shape: tuple[int, ...], step: float, scale: float) -> NDArray[np.float32]:
        """Return the relative attention as a picture (row, column).

        Args:
            shape: its rows and columns.
            step: side of a tile in pixels of the finest level.
            scale: size of the picture's pixels in those.
        """
        heat = np.zeros(shape, np.float32)
        if not self.is_placed:
            return heat
        starts = np.rint(self.places / scale).astype(int)
        ends = np.rint((self.places + step) / scale).astype(int)
        for share, (x, y), (right, bottom) in zip(self.shares, starts.tolist(), ends.tolist(), strict=True):
            heat[y : max(bottom, y + 1), x : max(right, x + 1)] = share
        return heat


@dataclass(frozen=True)
class SlideScores(TileAttention, ClassScores):
    """A classifier's answer for a slide or a patient, with its attention."""


@dataclass(frozen=True)
class TargetScores:
    """A network's outputs for one case, by target.

    Attributes:
        outputs: target -> (outputs,) float64, as the network gives them.
    """

    outputs: Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True)
class SlideTargetScores(TileAttention, TargetScores):
    """A network's outputs for a slide or a patient, with its attention."""


@dataclass(frozen=True)
class LabelMapWithScores(LabelMap, TargetScores):
    """A segmentation with a network's outputs for the whole image."""


@dataclass(frozen=True)
class ObjectMapWithScores(ObjectMap, TargetScores):
    """Single objects with a network's outputs for the whole image."""


@dataclass(frozen=True)
class FoundBoxes:
    """Objects found as boxes, the likeliest first.

    Attributes:
        corners: (box, 2 * axes) float64, low corner first, in voxels of the image's file from its edge.
        scores: of each, from 0 to 1, (box,) float64.
        classes: label value of each, (box,) int64.
        affine: of the file, (4, 4), from voxels' centres to RAS+ in mm; of a flat image its pixel sizes.
        shape: of the file.
    """

    corners: NDArray[np.float64]
    scores: NDArray[np.float64]
    classes: NDArray[np.int64]
    affine: Affine
    shape: tuple[int, ...]


@dataclass(frozen=True)
class SlideBoxes(FoundBoxes):
    """Objects found as boxes on a whole slide, in pixels of its finest level.

    Attributes:
        tissue_mm2: area of the slide's tissue.
    """

    tissue_mm2: float

    @property
    def pixel_mm(self) -> float:
        """Side of a pixel of the finest level."""
        return float(self.affine[0, 0])


Inferred = FoundBoxes | LabelMap | ObjectMap | ClassScores | SlideMap | TargetScores
