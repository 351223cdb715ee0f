"""Carry out a round by the algorithm's schedule."""

from __future__ import annotations

import dataclasses
import random
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from torch import Tensor

from oncofed.algorithms import Update
from oncofed.algorithms.base import Algorithm
from oncofed.algorithms.schedule import Buffered, PeerAveraged, Schedule, Sequential, Synchronous
from oncofed.errors import NotEnoughSitesError, SpecError, UpdateRejectedError
from oncofed.messages.requests import CombineRequest, PeerUpdate, TrainRequest
from oncofed.messages.results import Refusal, Result
from oncofed.models.weights import Weights
from oncofed.rounds.context import RoundContext, moved
from oncofed.rounds.events import Answered, TaskSent
from oncofed.rounds.intake import ExpectedUpdate
from oncofed.rounds.quorum import LOOK_SECONDS, Goal
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

    def _too_few(self, what: str) -> NotEnoughSitesError:
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


class _BufferedTraining(Training):
    """Sites train again and again, until the buffer is full.

    Args:
        context: of the run.
        size: of the buffer.
        values: of ``Training``.
    """

    def __init__(self, context: RoundContext, *, size: int, **values: Any) -> None:
        super().__init__(context, repeatable=True, **values)
        self._size = size

    def is_reached(self) -> bool:
        """Return whether the buffer is full.

        Updates of earlier rounds count.
        """
        self._context.intake.admit_late(self._current, self._expected.round)
        self._context.intake.drop_revoked(self._current, self._expected.round)
        return self.have >= self._size

    @property
    def needed(self) -> int:
        """Size of the buffer."""
        return self._size

    @property
    def refused(self) -> Mapping[str, str]:
        """No site: a refused one trains again."""
        return {}

    @property
    def unable(self) -> Collection[str]:
        """No site."""
        return ()


class SynchronousRunner(RoundRunner[ScheduleT]):
    """All sites train the same model at the same time."""

    def run(self, number: int, state: RunState, current: RoundState) -> RoundResult:
        """Wait for the sites' updates."""
        outgoing = self._context.outgoing(state.model)
        self._training(
            request=TrainRequest(weights=outgoing, round=number, extra=self._algorithm.for_clients()),
            sites=current.asked,
            current=current,
            expected=self._context.intake.expected(number, state.model),
        ).run()
        updates = self._context.intake.without_outliers(current, state)
        if not updates:
            raise self._too_few(f"round {number} has no update that counts")
        return RoundResult(current, updates)

    def _training(self, **values: Any) -> Training:
        return Training(self._context, **values)


class BufferedRunner(SynchronousRunner[Buffered]):
    """Sites never wait; a full buffer ends the round."""

    def run(self, number: int, state: RunState, current: RoundState) -> RoundResult:
        """Wait for a full buffer.

        Too few sites to fill it are refused at once.
        """
        try:
            self._algorithm.check_sites(len(set(current.asked) - self._context.transport.banned))
        except SpecError as error:
            raise NotEnoughSitesError(str(error)) from None
        return super().run(number, state, current)

    def _training(self, **values: Any) -> Training:
        return _BufferedTraining(self._context, size=self._schedule.size, **values)


class _OneSiteTraining(Training):
    """One site trains."""

    _reports_refusals = False


class SequentialRunner(RoundRunner[Sequential]):
    """One site after the other trains the model further."""

    def run(self, number: int, state: RunState, current: RoundState) -> RoundResult:
        """Wait for one site after the other.

        Their order is drawn for each round. Sites that are away, or not done at their deadline, are left out. A site
        that is revoked once others have trained its model further stays in it: that cannot be undone within the round.
        """
        context, model = self._context, state.model
        draw = random.Random(f"{context.seed} {number}")  # noqa: S311 - not a secret
        expected = context.intake.expected(number, model)
        for site in draw.sample(current.asked, len(current.asked)):
            if site in context.sites.lost:
                continue
            before = len(current.updates)
            request = TrainRequest(weights=context.outgoing(model), round=number)
            task = _OneSiteTraining(context, request=request, sites=[site], current=current, expected=expected).task
            context.transport.open(task)
            context.quorum.wait_for_site(task, site)
            context.transport.close(task)
            context.intake.drop_revoked(current, number, {site})
            if len(current.updates) > before:
                model = moved(model, current.updates[-1].delta)
        if not current.updates:
            raise self._too_few(f"round {number} has no update that counts")
        return RoundResult(current, model=model)


class _PeerTraining(Training):
    """Sites train, and send their updates to a collector."""

    def _on_result(self, site: str, result: Result | Refusal, task: SiteTask) -> None:
        super()._on_result(site, result, task)
        current = self._current
        if site in current.numbers and not current.numbers[site].get("update"):
            current.leave_out(site)
            current.apart[site] = self._context.clock()

    def is_reached(self) -> bool:
        """Return whether all present sites answered.

        Also true once the collector is lost.
        """
        if self._current.collector in self._context.sites.lost:
            return True
        self._retry_apart()
        return super().is_reached()

    def _retry_apart(self) -> None:
        """Retry sites whose update did not reach the collector."""
        context, current, now = self._context, self._current, self._context.clock()
        for site, since in list(current.apart.items()):
            if now - current.started > context.federation.rounds.return_s:
                del current.apart[site]
                reason = f"its update did not reach {current.collector}"
                context.intake.refuse(current, site, reason, self._expected.round)
            elif now - since > LOOK_SECONDS:
                del current.apart[site]
                context.transport.retry(self.task, site)


class _Combining:
    """A collector averages the updates that peers sent it.

    Args:
        context: of the run.
        request: which updates.
        collector: the site.
    """

    def __init__(self, context: RoundContext, request: CombineRequest, collector: str) -> None:
        self._context = context
        self._request = request
        self._collector = collector
        self._results: list[Result | Refusal] = []

    def run(self) -> Result | Refusal | None:
        """Return its result; None after the deadline."""
        task = SiteTask(
            name=CombineRequest.task,
            sites={self._collector},
            make_request=self._make_request,
            on_result=self._on_result,
        )
        self._context.transport.open(task)
        self._context.quorum.wait_for_site(task, self._collector)
        self._context.transport.close(task)
        return self._results[0] if self._results else None

    def _make_request(self, site: str) -> CombineRequest:
        self._context.record(TaskSent(task=CombineRequest.task, round=self._request.round, split="", sites=[site]))
        return self._request

    def _on_result(self, site: str, result: Result | Refusal, task: SiteTask) -> None:
        del task
        self._results.append(result)
        self._context.record(Answered(site=site, task=CombineRequest.task, round=self._request.round))


class PeerAveragedRunner(RoundRunner[PeerAveraged]):
    """A collector among the sites averages the updates."""

    def run(self, number: int, state: RunState, current: RoundState) -> RoundResult:
        """Wait for the mean."""
        context = self._context
        outgoing, expected = context.outgoing(state.model), context.intake.expected(number, state.model)
        draw = random.Random(f"{context.seed} collector {number}")  # noqa: S311 - not a secret
        order = draw.sample(current.asked, len(current.asked))
        started, failed = current.started, set[str]()
        misses: dict[str, Counter[str]] = defaultdict(Counter)  # how often a collector lacked each site's update
        while True:
            collector = self._collector([site for site in order if site not in failed], number, started)
            current = RoundState(started=started, asked=current.asked, collector=collector)
            request = TrainRequest(weights=outgoing, round=number, collector=collector)
            _PeerTraining(context, request=request, sites=current.asked, current=current, expected=expected).run()
            if collector in context.sites.lost:
                continue
            context.intake.drop_revoked(current, number)
            missed = misses[collector]
            for site in sorted({update.site for update in current.updates if missed[update.site] > 1}):
                self._leave_out(current, site, f"its update did not reach {collector}", number)
            wanted = [update.site for update in current.updates]
            mean, missing = self._combine(collector, number, current, state)
            if mean is not None:
                return RoundResult(current, model=moved(state.model, mean))
            # A restarted collector has lost its updates: sites send again what they kept. If it lacks all of them
            # again, the collector has failed. Otherwise sites whose update it lacks twice are left out: they may report
            # digests of updates that they never sent.
            missed.update(missing)
            if not missing or all(missed[site] > 1 for site in wanted):
                failed.add(collector)

    def _collector(self, able: list[str], number: int, started: float) -> str:
        """Return the first present site, waiting if needed."""
        context = self._context
        while able:
            for site in able:
                if site not in context.sites.lost:
                    return site
            if context.clock() - started > context.federation.rounds.return_s:
                break
            context.sites.watch(LOOK_SECONDS)
        raise self._too_few(f"round {number} has no site that puts the updates together")

    def _combine(
        self, collector: str, number: int, current: RoundState, state: RunState
    ) -> tuple[Mapping[str, Tensor] | None, list[str]]:
        """Return the mean, or the sites whose update is missing."""
        context = self._context
        cases = {update.site: update.cases for update in current.updates}
        updates = {s: PeerUpdate(digest=str(current.numbers[s].get("update")), cases=n) for s, n in cases.items()}
        result = _Combining(context, CombineRequest(updates=updates, round=number), collector).run()
        if result is None or collector in context.transport.banned:
            if collector not in context.sites.lost:
                context.intake.refuse(current, collector, "it did not put the updates together in time", number)
            return None, []
        try:
            mean, missing, left_out = context.intake.combined(collector, result, number, state, cases)
        except UpdateRejectedError as error:
            context.intake.refuse(current, collector, str(error), number)
            return None, []
        for site, reason in left_out.items():
            self._leave_out(current, site, reason, number)
        return mean, missing

    def _leave_out(self, current: RoundState, site: str, reason: str, number: int) -> None:
        self._context.intake.refuse(current, site, reason, number)
        current.leave_out(site)


_RUNNERS: Mapping[type[Schedule], type[RoundRunner[Any]]] = {
    Synchronous: SynchronousRunner,
    Buffered: BufferedRunner,
    Sequential: SequentialRunner,
    PeerAveraged: PeerAveragedRunner,
}


def runner_for(context: RoundContext, algorithm: Algorithm[Any]) -> RoundRunner[Any]:
    """Return the runner for an algorithm's schedule.

    Its schedule may be derived from one of those of ``algorithms.schedule``; ``check_settings`` refuses any other.
    """
    schedule = algorithm.schedule
    runner = next(_RUNNERS[kind] for kind in type(schedule).__mro__ if kind in _RUNNERS)
    return runner(context, algorithm, schedule)
