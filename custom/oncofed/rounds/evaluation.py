"""Sites score a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from functools import partial

from oncofed.errors import UpdateRejectedError
from oncofed.messages.requests import EvaluateRequest
from oncofed.messages.results import Refusal, Result
from oncofed.rounds.context import RoundContext
from oncofed.rounds.events import Answered, TaskSent
from oncofed.rounds.intake import may_pass
from oncofed.rounds.quorum import Goal
from oncofed.rounds.round_state import RoundState
from oncofed.rounds.site_task import SiteTask


class Evaluation(Goal):
    """Has every site that joined score a model.

    Args:
        context: of the run.
        request: the model, and what to score it on.
    """

    def __init__(self, context: RoundContext, request: EvaluateRequest) -> None:
        self._context = context
        self._number, self._split = request.round, request.split
        self._current = RoundState(started=context.clock())
        self._current.asked = sorted(site for site in context.sites.cases if site not in context.sites.lost)
        self._task = SiteTask(
            name=EvaluateRequest.task,
            sites=set(self._current.asked),
            make_request=partial(self._make_request, request),
            on_result=self._on_result,
        )
        self.description = f"{request.split} after round {request.round}"

    def run(self) -> RoundState:
        """Return the sites' scores."""
        context = self._context
        context.transport.open(self._task)
        # Sites that are away may still come back and answer.
        context.transport.add_sites(self._task, set(context.sites.cases))
        context.quorum.wait_for(self)
        context.transport.close(self._task)
        # Late scores still reach the original.
        current = self._current
        return dataclasses.replace(current, numbers=dict(current.numbers), ready=dict(current.ready))

    def _make_request(self, request: EvaluateRequest, site: str) -> EvaluateRequest:
        self._context.record(TaskSent(task=EvaluateRequest.task, round=self._number, split=self._split, sites=[site]))
        return request

    def _on_result(self, site: str, result: Result | Refusal, task: SiteTask) -> None:
        del task
        intake = self._context.intake
        try:
            numbers, ready = intake.scores(site, result)
        except UpdateRejectedError as error:
            intake.refuse(self._current, site, str(error), self._number, may_pass(result))
            return
        self._current.numbers[site] = numbers
        if ready:
            self._current.ready[site] = ready
        self._context.record(Answered(site=site, task=EvaluateRequest.task, round=self._number))

    def is_reached(self) -> bool:
        """Return whether enough sites scored it.

        Others that are at work are awaited, too.
        """
        self._context.intake.drop_revoked(self._current, self._number)
        return self._context.quorum.is_complete(self._task, self._current, enough=self.have >= self.needed)

    @property
    def have(self) -> int:
        """Sites that scored it."""
        return len(self._current.numbers)

    @property
    def needed(self) -> int:
        """Sites that must score it."""
        return self._context.quorum.needed(self._context.sites.cases, self._current.refused)

    @property
    def refused(self) -> Mapping[str, str]:
        """Sites that could not."""
        return self._current.refused

    @property
    def unable(self) -> Collection[str]:
        """Refused sites that may be able to later."""
        return list(self._current.unable)
