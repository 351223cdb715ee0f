"""The ``federation`` section of a job."""

from __future__ import annotations

from pydantic import Field

from oncofed.data.spec import StrictModel


class FederationSpec(StrictModel):
    """How sites train together."""

    rounds: int = Field(5, ge=1, le=10_000, description="how often weights are exchanged")
    min_sites: int | None = Field(
        None, ge=1, le=1000, description="fewest sites that a round needs; null: every site that the job started with"
    )
