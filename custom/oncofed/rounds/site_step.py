"""One step of sites that have to answer together."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

from oncofed.errors import OncofedError
from oncofed.messages.requests import Request
from oncofed.messages.results import Refusal, Result
from oncofed.messages.secure_aggregation import SecureStep
from oncofed.rounds.context import RoundContext
from oncofed.rounds.events import Answered, Dropped, Refused, TaskSent
from oncofed.rounds.quorum import LOOK_SECONDS
from oncofed.rounds.site_task import SiteTask


class SiteStep:
    """Sites of a roster do one step.

    Args:
        context: of the run.
        requests: by site; those that are to do it.
        take: checks and takes a site's result; called from any thread, one at a time.
        needed: sites without whose results nothing can follow: as long as they are too few, lost ones are waited for.
        seconds: longest wait.
    """

    def __init__(
        self,
        context: RoundContext,
        requests: Mapping[str, SecureStep],
        take: Callable[[str, Result | Refusal], None],
        *,
        needed: int,
        seconds: float,
    ) -> None:
        self._context, self._requests, self._take = context, requests, take
        self._needed, self._seconds = needed, seconds
        self._lock = threading.Lock()
        self._done: set[str] = set()
        self._failed: dict[str, str] = {}
        first = next(iter(requests.values()))
        self._round = first.round
        self._task = SiteTask(type(first).task, set(requests), self._make_request, self._on_result, brief=True)

    def run(self) -> dict[str, str]:
        """Wait for the sites; return why some failed."""
        context = self._context
        context.transport.open(self._task)
        started = context.clock()
        while not self._is_over(context.clock() - started):
            context.sites.watch(LOOK_SECONDS)
        context.transport.close(self._task)
        with self._lock:
            away = set(self._requests) - self._done - self._failed.keys()
            return {**dict.fromkeys(away, "it did not answer in time"), **self._failed}

    def _is_over(self, waited: float) -> bool:
        transport = self._context.transport
        with self._lock:
            left = set(self._requests) - self._done - self._failed.keys() - transport.banned
            done = len(self._done)
        if waited > self._seconds or not left:
            return True
        if not left <= set(transport.lost):
            return False  # those who are there answer soon
        return done >= self._needed or done + len(left) < self._needed

    def _make_request(self, site: str) -> Request:
        self._context.record(TaskSent(task=self._task.name, round=self._round, split="", sites=[site]))
        return self._requests[site]

    def _on_result(self, site: str, result: Result | Refusal, task: SiteTask) -> None:
        name = self._task.name
        with self._lock:
            if task.closed or site in self._done:
                self._context.record(Dropped(site=site, task=name, round=self._round))
                return
            try:
                self._take(site, result)
            except OncofedError as error:
                self._failed[site] = str(error)
                self._context.record(Refused(site=site, round=self._round, reason=str(error)))
                return
            self._done.add(site)
        self._context.record(Answered(site=site, task=name, round=self._round))
