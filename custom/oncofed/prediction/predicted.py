"""What a model said of one case, with all that its writers need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from oncofed.prediction.model import TrainedModel
from oncofed.prediction.sources import Source
from oncofed.prediction.trust import Trust
from oncofed.tasks.inferred import Inferred


@dataclass(frozen=True)
class Predicted:
    """One case with what a model said of it.

    Attributes:
        source: the case.
        found: on the image's own grid.
        probabilities: (class,) float64, calibrated, of classifications and slides; None of others.
        trust: when not to trust it; None where nothing is known.
    """

    source: Source
    found: Inferred
    probabilities: NDArray[np.float64] | None = None
    trust: Trust | None = None


# Writes all of its files into a folder or none, and returns them.
Writer = Callable[[Predicted, TrainedModel, Path], list[Path]]
