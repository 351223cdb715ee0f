"""Settings of detection."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from oncofed.tasks.settings import TaskSettings


class DetectionSpec(TaskSettings):
    """Settings of detection."""

    type: Literal["detection"] = "detection"
    classes: dict[int, str] = Field({1: "lesion"}, min_length=1, description="label value -> name of the objects")
    overlap: float = Field(0.25, ge=0, lt=0.95, description="share by which inference windows overlap")
    least_score: float = Field(0.02, ge=0, lt=1, description="boxes with a lower score are dropped")
    most_boxes: int = Field(100, ge=1, le=1000, description="of an image, those with the highest scores")
    merged_overlap: float = Field(
        0.2, ge=0, lt=1, description="of boxes that overlap by more (IoU), the one with the highest score is kept"
    )
    hit_overlap: float | None = Field(
        None, gt=0, lt=1, description="least IoU of a hit; null: 0.1 in volumes, 0.5 in flat images"
    )
    candidates: int = Field(
        8, ge=2, le=256, description="anchors of each resolution among which training chooses an object's (ATSS)"
    )
    box_weight: float = Field(1.0, gt=0, le=100, description="of the boxes' loss, relative to the classes'")

    @field_validator("classes")
    @classmethod
    def _consecutive(cls, classes: dict[int, str]) -> dict[int, str]:
        expected = list(range(1, len(classes) + 1))
        if sorted(classes) != expected:
            raise ValueError(f"label values are {sorted(classes)}, expected {expected}: 1, 2, … without gaps")
        return dict(sorted(classes.items()))
