"""The section ``privacy`` of ``job.yaml``."""

from __future__ import annotations

from pydantic import Field

from oncofed.settings import StrictModel


class SecureAggregationSpec(StrictModel):
    """Updates are added up under masks, which the server cannot lift from a single one.

    Bonawitz et al., CCS 2017; see docs/secure-aggregation.md.
    """

    minimum_sites: int = Field(
        3, ge=3, le=1000, description="fewest sites in a sum; of two, each would learn the other's"
    )


class PrivacySpec(StrictModel):
    """What protects patients beyond the rules that hold for every job."""

    secure_aggregation: SecureAggregationSpec | None = Field(
        None, description="{}: the server is given the sum of the updates alone; null: each site's update"
    )
