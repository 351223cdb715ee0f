"""``data.stain`` of a job."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from oncofed.data.stain.columns import LAB, MACENKO, VAHADANE, StainColumn
from oncofed.settings import StrictModel

Method = Literal["none", "macenko", "reinhard", "vahadane"]


class StainSpec(StrictModel):
    """What is done about sites' different stains.

    The template that slides are normalised to, and from which RandStainNA draws, is what all sites' training slides
    look like on average: sites agree on it before the first round, and it is kept with the model.
    """

    normalise: Method = Field(
        "none",
        description="each slide to the sites' common template: macenko (directions of optical density), vahadane "
        "(sparse stains), reinhard (colours' mean and spread)",
    )
    augment: Literal["none", "hed", "randstainna"] = Field(
        "none",
        description="training images, at random: hed (amounts of haematoxylin, eosin and DAB), randstainna (colours of "
        "slides that the sites might have)",
    )
    strength: float = Field(
        1.0, gt=0, le=3, description="of augment; 1: amounts change by up to a fifth, colours as the sites' slides do"
    )
    probability: float = Field(0.5, gt=0, le=1, description="of a training image to be changed by augment")

    @property
    def is_used(self) -> bool:
        """Whether colours are kept for what they say, and not standardised image by image."""
        return self.normalise != "none" or self.augment != "none"

    @property
    def source_columns(self) -> tuple[StainColumn, ...]:
        """What is estimated of each slide to normalise it."""
        return {"none": (), "macenko": MACENKO, "vahadane": VAHADANE, "reinhard": LAB}[self.normalise]

    @property
    def columns(self) -> tuple[StainColumn, ...]:
        """What the sites agree on."""
        drawn = LAB if self.augment == "randstainna" and self.normalise != "reinhard" else ()
        return (*self.source_columns, *drawn)
