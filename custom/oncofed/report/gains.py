"""What sites gain, and what they bring, for result and report."""

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


def contributions_of(
    similarity: Mapping[int, Mapping[str, float]], validation: Mapping[int, float]
) -> dict[str, float]:
    """Return each site's mean similarity over the rounds, weighted by what a round gained, the least first.

    Rounds that made the validation score better count by how much; if none did, all count alike.

    Args:
        similarity: of a site's update to the others', by round and site.
        validation: mean validation score after each round, from round 0.
    """
    gained = {n: max(validation.get(n, 0.0) - validation.get(n - 1, 0.0), 0.0) for n in similarity}
    weights = gained if any(gained.values()) else dict.fromkeys(similarity, 1.0)
    sites = {site for of_round in similarity.values() for site in of_round}
    found = {}
    for site in sites:
        known = [(weights[n], of_round[site]) for n, of_round in similarity.items() if site in of_round]
        total = sum(weight for weight, _ in known)
        if total > 0:
            found[site] = sum(weight * value for weight, value in known) / total
    return dict(sorted(found.items(), key=lambda item: (item[1], item[0])))


def gains_of(told: Mapping[str, Mapping[str, Any]]) -> dict[str, SiteGain]:
    """Return the sites' gains, the site that gains least first.

    Args:
        told: by site, as ``privacy.gains.gain_numbers`` tells it.
    """
    found = {site: SiteGain.model_validate(dict(gain)) for site, gain in told.items()}
    return dict(sorted(found.items(), key=lambda item: (item[1].over_federated.difference, item[0])))
