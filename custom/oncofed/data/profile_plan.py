"""Settings of a federated profile."""

from __future__ import annotations

from pydantic import Field

from oncofed.data.spec import Modality
from oncofed.settings import StrictModel
from oncofed.suppression import LEAST_PATIENTS


class ProfilePlan(StrictModel):
    """Settings of a federated profile of the sites' data."""

    dataset: str = Field(
        pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$", description="name under which every site registers its folder"
    )
    modality: Modality = Field("mri", description="decides in which units intensities are compared")
    dimensions: int = Field(3, ge=2, le=3, description="3: volumes, 2: flat images")
    classes: dict[int, str] = Field({}, description="label value -> name, whose shares of the image are compared")
    minimum_count: int = Field(
        LEAST_PATIENTS, ge=LEAST_PATIENTS, description="fewest patients behind any number that leaves a site"
    )
    noise: float = Field(
        0.0, ge=0, le=100, description="scale of Laplace noise on each number, in units of what one patient adds"
    )
    bins: int = Field(56, ge=4, le=400, description="of each histogram; 56 are quarters of an octave")
