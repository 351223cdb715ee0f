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
class SlideScores(ClassScores):
    """A classifier's answer for a slide, with its attention.

    Attributes:
        attention: weight of each tile, (tile,) float32, with sum one; None: the network has none.
        places: corner of each tile, (tile, 2) int32: x and y in pixels of the finest level.
    """

    attention: NDArray[np.float32] | None
    places: NDArray[np.int32]


@dataclass(frozen=True)
class TargetScores:
    """A network's outputs for one case, by target.

    Attributes:
        outputs: target -> (outputs,) float64, as the network gives them.
    """

    outputs: Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True)
class SlideTargetScores(TargetScores):
    """A network's outputs for a slide, with its attention.

    Attributes:
        attention: weight of each tile, (tile,) float32, with sum one; None: the network has none.
        places: corner of each tile, (tile, 2) int32: x and y in pixels of the finest level.
    """

    attention: NDArray[np.float32] | None
    places: NDArray[np.int32]


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


Inferred = FoundBoxes | LabelMap | ObjectMap | ClassScores | SlideMap | TargetScores
