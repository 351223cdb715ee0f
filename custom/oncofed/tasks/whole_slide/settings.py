"""Settings of tasks that learn from what was drawn on slides."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator
from typing_extensions import Self

from oncofed.data.slides.drawn import UNKNOWN
from oncofed.data.spec import DataSpec
from oncofed.errors import SpecError
from oncofed.settings import StrictModel
from oncofed.tasks.detection.spec import DetectionSpec
from oncofed.tasks.objects import ObjectsSpec
from oncofed.tasks.segmentation import SegmentationSpec


class Drawing(StrictModel):
    """How slides with drawn regions are learned from."""

    undrawn: Literal["background", "unknown"] = Field(
        description="what no annotator drew: background, where all of a class was drawn; unknown, where regions are "
        "examples: then draw examples of background, too"
    )
    patches: int = Field(64, ge=1, le=4096, description="cut of each class, of a slide; each half as large again")

    @property
    def undrawn_value(self) -> int:
        """Label value of what nobody drew."""
        return 0 if self.undrawn == "background" else UNKNOWN


class Outlining(StrictModel):
    """How what was found is outlined."""

    tolerance: float = Field(
        2.0, ge=0, le=1000, description="microns by which outlines may be off, so that they have fewer points"
    )
    least_area: float = Field(
        500.0,
        ge=0,
        le=1e9,
        description="square microns: smaller pieces and holes are left out of the outlines, and count in areas; 500: a "
        "disc 25 microns across, some cells",
    )


class SlideSegmentationSpec(SegmentationSpec, Drawing, Outlining):
    """Settings of segmentation learned from regions on slides."""

    type: Literal["slide_segmentation"] = "slide_segmentation"  # type: ignore[assignment]

    @property
    def learns_of_empty(self) -> bool:
        """Whether a slide on which nothing was drawn shows that nothing is there."""
        return self.undrawn == "background"

    @model_validator(mode="after")
    def _of_slides(self) -> Self:
        if self.keep_largest:
            raise ValueError("keep_largest is of images that fit into memory; leave it out for slides")
        if self.ignore == UNKNOWN:
            raise ValueError(f"ignore: {UNKNOWN} stands for what nobody drew; choose another value")
        return self


class SlideTilesSpec(SlideSegmentationSpec):
    """Settings of classification of tiles, learned from regions on slides."""

    type: Literal["slide_tiles"] = "slide_tiles"  # type: ignore[assignment]

    @model_validator(mode="after")
    def _of_one_class(self) -> Self:
        if self.partial:
            raise ValueError("a tile has one of all classes: leave partial out, or learn slide_segmentation")
        return self


class SlideObjectsSpec(ObjectsSpec, Drawing):
    """Settings of objects learned from outlines on slides."""

    type: Literal["slide_objects"] = "slide_objects"  # type: ignore[assignment]
    classes: dict[int, str] = Field(min_length=1, description="label value -> name of a kind of objects")

    @property
    def learns_of_empty(self) -> bool:
        """Whether a slide on which nothing was drawn shows that nothing is there."""
        return self.undrawn == "background"

    @field_validator("classes")
    @classmethod
    def _is_one(cls, classes: dict[int, str]) -> dict[int, str]:
        """Kinds may be several on slides: outlines have classes."""
        expected = list(range(1, len(classes) + 1))
        if sorted(classes) != expected:
            raise ValueError(f"label values are {sorted(classes)}, expected {expected}: 1, 2, … without gaps")
        return dict(sorted(classes.items()))


class SlideDetectionSpec(DetectionSpec):
    """Settings of boxes learned from outlines and points on slides."""

    type: Literal["slide_detection"] = "slide_detection"  # type: ignore[assignment]
    patches: int = Field(64, ge=1, le=4096, description="cut of each class, of a slide; each half as large again")
    point_size: float | None = Field(
        None,
        gt=0,
        le=10_000,
        description="side in microns of the box that a point stands for; null: there are no points",
    )
    most_boxes: int = Field(5000, ge=1, le=100_000, description="of a slide, those with the highest scores")
    false_positives: Literal["slide", "mm2"] = Field(
        "slide", description="by what FROC counts false positives: slide, or mm2 of tissue"
    )


def require_resolution(data: DataSpec) -> None:
    """Raise where a job does not say how it looks at slides.

    Raises:
        SpecError: it names no resolution, or its patch is not square.
    """
    if data.spacing is None or len(set(data.spacing)) > 1:
        raise SpecError(
            "regions on slides are learned at one resolution, and the job names none. Say data.spacing in mm a pixel, "
            "twice the same: [0.001, 0.001] is 1 micron, about 10x"
        )
    if len(set(data.patch)) > 1 or len(data.patch) != 2:
        raise SpecError(f"windows of slides are square, found data.patch {list(data.patch)}; expected two equal sides")
    if len(data.channels) != 3:
        raise SpecError(f"slides have the channels red, green and blue, found {len(data.channels)} in data.channels")
