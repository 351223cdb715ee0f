"""Base of all algorithms: the server's and the clients' half."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Generic, TypeVar, overload

import torch
from torch import Tensor, nn

from oncofed.algorithms.schedule import SCHEDULES, Schedule, Synchronous
from oncofed.algorithms.settings import AlgorithmSettings, EvaluationSpec, RoundsSpec
from oncofed.errors import FederationError, SpecError
from oncofed.models.weights import WeightLayout, Weights, sum_of_squares
from oncofed.settings import SettingError
from oncofed.training.gradient_hook import GradientHook, PersonalHook


@dataclass(frozen=True)
class Update:
    """One site's update.

    Attributes:
        site: its name.
        delta: trained weights minus received weights, by name; for integer counters the value itself. A tensor may be
            read from a file on access.
        cases: training cases.
        steps: optimizer steps.
        staleness: rounds that ended since the site received its model.
        discount: factor on the weight, for staleness.
        extra: the tensors of ``Algorithm.from_clients``, by name.
        turn: order of arrival; sorts several updates of one site.
        squares: sums of squares of tensors, if known.
        norm: Euclidean norm that the site declares, where the server has no tensors (secure aggregation).
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
    norm: float | None = None

    @property
    def weight(self) -> float:
        """Weight in the mean."""
        return self.cases * self.discount


SettingsT = TypeVar("SettingsT", bound=AlgorithmSettings)


@dataclass(frozen=True)
class JobFacts:
    """Facts about a job that an algorithm may check.

    Attributes:
        network: the job's, built.
        network_name: as the job names it.
        norm: the job's ``model.norm``; None: the network's own.
        gpus: for each site.
    """

    network: nn.Module
    network_name: str
    norm: str | None
    gpus: int


class Algorithm(Generic[SettingsT]):
    """A federated learning algorithm.

    The default is federated averaging (McMahan et al., AISTATS 2017).

    A subclass overrides the parts in which its paper differs. The server's half reads and writes the global model one
    tensor at a time, so that any number of updates needs the memory of one tensor each. Updates are sorted by site
    before anything is added: floating-point addition is not associative, and the order of arrival must not change the
    model.

    Args:
        settings: the job's section ``strategy``.
        parameters: names of the trained weights. All others are statistics: they are averaged by every algorithm, since
            an optimizer step could make a variance negative. A client needs none.

    Example:
        >>> from oncofed.algorithms.fedavg import FedAvg
        >>> fedavg = FedAvg(FedAvg.Settings(), frozenset({"w"}))
        >>> updates = [Update("a", {"w": torch.ones(1)}, cases=3), Update("b", {"w": -torch.ones(1)}, cases=1)]
        >>> fedavg.aggregate({"w": torch.zeros(1)}, updates, sites=2)
        {'w': tensor([0.5000])}
    """

    Settings: ClassVar[type[AlgorithmSettings]]
    # Whether ``aggregate`` gives the same model from the weighted mean of all updates as from each of them, so that
    # secure aggregation may hide these. ``select`` then derives shares from cases, steps and norms alone, and
    # ``summands`` says what is added up beside the mean.
    needs_only_sums: ClassVar[bool] = False
    # Whether the client's half reads the weights of a round's last step as those that the server is sent, which with
    # ``training.ema_decay`` they are not.
    follows_last_step: ClassVar[bool] = False

    def __init__(self, settings: SettingsT, parameters: frozenset[str] = frozenset()) -> None:
        self.settings = settings
        self._parameters = parameters
        self._state: Weights = {}

    # --- requirements

    @property
    def schedule(self) -> Schedule:
        """Order in which sites train."""
        return Synchronous()

    @property
    def fewest_updates(self) -> int:
        """Fewest updates that it can aggregate."""
        return 1

    def check_settings(self, rounds: RoundsSpec, evaluation: EvaluationSpec) -> None:
        """Refuse sections of a job that do not fit together.

        Raises:
            ValueError: names the change to make.
        """
        if not isinstance(self.schedule, SCHEDULES):
            known = ", ".join(kind.__name__ for kind in SCHEDULES)
            raise SettingError(
                f"{self.settings.name} has the schedule {type(self.schedule).__name__}, expected one that is derived "
                f"from one of {known}",
                "strategy",
            )
        self.schedule.check(self.settings.name, rounds, evaluation)
        if rounds.quorum and rounds.quorum < self.fewest_updates:
            raise SettingError(
                f"found {rounds.quorum}, expected at least the {self.fewest_updates} updates that "
                f"{self.settings.name} needs (strategy)",
                "rounds.quorum",
            )

    @property
    def why_not_private(self) -> str | None:
        """Why a job with differential privacy cannot have it; None: it can."""
        if self.personal_hook() is not None:
            return "trains a personal model too, whose steps are not charged, and whose scores leave"
        return self.schedule.why_not_private

    def check_sites(self, sites: int) -> None:
        """Refuse a job that needs more sites than there are.

        Raises:
            SpecError: says how many were found and how many are needed.
        """
        fewest, name = self.fewest_updates, self.settings.name
        if sites < fewest:
            raise SpecError(
                f"the job needs {fewest} sites (strategy {name}), found {sites}. Name more sites, or lower it."
            )

    def check_job(self, job: JobFacts) -> None:
        """Refuse a job whose network or machines do not fit.

        Raises:
            SpecError: names what was found and what would fit.
        """
        name = self.settings.name
        if (self.gradient_hook() or self.personal_hook()) and job.gpus > 1:
            raise SpecError(
                f"strategy {name} changes gradients in one process, found resources.gpus: {job.gpus}. Set it to 1, or "
                "take a strategy that leaves the sites alone, such as fedadam."
            )

    # --- what travels in addition to the weights

    def from_clients(self, layout: WeightLayout) -> Weights:
        """Return the shapes of the extra tensors from clients.

        They are named; their values do not matter.

        Args:
            layout: of the model.
        """
        return {}

    def for_clients(self) -> Weights:
        """Return extra tensors for clients, by name."""
        return {}

    def for_clients_layout(self, layout: WeightLayout) -> Weights:
        """Return the shapes of ``for_clients``'s tensors, by name.

        Their values do not matter.
        """
        return {}

    def summands(self, delta: Weights, extra: Weights, trained: Collection[str]) -> Weights:
        """Return what secure aggregation adds up over the sites, each with weight one.

        The server gets the sums as the one update's ``extra``.

        Args:
            delta: the site's update.
            extra: its extra tensors.
            trained: names of the trained weights.
        """
        del delta, trained
        return extra

    # --- the clients' half

    def gradient_hook(self) -> GradientHook | None:
        """Return a hook on clients' gradients; None: unchanged."""
        return None

    def personal_hook(self) -> PersonalHook | None:
        """Return the hook of personal models; None: no such models.

        It holds a client's personal model near the global one.
        """
        return None

    def kept_locally(self, network: nn.Module) -> set[str]:
        """Return names of weights that each client keeps locally."""
        return set()

    # --- the server's half

    @property
    def state(self) -> Weights:
        """Tensors from which a restarted server goes on, by name."""
        return self._state

    def restore(self, state: Weights) -> None:
        """Restore the state of an earlier process."""
        self._state = dict(state)

    def aggregate(self, model: Weights, updates: Sequence[Update], sites: int) -> Weights:
        """Return the next global model.

        Args:
            model: the global model, by name. Its tensors are removed one by one, so that memory never holds two models.
            updates: at least one, each with the model's names.
            sites: number of sites of the federation.

        Raises:
            FederationError: there are too few updates, or no cases behind them.
        """
        ordered = sorted(updates, key=lambda update: (update.site, update.turn))
        total = sum(update.weight for update in ordered)
        if total <= 0:
            raise FederationError(f"nothing to average: {len(ordered)} updates with {total} cases in all")
        shares = [update.weight / total for update in ordered]
        selected, selected_shares = self.select(model, ordered, shares, sites)
        result: Weights = {}
        for name in list(model):
            value = model.pop(name)
            if name not in selected[0].delta:
                result[name] = value  # not trained by any site
                continue
            if not value.is_floating_point():
                result[name] = selected[0].delta[name].clone()
                continue
            deltas = _Deltas(selected, name)
            if name in self._parameters:
                result[name] = self.update_tensor(name, value, deltas, selected_shares)
            else:
                result[name] = weighted_sum(deltas, selected_shares).add_(value)
        return result

    def select(
        self, model: Weights, updates: Sequence[Update], shares: Sequence[float], sites: int
    ) -> tuple[Sequence[Update], Sequence[float]]:
        """Return the updates to aggregate and their shares.

        It is called before the first tensor.
        """
        return updates, shares

    def update_tensor(self, name: str, value: Tensor, deltas: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
        """Return the next value of one trained tensor."""
        return weighted_sum(deltas, shares).add_(value)

    def state_tensor(self, name: str, like: Tensor) -> Tensor:
        """Return a tensor of the state, zeros at first."""
        return self._state.setdefault(name, torch.zeros_like(like))


def weighted_sum(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Return the weighted sum, added in the order given."""
    total = tensors[0] * weights[0]
    for number in range(1, len(tensors)):
        total.add_(tensors[number], alpha=weights[number])
    return total


def update_norm(update: Update, parameters: frozenset[str]) -> float:
    """Return an update's Euclidean norm over all trained weights."""
    if update.norm is not None:
        return update.norm
    known = update.squares
    return math.sqrt(
        sum(known[name] if name in known else sum_of_squares(update.delta[name]) for name in sorted(parameters))
    )


class _Deltas(Sequence[Tensor]):
    """One tensor of each update, read on access.

    A mean thus holds two tensors at a time.

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
