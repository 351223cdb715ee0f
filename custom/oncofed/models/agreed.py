"""What the sites agree on before the first round, put into a model's weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from oncofed.data.covariates import Covariate
from oncofed.data.harmonization.agreed import PREFIX
from oncofed.data.harmonization.landmarks import INTENSITY, IntensityColumn, template_of
from oncofed.data.stain.columns import BUFFER, StainColumn, Template
from oncofed.models.table import MOMENTS, standardised
from oncofed.models.weights import Weights


def with_agreed(weights: Weights, columns: Sequence[Covariate], moments: Mapping[str, tuple[float, float]]) -> Weights:
    """Return a network's weights with the mean and spread of a table's numbers, and the templates.

    Args:
        weights: of the job's network; others stay as they are.
        columns: of the job's table, stains and intensities.
        moments: column -> mean and spread; one left out keeps its usual ones.
    """
    stains = [column for column in columns if isinstance(column, StainColumn)]
    intensities = [column for column in columns if isinstance(column, IntensityColumn)]
    table = [column for column in columns if not isinstance(column, StainColumn | IntensityColumn)]
    found = standardised(weights, table, moments)
    found |= {BUFFER: Template.of(stains, moments).moments} if stains else {}
    return found | ({INTENSITY: template_of(intensities, moments)} if intensities else {})


def with_agreed_of(weights: Weights, other: Weights) -> Weights:
    """Return a network's weights with what the sites agreed on for another model of the same network."""
    agreed = {
        name for name in weights if name == BUFFER or name.startswith(PREFIX) or name.rpartition(".")[2] in MOMENTS
    }
    return {name: other[name] if name in agreed else value for name, value in weights.items()}
