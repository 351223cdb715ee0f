"""Tiny sites whose updates leave masked."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from oncofed.algorithms.plan import FederationPlan
from oncofed.client.secure_aggregation import Identity, MaskedUpdates
from oncofed.errors import FederationError
from oncofed.messages.requests import EvaluateRequest, Request, TrainRequest
from oncofed.messages.results import EvaluateResult, Refusal, Result, TrainResult
from oncofed.messages.secure_aggregation import SecureStep, plan_digest, score_form
from oncofed.models.weights import Weights
from oncofed.privacy.policy import LeavesSpec
from oncofed.rounds.events import Event
from oncofed.rounds.in_memory import Delayed, InMemorySites
from oncofed.rounds.run_state import read_run_state
from oncofed.rounds.sums import unverified
from oncofed.training import Plan
from tiny_federation import LAYOUT, PLAN, TinySite, tiny_loop, tiny_sites

SECURE = {"secure_aggregation": {"minimum_sites": 3}}
CASES = {"east": 5, "north": 3, "south": 8, "west": 2}


@dataclass
class MaskingSite:
    """A tiny site whose updates leave masked.

    Attributes:
        site: what it trains.
        folder: what it remembers.
        federation: the job's rules.
        leaves: of its policy.
        sent: results that left it.
        before: called with each request, for instance to fail.
        plan: of the job.
    """

    site: TinySite
    folder: Path
    federation: FederationPlan
    leaves: LeavesSpec = field(default_factory=LeavesSpec)
    sent: list[Result | Refusal] = field(default_factory=list)
    before: Callable[[MaskingSite, Request], Result | Refusal | Delayed | None] | None = None
    plan: Plan = PLAN

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.start()

    def start(self) -> None:
        """Begin a new process: what is in memory is gone."""
        self.masked = MaskedUpdates(
            self.federation,
            LAYOUT,
            job="job",
            plan_digest=plan_digest(self.plan, self.federation),
            identity=Identity(site=self.site.name, sign=lambda data: b"-", certificates=b"-", verify=unverified),
            leaves=self.leaves,
            folder=self.folder,
            scores=score_form(self.plan, self.federation),
        )

    def __call__(self, request: Request) -> Result | Refusal | Delayed:
        """Do a task."""
        instead = self.before(self, request) if self.before else None
        if instead is not None:
            return instead
        try:
            result = self._do(request)
        except FederationError as error:
            result = Refusal(str(error))
        if not isinstance(result, Delayed):
            self.sent.append(result)
        return result

    def _do(self, request: Request) -> Result | Refusal | Delayed:
        if isinstance(request, SecureStep):
            return self.masked.answer(request)
        result = self.site(request)
        if isinstance(request, TrainRequest):
            assert isinstance(result, TrainResult)
            # From its next batches another update follows.
            delta = {
                name: value + request.repeat * 1e-6 if value.is_floating_point() else value
                for name, value in result.delta.items()
            }
            whole = self.masked.complete(dataclasses.replace(result, delta=delta), request)
            return self.masked.hold(whole, request)
        if isinstance(request, EvaluateRequest) and self.federation.sums_scores:
            assert isinstance(result, EvaluateResult)
            return self.masked.hold_scores(result.numbers, request)
        return result


def masking_sites(
    folder: Path, settings: Mapping[str, Any] = SECURE, plan: Plan = PLAN, **cases: int
) -> dict[str, MaskingSite]:
    """Return sites with numbers of cases, by name."""
    federation = FederationPlan.model_validate(settings)
    sites = tiny_sites(**(cases or CASES))
    return {name: MaskingSite(site, folder / name, federation, plan=plan) for name, site in sites.items()}


def run_masked(
    folder: Path,
    sites: Mapping[str, Any],
    settings: Mapping[str, Any],
    before_wait: Callable[[InMemorySites], None] | None = None,
    plan: Plan = PLAN,
) -> tuple[Weights, list[Event]]:
    """Run a job; return its model and events."""
    events: list[Event] = []
    loop = tiny_loop(folder, InMemorySites(sites, before_wait), events.append, settings=settings, plan=plan)
    try:
        loop.run()
    finally:
        loop.close()
    state = read_run_state(folder)
    assert state
    return state.model, events
