"""FedBN (Li et al., ICLR 2021)."""

from __future__ import annotations

from typing import Literal

from torch import nn

from oncofed.algorithms.base import Algorithm, JobFacts
from oncofed.algorithms.registry import register_algorithm
from oncofed.algorithms.settings import AlgorithmSettings
from oncofed.errors import SpecError
from oncofed.models.weights import exchanged_names, norm_names


class FedBNSettings(AlgorithmSettings):
    """Batch normalisation stays local (Li et al., ICLR 2021).

    The final model has the sites' mean of it.
    """

    name: Literal["fedbn"]


@register_algorithm("fedbn")
class FedBN(Algorithm[FedBNSettings]):
    """Clients keep batch normalisation locally; the server averages all."""

    Settings = FedBNSettings
    needs_only_sums = True

    @property
    def why_not_private(self) -> str | None:
        """It needs what joins patients."""
        return "needs batch normalisation, which normalises each patient by the others of a step"

    def check_job(self, job: JobFacts) -> None:
        """Refuse a network without batch normalisation."""
        if not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in job.network.modules()):
            raise SpecError(
                f"strategy fedbn keeps batch normalisation at each site, and {job.network_name} has none (model.norm: "
                f"{job.norm}). Set model.norm: batch, or take another strategy."
            )
        super().check_job(job)

    def kept_locally(self, network: nn.Module) -> set[str]:
        """Return the names of the normalisation layers' weights."""
        return norm_names(network) & exchanged_names(network)
