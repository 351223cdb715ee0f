"""The numbers of a slide's stain, as columns whose mean and spread a federation agrees on.

They agree as a table's numbers do (``data.moments``): sums over at least five patients leave a site, no pixel does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from oncofed.data.covariates import Covariate

Estimated = Literal["macenko", "vahadane", "reinhard"]

# Name of the network's buffer that holds the template: it travels and is kept with the weights, and nobody trains it.
BUFFER = "stain_template"


class StainColumn(Covariate):
    """One number of a slide's stain, and how it is estimated."""

    published: tuple[float, float]
    method: Estimated

    @property
    def usual(self) -> tuple[float, float]:
        """Mean and spread where no site told of any."""
        return self.published


def _columns(method: Estimated, rows: Sequence[tuple[str, float, float, float, float]]) -> tuple[StainColumn, ...]:
    return tuple(
        StainColumn(name=f"stain {name}", range=(low, high), published=(mean, spread), method=method)
        for name, low, high, mean, spread in rows
    )


# Optical density of both stains by channel, as unit vectors, and the 99th percentile of their amounts. Means: the
# reference of Macenko et al., ISBI 2009; spreads: of the slides of several laboratories, about.
MACENKO = _columns(
    "macenko",
    [
        ("haematoxylin red", -1, 1, 0.5626, 0.06),
        ("haematoxylin green", -1, 1, 0.7201, 0.06),
        ("haematoxylin blue", -1, 1, 0.4062, 0.06),
        ("eosin red", -1, 1, 0.2159, 0.06),
        ("eosin green", -1, 1, 0.8012, 0.06),
        ("eosin blue", -1, 1, 0.5581, 0.06),
        ("haematoxylin amount", 0, 8, 1.9705, 0.4),
        ("eosin amount", 0, 8, 1.0308, 0.3),
    ],
)
VAHADANE = tuple(column.model_copy(update={"method": "vahadane"}) for column in MACENKO)
# Mean and standard deviation of the tissue's CIELAB. Published: what the template of ``MACENKO`` looks like, about.
LAB = _columns(
    "reinhard",
    [
        ("light mean", 0, 100, 62, 8),
        ("a mean", -128, 128, 25, 7),
        ("b mean", -128, 128, -13, 6),
        ("light deviation", 0, 60, 14, 3),
        ("a deviation", 0, 60, 9, 2.5),
        ("b deviation", 0, 60, 6, 2),
    ],
)


@dataclass(frozen=True, eq=False)
class Template:
    """What slides are made to look like.

    Attributes:
        columns: of the job.
        moments: mean and spread of each column over patients, (2, column) float32.
    """

    columns: tuple[StainColumn, ...]
    moments: Tensor

    @classmethod
    def of(cls, columns: Sequence[StainColumn], moments: Mapping[str, tuple[float, float]]) -> Template:
        """Return the template of agreed moments.

        Args:
            columns: of the job.
            moments: column -> mean and spread; one left out has its published ones.
        """
        known = [moments.get(column.name, column.usual) for column in columns]
        values = torch.tensor(known, dtype=torch.float32).reshape(-1, 2).T
        # Weights may travel in bfloat16: all sites, and who predicts later, then see the same template.
        return cls(tuple(columns), values.bfloat16().float().contiguous())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Template) and (self.columns, self.key) == (other.columns, other.key)

    def __hash__(self) -> int:
        return hash((self.columns, self.key))

    def __reduce__(self) -> tuple[object, ...]:
        return Template, (self.columns, self.moments)

    @cached_property
    def key(self) -> str:
        """A text that differs where the template does."""
        return str([round(value, 6) for value in self.moments.flatten().tolist()])

    def means(self, columns: Sequence[StainColumn]) -> Tensor:
        """Return the means of some columns, (column,) float32."""
        return self.moments[0, self._places(columns)]

    def spreads(self, columns: Sequence[StainColumn]) -> Tensor:
        """Return the spreads of some columns, (column,) float32."""
        return self.moments[1, self._places(columns)]

    def _places(self, columns: Sequence[StainColumn]) -> list[int]:
        names = [column.name for column in self.columns]
        return [names.index(column.name) for column in columns]
