"""Strategies that give the mean update a memory at the server."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from oncofed.algorithms.base import Strategy, Update, weighted_sum
from oncofed.models.weights import Weights


class FedAvgM(Strategy):
    """Momentum at the server (Hsu, Qi and Brown, 2019, arXiv:1909.06335)."""

    def __init__(self, parameters: frozenset[str], learning_rate: float = 1.0, momentum: float = 0.9) -> None:
        super().__init__(parameters)
        self._rate, self._momentum = learning_rate, momentum

    def move(self, name: str, value: Tensor, deltas: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
        """Step along the running sum of mean updates."""
        velocity = self.remembered(f"velocity.{name}", value)
        velocity.mul_(self._momentum).add_(weighted_sum(deltas, shares))
        return value + self._rate * velocity


class FedAdam(Strategy):
    """Adam at the server (Reddi et al., ICLR 2021, algorithm 2), without bias correction, as in the paper."""

    def __init__(
        self,
        parameters: frozenset[str],
        learning_rate: float = 0.01,
        momentum: float = 0.9,
        second_momentum: float = 0.99,
        tau: float = 1e-3,
    ) -> None:
        super().__init__(parameters)
        self._rate, self._beta1, self._beta2, self._tau = learning_rate, momentum, second_momentum, tau

    def move(self, name: str, value: Tensor, deltas: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
        """Step along the running mean of updates, each weight by its own scale."""
        delta = weighted_sum(deltas, shares)
        first = self.remembered(f"first.{name}", value)
        first.mul_(self._beta1).add_(delta, alpha=1 - self._beta1)
        key = f"second.{name}"
        if key not in self._state:
            self._state[key] = torch.full_like(value, self._tau**2)
        second = self._state[key]
        self._second(second, delta.square())
        return value + self._rate * first / (second.sqrt() + self._tau)

    def _second(self, second: Tensor, square: Tensor) -> None:
        second.mul_(self._beta2).add_(square, alpha=1 - self._beta2)


class FedYogi(FedAdam):
    """Yogi at the server (Reddi et al., ICLR 2021, algorithm 2): the scale falls slowly where updates get small."""

    def _second(self, second: Tensor, square: Tensor) -> None:
        second.sub_((1 - self._beta2) * square * torch.sign(second - square))


class Scaffold(Strategy):
    """Control variates (Karimireddy et al., ICML 2020, algorithm 1).

    A site's control is the mean gradient that it saw in its turn, which for plain SGD is the paper's option II, and
    holds for any other optimizer too. Sites send by how much theirs changed.
    """

    def __init__(self, parameters: frozenset[str], learning_rate: float = 1.0) -> None:
        super().__init__(parameters)
        self._rate = learning_rate
        self._control: dict[str, Tensor] = {}

    def for_sites(self) -> Weights:
        """Return the server's control."""
        return {f"control.{name}": value for name, value in self._state.items()}

    def begin(
        self, model: Weights, updates: Sequence[Update], shares: Sequence[float], sites: int
    ) -> tuple[Sequence[Update], Sequence[float]]:
        """Move the server's control by the mean change of the sites' controls."""
        for name, value in model.items():
            if name not in self._parameters:
                continue
            changes = [u.extra[f"control.{name}"] for u in updates if f"control.{name}" in u.extra]
            if changes:
                control = self.remembered(name, value)
                self._state[name] = control + weighted_sum(changes, [1 / max(sites, len(changes))] * len(changes))
        return updates, shares

    def move(self, name: str, value: Tensor, deltas: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
        """Step along the mean update."""
        return value + self._rate * weighted_sum(deltas, shares)


class FedDyn(Strategy):
    """Dynamic regularisation (Acar et al., ICLR 2021, algorithm 1); the server's half."""

    def __init__(self, parameters: frozenset[str], alpha: float = 0.01) -> None:
        super().__init__(parameters)
        self._alpha = alpha
        self._sites = 1

    def begin(
        self, model: Weights, updates: Sequence[Update], shares: Sequence[float], sites: int
    ) -> tuple[Sequence[Update], Sequence[float]]:
        """Remember how many sites there are: those that were not asked count as unchanged."""
        self._sites = max(sites, len(updates))
        return updates, shares

    def move(self, name: str, value: Tensor, deltas: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
        """Take the mean model, less what the sites' losses were bent by."""
        bent = self.remembered(f"bent.{name}", value)
        bent.sub_(weighted_sum(deltas, [1 / self._sites] * len(deltas)), alpha=self._alpha)
        return value + weighted_sum(deltas, shares) - bent / self._alpha


class FedBuff(Strategy):
    """A step along the buffer's mean update (Nguyen et al., AISTATS 2022); stale ones weigh less."""

    def __init__(self, parameters: frozenset[str], learning_rate: float = 1.0) -> None:
        super().__init__(parameters)
        self._rate = learning_rate

    def move(self, name: str, value: Tensor, deltas: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
        """Step along the mean update."""
        return value + self._rate * weighted_sum(deltas, shares)


class FedNova(Strategy):
    """Normalised averaging (Wang et al., NeurIPS 2020): a site that took more steps does not count for more."""

    def begin(
        self, model: Weights, updates: Sequence[Update], shares: Sequence[float], sites: int
    ) -> tuple[Sequence[Update], Sequence[float]]:
        """Divide each share by its steps, and multiply by the mean number of steps."""
        effective = sum(share * update.steps for share, update in zip(shares, updates, strict=True))
        return updates, [
            share * effective / max(update.steps, 1) for share, update in zip(shares, updates, strict=True)
        ]
