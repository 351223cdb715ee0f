"""What a strategy is: how a global model moves, given what each site changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import overload

import torch
from torch import Tensor

from oncofed.errors import FederationError
from oncofed.models.weights import Weights


@dataclass(frozen=True)
class Update:
    """What one site sends after its turn.

    Attributes:
        site: its name.
        delta: its weights less those that it was given, by name; of counters (integers) the value itself. It may read
            each tensor from a file when asked for it.
        cases: training cases behind it.
        steps: optimizer steps behind it.
        staleness: rounds that ended since the site was given its model.
        discount: factor on its weight, for staleness.
        extra: what the strategy asks of sites beside weights, by name.
        turn: number of this site's turns so far; orders several updates of one site.
        squares: the sum of a tensor's squares, of those where it is known already.
    """

    site: str
    delta: Mapping[str, Tensor]
    cases: int
    steps: int = 1
    staleness: int = 0
    discount: float = 1.0
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    turn: int = 0
    squares: Mapping[str, float] = field(default_factory=dict)

    @property
    def weight(self) -> float:
        """How much this update counts."""
        return self.cases * self.discount


class Strategy:
    """Moves the global model. As it stands this is federated averaging (McMahan et al., AISTATS 2017).

    Tensors are taken one by one, so that the updates of any number of sites need the memory of one tensor each.
    Updates are ordered by site before anything is added: floating-point addition is not associative, and the order in
    which they arrive must not change the model.

    Args:
        parameters: names of the weights that are trained. All others are statistics: their weighted mean is taken
            whatever the strategy, since a step of an optimizer could make a variance negative.

    Example:
        >>> mean = Strategy(frozenset({"w"}))
        >>> updates = [Update("a", {"w": torch.ones(1)}, cases=3), Update("b", {"w": -torch.ones(1)}, cases=1)]
        >>> mean.step({"w": torch.zeros(1)}, updates, sites=2)
        {'w': tensor([0.5000])}
    """

    def __init__(self, parameters: frozenset[str]) -> None:
        self._parameters = parameters
        self._state: Weights = {}

    @property
    def state(self) -> Weights:
        """What a later process needs to go on, by name."""
        return self._state

    def restore(self, state: Weights) -> None:
        """Go on from the state of an earlier process."""
        self._state = dict(state)

    def for_sites(self) -> Weights:
        """Return what sites are given beside the model."""
        return {}

    def step(self, model: Weights, updates: Sequence[Update], sites: int) -> Weights:
        """Return the next global model.

        Args:
            model: the global model, by name. Each tensor is taken out of it for the next one, so that no two models are
                held whole.
            updates: at least one, each with the model's names.
            sites: how many sites the federation has.

        Raises:
            FederationError: there are too few updates, or no case behind them.
        """
        ordered = sorted(updates, key=lambda update: (update.site, update.turn))
        total = sum(update.weight for update in ordered)
        if total <= 0:
            raise FederationError(f"nothing to average: {len(ordered)} updates with {total} cases in all")
        shares = [update.weight / total for update in ordered]
        kept, kept_shares = self.begin(model, ordered, shares, sites)
        moved: Weights = {}
        for name in list(model):
            value = model.pop(name)
            if name not in kept[0].delta:
                moved[name] = value  # no site trains it
                continue
            if not value.is_floating_point():
                moved[name] = kept[0].delta[name].clone()
                continue
            deltas = _Deltas(kept, name)
            if name in self._parameters:
                moved[name] = self.move(name, value, deltas, kept_shares)
            else:
                moved[name] = weighted_sum(deltas, kept_shares).add_(value)
        return moved

    def begin(
        self, model: Weights, updates: Sequence[Update], shares: Sequence[float], sites: int
    ) -> tuple[Sequence[Update], Sequence[float]]:
        """Return the updates to take, and the share of each; called before the first tensor."""
        return updates, shares

    def move(self, name: str, value: Tensor, deltas: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
        """Return the next value of one tensor."""
        return weighted_sum(deltas, shares).add_(value)

    def remembered(self, name: str, like: Tensor) -> Tensor:
        """Return a tensor of this strategy's state, zeros at first."""
        return self._state.setdefault(name, torch.zeros_like(like))


def weighted_sum(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Return the sum of tensors, each times its weight, added in the order given."""
    total = tensors[0] * weights[0]
    for number in range(1, len(tensors)):
        total.add_(tensors[number], alpha=weights[number])
    return total


class _Deltas(Sequence[Tensor]):
    """One tensor of each update, read when it is asked for: a mean holds two of them at a time, however many there are.

    Args:
        updates: in their order.
        name: of the tensor.
    """

    def __init__(self, updates: Sequence[Update], name: str) -> None:
        self._updates, self._name = updates, name

    def __len__(self) -> int:
        return len(self._updates)

    @overload
    def __getitem__(self, number: int) -> Tensor: ...

    @overload
    def __getitem__(self, number: slice) -> Sequence[Tensor]: ...

    def __getitem__(self, number: int | slice) -> Tensor | Sequence[Tensor]:
        if isinstance(number, slice):
            return _Deltas(self._updates[number], self._name)
        return self._updates[number].delta[self._name]
