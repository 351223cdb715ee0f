"""``data.harmonization`` of a job."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from oncofed.settings import StrictModel

# What ComBat makes alike, as sums and buffers name it.
FEATURES, COLUMNS = "features", "columns"


class HarmonizationSpec(StrictModel):
    """What is done about sites that measure differently.

    Sites agree before the first round, by sums over at least five patients each; what they agree on is kept with the
    model. ComBat (Johnson et al., 2007; Fortin et al., 2018) then takes a site's own shift and scale from its training
    patients, and keeps what covariates tell.
    """

    features: Literal["none", "combat"] = Field(
        "none", description="of slides' tiles: combat gives each number a site's shift and scale"
    )
    columns: tuple[str, ...] = Field(
        (), max_length=64, description="numbers of data.covariates that sites measure differently, by name; by ComBat"
    )
    preserve: tuple[str, ...] = Field(
        (), max_length=16, description="data.covariates, by name, whose effect on those numbers is kept, such as age"
    )
    intensity: Literal["none", "landmarks"] = Field(
        "none",
        description="of images: landmarks maps each one's percentiles to those that the sites' images have on average "
        "(Nyúl and Udupa, 1999)",
    )

    @property
    def is_used(self) -> bool:
        """Whether anything is made alike."""
        return bool(self.groups) or self.intensity != "none"

    @property
    def groups(self) -> tuple[str, ...]:
        """What ComBat makes alike, of ``FEATURES`` and ``COLUMNS``."""
        return (*([FEATURES] if self.features != "none" else []), *([COLUMNS] if self.columns else []))
