"""The ``data`` section of a job."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Millimetres = Annotated[float, Field(gt=0, le=20)]
Voxels = Annotated[int, Field(ge=8, le=512)]


class StrictModel(BaseModel):
    """Base of every section of a job: unknown keys are refused and values never change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


class SplitSpec(StrictModel):
    """How patients are dealt to validation and test where the dataset's own list does not say."""

    validation: float = Field(0.15, ge=0, lt=1, description="share of the patients that chooses the best round")
    test: float = Field(0.2, ge=0, lt=1, description="share of the patients held out until the end")


class DataSpec(StrictModel):
    """Which dataset a job reads at each site, and the grid on which the network sees it."""

    dataset: str = Field(
        pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$", description="name under which every site registers its folder"
    )
    modality: Literal["mri", "ct"] = Field("mri", description="decides the intensity normalisation")
    orientation: Literal["RAS", "LPS"] = Field("RAS", description="axis order of the working grid")
    spacing: tuple[Millimetres, Millimetres, Millimetres] | None = Field(
        None, description="voxel size of the working grid in mm; null keeps each image's own"
    )
    patch: tuple[Voxels, Voxels, Voxels] = Field((32, 32, 32), description="training patch in voxels")
    split: SplitSpec = SplitSpec()
