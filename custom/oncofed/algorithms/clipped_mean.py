"""Norm clipping (Sun et al., 2019, arXiv:1911.07963)."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Literal

from oncofed.algorithms.base import Algorithm, Update, update_norm
from oncofed.algorithms.registry import register_algorithm
from oncofed.algorithms.settings import AlgorithmSettings
from oncofed.models.weights import Weights


class ClippedMeanSettings(AlgorithmSettings):
    """Clip updates to the median norm (Sun et al., 2019)."""

    name: Literal["clipped_mean"]


@register_algorithm("clipped_mean")
class ClippedMean(Algorithm[ClippedMeanSettings]):
    """Clips updates to the median norm."""

    Settings = ClippedMeanSettings
    needs_only_sums = True

    def select(
        self, model: Weights, updates: Sequence[Update], shares: Sequence[float], sites: int
    ) -> tuple[Sequence[Update], Sequence[float]]:
        """Clip long updates by a smaller share."""
        norms = [update_norm(update, self._parameters) for update in updates]
        usual = statistics.median(norms)
        return updates, [share * min(1.0, usual / max(norm, 1e-30)) for share, norm in zip(shares, norms, strict=True)]
