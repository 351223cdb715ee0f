"""Forms of a bundle's answer, as plain values.

Tasks, which know more, are in a layer above.
"""

from __future__ import annotations

from dataclasses import dataclass

from oncofed.models.answers import TargetAnswer


@dataclass(frozen=True)
class LabelledVoxels:
    """A label per voxel on the file's grid.

    Attributes:
        overlap: share by which windows overlap.
        mirror: the mean over all mirrorings is taken.
        keep_largest: label values that keep only their largest component.
        regions: label value that each output is written with, in this order, where outputs are regions that may
            overlap; empty: they are classes.
    """

    overlap: float = 0.25
    mirror: bool = False
    keep_largest: tuple[int, ...] = ()
    regions: tuple[int, ...] = ()


@dataclass(frozen=True)
class NumberedObjects:
    """An object's number per pixel on the file's grid.

    Attributes:
        overlap: share by which windows overlap.
        mirror: the mean over all mirrorings is taken.
        seed_depth: how deep inside an object its seed begins.
        smallest: objects of fewer voxels are dropped.
    """

    overlap: float = 0.25
    mirror: bool = False
    seed_depth: float = 0.4
    smallest: int = 10


@dataclass(frozen=True)
class ImageClasses:
    """A probability for each class of an image."""


@dataclass(frozen=True)
class OfSlide:
    """Where the features of a slide's tiles come from.

    Attributes:
        encoder: digest of the features' encoder.
        tile: side of a tile in pixels.
        microns: of a tile's pixels along each side; None: as the slides were cut when they were registered.
    """

    encoder: str
    tile: int
    microns: float | None = None


@dataclass(frozen=True)
class SlideClasses(OfSlide):
    """Probabilities of a slide's classes, from given features."""


@dataclass(frozen=True)
class ImageTargets:
    """An answer for each named target of an image.

    Attributes:
        targets: in the order of the network's outputs.
    """

    targets: tuple[TargetAnswer, ...]


@dataclass(frozen=True)
class SlideTargets(OfSlide):
    """An answer for each named target of a slide, from given features.

    Attributes:
        targets: in the order of the network's outputs.
    """

    targets: tuple[TargetAnswer, ...] = ()


Answer = LabelledVoxels | NumberedObjects | ImageClasses | SlideClasses | ImageTargets | SlideTargets


def targets_of(answer: Answer) -> tuple[TargetAnswer, ...]:
    """Return the named targets of an answer; empty for others."""
    return answer.targets if isinstance(answer, ImageTargets | SlideTargets) else ()
