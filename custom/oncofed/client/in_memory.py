"""Sites that train for real in the calling process, for a federation in memory.

A job runs to its end without server, processes and connections: in a test, a benchmark or a notebook.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from oncofed.algorithms.plan import FederationPlan
from oncofed.client.in_process import InProcessTraining
from oncofed.client.local_training import PATIENTS_OF_SUMS, SiteContext
from oncofed.messages.requests import EvaluateRequest, PrepareRequest, Request, TrainRequest
from oncofed.messages.results import EvaluateResult, Result, SiteFacts
from oncofed.rounds.events import Event
from oncofed.rounds.in_memory import InMemorySites
from oncofed.rounds.job_model import JobModel
from oncofed.rounds.loop import RoundLoop, Server
from oncofed.training import Plan


class Unreported:
    """Drops progress and log lines."""

    def progress(self, **values: object) -> None:
        """Drop progress."""

    def note(self, text: str, level: int) -> None:
        """Drop a line."""


class InProcessSite:
    """A site's training in this process; see ``rounds.in_memory.Site``.

    No policy is asked what may leave, as in a simulation.

    Args:
        plan: what to train.
        federation: how the sites train together.
        context: where this site trains.

    Attributes:
        training: the site's.
    """

    def __init__(self, plan: Plan, federation: FederationPlan, context: SiteContext) -> None:
        self.training = InProcessTraining(plan=plan, federation=federation, context=context, reporter=Unreported())

    def __call__(self, request: Request) -> Result:
        """Return the answer to a request of the server."""
        if isinstance(request, PrepareRequest):
            numbers = self.training.prepare()
            numbers.pop(PATIENTS_OF_SUMS, None)
            return SiteFacts({**numbers, "dataset": None, "policy": None})
        if isinstance(request, TrainRequest):
            return self.training.train(request, bool)
        assert isinstance(request, EvaluateRequest), "averaging among peers needs connections"
        return EvaluateResult(self.training.validate(request, bool).numbers)


def train_in_memory(
    plan: Plan,
    federation: FederationPlan,
    sites: Mapping[str, InProcessSite],
    folder: Path,
    record: Callable[[Event], None],
    model: JobModel | None = None,
) -> None:
    """Run a job's rounds from start to end, or from where an earlier call stopped.

    Args:
        plan: the job's.
        federation: how its sites train together.
        sites: by name; they are closed at the end.
        folder: of the run, as at a server: its ``models`` hold the best one.
        record: receives the run's events.
        model: initial weights; None for the plan's seed.

    Raises:
        FederationError: the run cannot go on.
    """
    transport = InMemorySites(sites)
    server = Server(record=record, sites=transport.names, clock=transport.clock)
    loop = RoundLoop(plan=plan, federation=federation, transport=transport, folder=folder, server=server, model=model)
    try:
        loop.run()
    finally:
        loop.close()
        for site in sites.values():
            site.training.close()
