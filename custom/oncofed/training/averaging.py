"""A running mean of the weights over steps, in place of the last step's.

The mean forgets the past by ``ema_decay`` at most, and sooner where few steps are behind it, so that it spans a tenth
of a short turn and not all of it. A model that a site receives begins it anew: what leaves a round is of that round
alone. The optimizer itself goes on from the weights of its last step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from oncofed.models.weights import weights_of
from oncofed.training.checkpoint import Tensors

_TAKEN = "taken"


class WeightAverage:
    """An exponential moving average of a network's trained weights and statistics.

    Its decay after n steps is at most (1 + n) / (10 + n), as TensorFlow's ``ExponentialMovingAverage`` has it.

    Args:
        network: whose weights they are.
        decay: of the mean in each step; 0: there is none, and all that follows does nothing.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self._decay, self._taken = decay, 0
        fixed = {name for name, value in network.named_parameters() if not value.requires_grad}
        known = weights_of(network) if decay else {}
        self._weights = {n: v for n, v in known.items() if v.is_floating_point() and n not in fixed}
        self._means = {name: value.clone() for name, value in self._weights.items()}

    def restart(self) -> None:
        """Begin with the network's present weights."""
        self._taken = 0
        for name, value in self._weights.items():
            self._means[name].copy_(value)

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after a step."""
        self._taken += 1
        decay = min(self._decay, (1 + self._taken) / (10 + self._taken))
        if self._means:
            torch._foreach_lerp_([*self._means.values()], [*self._weights.values()], 1 - decay)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Have the mean in the network meanwhile."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def state(self) -> Tensors:
        """Return the mean and its number of steps; empty without a mean."""
        return {**self._means, _TAKEN: torch.tensor(self._taken)} if self._means else {}

    def restore(self, state: Tensors) -> None:
        """Go on from a state of the same network."""
        if self._means:
            self._taken = int(state[_TAKEN])
            for name, value in self._means.items():
                value.copy_(state[name])

    @torch.no_grad()
    def _swap(self) -> None:
        for name, value in self._weights.items():
            held: Tensor = value.clone()
            value.copy_(self._means[name])
            self._means[name].copy_(held)
