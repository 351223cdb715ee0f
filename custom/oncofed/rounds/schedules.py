"""Carry out a round by the algorithm's schedule."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping
from typing import Any

from oncofed.algorithms.base import Algorithm
from oncofed.algorithms.schedule import Buffered, PeerAveraged, Schedule, Sequential, Synchronous
from oncofed.errors import NotEnoughSitesError, SpecError
from oncofed.messages.requests import TrainRequest
from oncofed.rounds.context import RoundContext, moved
from oncofed.rounds.peer_averaging import PeerAveragedRunner
from oncofed.rounds.round_state import RoundState
from oncofed.rounds.run_state import RunState
from oncofed.rounds.training import RoundResult, RoundRunner, ScheduleT, Training


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
            raise self.too_few(f"round {number} has no update that counts")
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
            raise self.too_few(f"round {number} has no update that counts")
        return RoundResult(current, model=model)


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
