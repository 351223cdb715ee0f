"""A prediction of one case, as output writers need it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from oncofed.prediction.model import TrainedModel
from oncofed.prediction.sources import Source
from oncofed.prediction.trust.checks import Trust
from oncofed.tasks.inferred import Inferred


@dataclass(frozen=True)
class CasePrediction:
    """A prediction of one case.

    Attributes:
        source: the case.
        found: prediction on the image's own grid.
        probabilities: (class,) float64, calibrated, of classifications and slides; None for others.
        trust: how far to trust it; None if unknown.
        temperature: that calibrated ``probabilities``; None: uncalibrated.
        network: network that predicted it; None: not available.
        figures: a row for each class, as ``case_rows.case_rows`` returns them; None: not measured yet.
    """

    source: Source
    found: Inferred
    probabilities: NDArray[np.float64] | None = None
    trust: Trust | None = None
    temperature: float | None = None
    network: nn.Module | None = field(default=None, compare=False, repr=False)
    figures: list[dict[str, Any]] | None = field(default=None, compare=False, repr=False)

    def files(self, folder: Path, *endings: str) -> list[Path]:
        """Return the case's files in a folder, ``NAME_ENDING``."""
        return [folder / f"{self.source.name}_{ending}" for ending in endings]

    def key(self, model: TrainedModel) -> str:
        """Return what a prediction's identifiers come from, the same when it is repeated."""
        return f"{self.source.entry.checksum or self.source.name}/{model.digest}"


# Writes all of its files into a folder or none, and returns them.
Writer = Callable[[CasePrediction, TrainedModel, Path], list[Path]]
