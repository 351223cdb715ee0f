"""What a model said of one case, with all that its writers need."""

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
    """One case with what a model said of it.

    Attributes:
        source: the case.
        found: on the image's own grid.
        probabilities: (class,) float64, calibrated, of classifications and slides; None of others.
        trust: when not to trust it; None where nothing is known.
        temperature: by which ``probabilities`` were calibrated; None: they were not.
        network: that found it, where it is; None: it is gone.
        figures: a row for each class, as ``case_rows.case_rows`` returns them; None: not counted or measured yet.
    """

    source: Source
    found: Inferred
    probabilities: NDArray[np.float64] | None = None
    trust: Trust | None = None
    temperature: float | None = None
    network: nn.Module | None = field(default=None, compare=False, repr=False)
    figures: list[dict[str, Any]] | None = field(default=None, compare=False, repr=False)


# Writes all of its files into a folder or none, and returns them.
Writer = Callable[[CasePrediction, TrainedModel, Path], list[Path]]
