"""Follow-ups by a law that is known."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from oncofed.tasks.survival.follow_up import FollowUps


def drawn(
    count: int, seed: int = 0, censored_by: float = 80.0, whole_months: bool = False
) -> tuple[NDArray[np.float64], FollowUps]:
    """Return log risks and follow-ups in months: exponential times whose hazard is 0.02 times the risk.

    Args:
        count: patients.
        seed: of the draw.
        censored_by: follow-ups end evenly up to this time.
        whole_months: times are rounded up, so that many are alike.
    """
    rng = np.random.default_rng(seed)
    log_risks = rng.normal(0, 1, count)
    times = rng.exponential(1 / (0.02 * np.exp(log_risks)))
    ends = rng.uniform(0, censored_by, count)
    found = np.minimum(times, ends)
    return log_risks, FollowUps(np.ceil(found) if whole_months else found, times <= ends)
