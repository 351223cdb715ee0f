"""What the sites' kept models gain, for result and report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from oncofed.settings import StrictModel


class PairedGain(StrictModel):
    """A difference of two models on the same test patients of a site."""

    patients: int
    difference: float = Field(description="of the metric, kept model less the other")
    interval: tuple[float, float] = Field(description="95 % interval, Student's t")


class SiteGain(StrictModel):
    """The model that a site keeps, and what it gains on test patients, who did not choose it."""

    kept: Literal["federated", "averaged_norms", "personal", "fine_tuned", "mixed", "alone"]
    validated: int = Field(description="validation patients who chose it")
    over_federated: PairedGain
    over_alone: PairedGain | None = Field(
        None, description="over the model that the site trained alone; null: of too few patients, or it trained none"
    )


def gains_of(told: Mapping[str, Mapping[str, Any]]) -> dict[str, SiteGain]:
    """Return the sites' gains, the site that gains least first.

    Args:
        told: by site, as ``privacy.gains.gain_numbers`` tells it.
    """
    found = {site: SiteGain.model_validate(dict(gain)) for site, gain in told.items()}
    return dict(sorted(found.items(), key=lambda item: (item[1].over_federated.difference, item[0])))
