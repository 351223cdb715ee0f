"""A round whose updates a site averages, drawn in each round."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Mapping

from torch import Tensor

from oncofed.algorithms.schedule import PeerAveraged
from oncofed.errors import UpdateRejectedError
from oncofed.messages.requests import CombineRequest, PeerUpdate, TrainRequest
from oncofed.messages.results import Refusal, Result
from oncofed.rounds.context import RoundContext, moved
from oncofed.rounds.events import Answered, TaskSent
from oncofed.rounds.quorum import LOOK_SECONDS
from oncofed.rounds.round_state import RoundState
from oncofed.rounds.run_state import RunState
from oncofed.rounds.site_task import SiteTask
from oncofed.rounds.training import RoundResult, RoundRunner, Training


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
        raise self.too_few(f"round {number} has no site that puts the updates together")

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
