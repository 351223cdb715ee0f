"""The model that a job trains."""

from __future__ import annotations

import hashlib
from pathlib import Path

from safetensors.torch import load_file

from oncofed.errors import FederationError
from oncofed.models.weights import WeightLayout, Weights, digest_of, layout_of, weights_of
from oncofed.training import Plan


class JobModel:
    """The model that a job trains.

    Args:
        plan: the job's.
        initial: file of initial weights that the job brings; None: its seed gives them.
        against: file of a model to compare with, if any.
    """

    def __init__(self, plan: Plan, initial: Path | None = None, against: Path | None = None) -> None:
        self._plan, self._initial, self._against = plan, initial, against

    @property
    def is_brought(self) -> bool:
        """Whether the job brings the initial weights."""
        return self._initial is not None

    def layout(self) -> WeightLayout:
        """Return the layout of its weights."""
        return self._plan.layout()

    def initial(self) -> tuple[WeightLayout, Weights]:
        """Return the layout of its weights, and their initial values.

        Raises:
            FederationError: the job brings weights of another network.
        """
        if self._initial is None:
            network = self._plan.build_network()
            return layout_of(network), {name: value.clone() for name, value in weights_of(network).items()}
        return self.layout(), self._fitting(self._initial)

    def against(self) -> str | None:
        """Return the digest of the other model, if any.

        Raises:
            FederationError: it belongs to another network.
        """
        if self._against is None:
            return None
        return digest_of(self._fitting(self._against), hashlib.sha256).hexdigest()

    def _fitting(self, brought: Path) -> Weights:
        layout, model = self.layout(), load_file(brought)
        if {n: v.shape for n, v in model.items()} != {n: v.shape for n, v in layout.weights.items()}:
            raise FederationError("a model that the job brings along is not one of its network")
        return model
