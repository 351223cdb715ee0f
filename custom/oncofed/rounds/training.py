"""Sites train in a round, whatever its schedule."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from oncofed.algorithms import Update
from oncofed.algorithms.base import Algorithm
from oncofed.algorithms.schedule import Schedule
from oncofed.errors import NotEnoughSitesError
from oncofed.messages.requests import TrainRequest
from oncofed.messages.results import Refusal, Result
from oncofed.models.weights import Weights
from oncofed.rounds.context import RoundContext
from oncofed.rounds.events import TaskSent
from oncofed.rounds.intake import ExpectedUpdate
from oncofed.rounds.quorum import Goal
from oncofed.rounds.round_state import RoundState
from oncofed.rounds.run_state import RunState
from oncofed.rounds.site_task import SiteTask

ScheduleT = TypeVar("ScheduleT", bound=Schedule)


@dataclass(frozen=True)
class RoundResult:
    """The result of a round.

    Attributes:
        current: results of its sites.
        updates: those that the algorithm is to aggregate; none if the schedule made the next model itself.
        model: that model.
    """

    current: RoundState
    updates: list[Update] = dataclasses.field(default_factory=list)
    model: Weights = dataclasses.field(default_factory=dict)


class RoundRunner(ABC, Generic[ScheduleT]):
    """Carries out the rounds of one schedule.

    Args:
        context: of the run.
        algorithm: the job's.
        schedule: the algorithm's.
    """

    def __init__(self, context: RoundContext, algorithm: Algorithm[Any], schedule: ScheduleT) -> None:
        self._context = context
        self._algorithm = algorithm
        self._schedule = schedule

    @abstractmethod
    def run(self, number: int, state: RunState, current: RoundState) -> RoundResult:
        """Carry out a round.

        Args:
            number: of the round.
            state: of the run.
            current: with the sites that are to train, and late updates of earlier rounds.

        Raises:
            NotEnoughSitesError: too few sites are left.
        """

    def too_few(self, what: str) -> NotEnoughSitesError:
        """Return the error of a round that no site is left for."""
        return NotEnoughSitesError(self._context.quorum.too_few(what, 0, 1))


class Training(Goal):
    """Sites train one model.

    Args:
        context: of the run.
        request: with the model. It is released once the task is closed, since late results keep this object alive.
        sites: those that are to train it.
        current: takes their results.
        expected: form of valid updates.
        repeatable: sites train again and again.
    """

    # Whether a request gives the reason if the site's last update did not count.
    _reports_refusals = True

    def __init__(
        self,
        context: RoundContext,
        *,
        request: TrainRequest,
        sites: Collection[str],
        current: RoundState,
        expected: ExpectedUpdate,
        repeatable: bool = False,
    ) -> None:
        self._context = context
        self._current = current
        self._expected = expected
        self.description = f"round {request.round}"
        self.task = SiteTask(
            name=TrainRequest.task,
            sites=set(sites),
            make_request=partial(self._make_request, request),
            on_result=self._on_result,
            repeatable=repeatable,
        )

    def _make_request(self, request: TrainRequest, site: str) -> TrainRequest:
        refusal = self._context.intake.reasons.pop(site, None) if self._reports_refusals else None
        self._context.record(TaskSent(task=TrainRequest.task, round=request.round, split="validation", sites=[site]))
        repeat = self._context.intake.updates_from(site, self._current)
        return dataclasses.replace(request, refusal=refusal, repeat=repeat)

    def _on_result(self, site: str, result: Result | Refusal, task: SiteTask) -> None:
        self._context.intake.accept(site, result, task, self._current, self._expected)

    def run(self) -> None:
        """Wait until the round has what it needs."""
        self._context.transport.open(self.task)
        self._context.quorum.wait_for(self)
        self._context.transport.close(self.task)

    def is_reached(self) -> bool:
        """Return whether all present sites have answered.

        Once time is up, the quorum suffices.
        """
        self._invite()
        self._context.intake.drop_revoked(self._current, self._expected.round)
        return self._context.quorum.is_complete(self.task, self._current, enough=self.have >= self.needed)

    def _invite(self) -> None:
        """Add sites that joined since, unless sites are drawn."""
        rules, asked = self._context.federation.rounds, self._current.asked
        new = set(self._context.sites.able(rules.minimum_cases)) - set(asked)
        if new and rules.sites_per_round is None:
            asked.extend(new)
            asked.sort()
            self._context.transport.add_sites(self.task, new)

    @property
    def have(self) -> int:
        """Updates that count."""
        return len(self._current.updates)

    @property
    def needed(self) -> int:
        """Updates of a quorum."""
        return self._context.quorum.needed(self._current.asked, self._current.refused)

    @property
    def refused(self) -> Mapping[str, str]:
        """Sites whose update does not count."""
        return self._current.refused

    @property
    def unable(self) -> Collection[str]:
        """Refused sites that may be able to train later."""
        return list(self._current.unable)

    @property
    def idle(self) -> Collection[str]:
        """Sites that were not drawn, or have too few cases."""
        return self._context.sites.cases.keys() - set(self._current.asked)
