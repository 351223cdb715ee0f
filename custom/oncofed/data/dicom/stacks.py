"""Files that are read as one image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from oncofed.data.dicom.header_types import ImageHeader, LabelHeader, SlideHeader


@dataclass(frozen=True)
class Slice:
    """The file of an image or of one slice."""

    path: str
    header: ImageHeader


@dataclass(frozen=True)
class LabelFile:
    """The file of a segmentation or a structure set."""

    path: str
    header: LabelHeader


@dataclass(frozen=True)
class SlideFile:
    """The file of a whole slide's instance."""

    path: str
    header: SlideHeader


@dataclass(frozen=True)
class Stack:
    """Files that are read as one image.

    Attributes:
        slices: in the order of their positions along the normal, or the one file of a flat or multi-frame image.
        kind: "volume" (classic slices), "multiframe", or "flat".
        reason: why it cannot be read; None if it can.
        tilt: of the gantry in degrees.
        notes: observations, for people.
        part: number within its series, from 0.
    """

    slices: tuple[Slice, ...]
    kind: str
    reason: str | None = None
    tilt: float = 0.0
    notes: tuple[str, ...] = ()
    part: int = 0

    @property
    def header(self) -> ImageHeader:
        """Of the first slice."""
        return self.slices[0].header


# Returns path -> digest, equal for files with equal pixels.
Digests = Callable[[Sequence[Slice]], Mapping[str, str]]


def refused(group: Sequence[Slice], reason: str) -> Stack:
    """Return slices that are no image, with the reason."""
    return Stack(tuple(group), "volume", reason=reason)
