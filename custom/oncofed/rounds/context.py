"""What the parts of the round loop share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from oncofed.algorithms.plan import FederationPlan
from oncofed.models.weights import WeightLayout, Weights
from oncofed.privacy.summed_scores import ScoreForm
from oncofed.rounds.intake import Record, UpdateIntake
from oncofed.rounds.quorum import Quorum
from oncofed.rounds.sites import Sites
from oncofed.rounds.sums import Sums
from oncofed.rounds.transport import Transport


@dataclass(frozen=True, kw_only=True)
class RoundContext:
    """What the parts of the round loop share.

    Attributes:
        seed: the job's.
        federation: the job's rules.
        layout: of the model.
        transport: to the sites.
        sites: which are present.
        intake: checks results.
        quorum: waits for them.
        record: writes an event to the run's record.
        clock: monotonic, in seconds.
        sums: of a job with secure aggregation; None without.
        scores: how its scores are added up; None: each site tells its own.
    """

    seed: int
    federation: FederationPlan
    layout: WeightLayout
    transport: Transport
    sites: Sites
    intake: UpdateIntake
    quorum: Quorum
    record: Record
    clock: Callable[[], float]
    sums: Sums | None = None
    scores: ScoreForm | None = None

    def outgoing(self, model: Weights) -> Weights:
        """Return the weights of a model that travel."""
        half = self.federation.exchange.model == "bfloat16"
        weights = {name: model[name] for name in model if name in self.layout.travelling}
        return {n: v.to(torch.bfloat16) if half and v.is_floating_point() else v for n, v in weights.items()}


def moved(model: Weights, delta: Mapping[str, Tensor]) -> Weights:
    """Return a model with an update added.

    Integer counters are replaced.
    """
    return {
        name: value if name not in delta else value + delta[name] if value.is_floating_point() else delta[name].clone()
        for name, value in model.items()
    }
