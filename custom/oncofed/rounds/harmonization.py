"""A new model gets what sites agree on for ComBat."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from oncofed.data.harmonization.combat import distances
from oncofed.data.harmonization.sums import agreed_of, read_sums
from oncofed.data.spec import DataSpec
from oncofed.errors import DataError, FederationError
from oncofed.models.weights import Weights
from oncofed.rounds.events import Harmonized
from oncofed.rounds.intake import Record


def harmonize(model: Weights, data: DataSpec, sums: Mapping[str, Mapping[str, Any]], record: Record) -> Weights:
    """Return a model's weights with what the sites agree on for ComBat; those of a job without as they are.

    It stays for the whole run: a site that joins later finds its own shift beside it.

    Args:
        model: with its initial weights.
        data: of the job.
        sums: of the sites that told some, by site.
        record: writes an event to the run's record.

    Raises:
        FederationError: the sums do not tell what is a scanner's and what is the patients'.
    """
    groups = data.harmonization.groups
    if not groups:
        return model
    told = [sums[site] for site in sorted(sums)]
    try:
        agreed = agreed_of(told, groups, data.combat_columns.preserved_names)
    except DataError as error:
        raise FederationError(f"values cannot be made alike (data.harmonization): {error}") from None
    apart = {
        site: {group: list(distances(read_sums(sums[site], group), agreed.common[group])) for group in groups}
        for site in sorted(sums)
    }
    unchanged = {group: int((common.spread == 0).sum()) for group, common in agreed.common.items()}
    record(
        Harmonized(
            sites=apart, patients={site: int(sums[site]["patients"]) for site in sorted(sums)}, constant=unchanged
        )
    )
    return {**model, **agreed.buffers}
