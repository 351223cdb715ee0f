"""A new model gets the mean and spread of the table's numbers, and the templates, over all sites."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from oncofed.data.covariates import Covariate
from oncofed.data.harmonization.landmarks import IntensityColumn
from oncofed.data.moments import Sums, moments_of, numbers_of
from oncofed.data.stain.columns import StainColumn
from oncofed.models.agreed import with_agreed
from oncofed.models.weights import Weights
from oncofed.rounds.events import IntensitiesNotAgreed, NotStandardised, Standardised, TemplateNotAgreed
from oncofed.rounds.intake import Record


def standardise(
    model: Weights, columns: Sequence[Covariate], sums: Mapping[str, Mapping[str, Sums]], record: Record
) -> Weights:
    """Return a model's weights with mean and spread of its numbers.

    They stay for the whole run, whoever joins later: they travel with the model, and nobody trains them.

    Args:
        model: with its initial weights.
        columns: of the job's table, stains and intensities.
        sums: of the sites' numbers, by site.
        record: writes an event to the run's record.
    """
    numbers = numbers_of(columns)
    if not numbers:
        return model
    moments = moments_of([sums[site] for site in sorted(sums)], columns)
    told = {name: [site for site in sorted(sums) if name in sums[site]] for name in moments}
    record(Standardised(columns={name: list(found) for name, found in moments.items()}, sites=told))
    of_stains = {column.name for column in columns if isinstance(column, StainColumn)}
    missing = {name for name in numbers if name not in moments}
    of_images = {column.name for column in columns if isinstance(column, IntensityColumn)}
    if missing & of_images:
        record(IntensitiesNotAgreed(columns="intensities"))
    if missing - of_stains - of_images:
        record(NotStandardised(columns=_listed(missing - of_stains - of_images, numbers)))
    if missing & of_stains:
        record(TemplateNotAgreed(columns=_listed(missing & of_stains, numbers)))
    return with_agreed(model, columns, moments)


def _listed(names: Collection[str], order: Iterable[str]) -> str:
    return ", ".join(name for name in order if name in names)
