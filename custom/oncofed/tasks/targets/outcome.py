"""A network's answers for one case, with what the case states."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from oncofed.data.targets import Encoded


@dataclass(frozen=True)
class TargetOutcome:
    """A case's answers with what it states.

    Attributes:
        answers: target -> (values,), see ``TargetHead.answer``.
        truths: target -> (width,), NaN where unknown.
        loss: of the case, by the targets' weights; None: it states none that has a loss of its own.
    """

    answers: Mapping[str, NDArray[np.float64]]
    truths: Mapping[str, Encoded]
    loss: float | None = None
