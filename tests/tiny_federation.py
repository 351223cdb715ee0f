"""A federation of a model with four weights.

Its sites are functions: hundreds of rounds a second.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import oncofed
from oncofed.algorithms import Update
from oncofed.algorithms.fedavg import FedAvg
from oncofed.algorithms.plan import FederationPlan
from oncofed.messages.requests import CombineRequest, EvaluateRequest, PrepareRequest, Request, TrainRequest
from oncofed.messages.results import CombineResult, EvaluateResult, Refusal, Result, SiteFacts, TrainResult
from oncofed.models.weights import WeightLayout, Weights, digest_of
from oncofed.rounds.events import Event, EventLog
from oncofed.rounds.in_memory import Delayed, InMemorySites
from oncofed.rounds.job_model import JobModel
from oncofed.rounds.loop import RoundLoop, Server
from oncofed.training import Plan

PLAN = Plan.model_validate(
    {
        "data": {"dataset": "balls", "patch": [16, 16, 16]},
        "task": {"type": "segmentation", "classes": {1: "shell", 2: "core"}},
        "model": {"network": "unet", "channels": [4, 8], "residual_units": 1},
        "training": {"steps_per_round": 4},
        "rounds": 3,
        "seed": 3,
    }
)
CLASSIFICATION = Plan.model_validate(
    {
        "data": {"dataset": "balls", "patch": [32, 32, 32]},
        "task": {"type": "classification", "classes": {0: "benign", 1: "malignant"}},
        "model": {"network": "densenet121"},
        "training": {"steps_per_round": 4},
        "rounds": 3,
    }
)
WEIGHTS: Weights = {
    "w": torch.tensor([0.0, 1.0, -1.0, 0.5]),
    "mean": torch.tensor([0.25]),
    "count": torch.tensor(0),
    "fixed": torch.tensor([7.0]),
}
TRAVELLING, TRAINED = frozenset({"w", "mean", "count"}), frozenset({"w"})
LAYOUT = WeightLayout({name: value.to("meta") for name, value in WEIGHTS.items()}, TRAVELLING, TRAINED)
_TEST_CASES = 6


class TinyModel(JobModel):
    """Four weights, a statistic, a counter, a fixed weight."""

    def __init__(self) -> None:
        super().__init__(PLAN)

    def layout(self) -> WeightLayout:
        """Return the model's layout."""
        return LAYOUT

    def initial(self) -> tuple[WeightLayout, Weights]:
        """Return the layout and the weights to start from."""
        return LAYOUT, {name: value.clone() for name, value in WEIGHTS.items()}


def trained_delta(site: str, weights: Mapping[str, Tensor]) -> Weights:
    """Return a site's update, towards the site's point."""
    return {
        "w": 0.25 * (target(site) - weights["w"]),
        "mean": 0.5 * (target(site)[:1] - weights["mean"]),
        "count": weights["count"] + 4,
    }


def target(site: str) -> Tensor:
    """Return the point that a site trains towards."""
    seed = int.from_bytes(hashlib.sha256(site.encode()).digest()[:4], "big")
    return torch.rand(4, generator=torch.Generator().manual_seed(seed)) + 3


def score_of(site: str, weights: Mapping[str, Tensor]) -> float:
    """Return a model's score, by distance to the site's point."""
    return round(1 / (1 + float((target(site) - weights["w"].float()).abs().mean())), 4)


def evaluation(mean: float | None) -> dict[str, Any]:
    """Return a score as sites send it."""
    patients = {"all": _TEST_CASES, "mean": _TEST_CASES if mean is not None else 0, "by_class": {}, "more": {}}
    return {"mean": mean, "by_class": {}, "more": {}, "interval": None, "cases": _TEST_CASES, "patients": patients}


@dataclass
class TinySite:
    """A site that always gives the same results.

    Attributes:
        name: of the site.
        cases: for training.
        mailbox: updates of peers by digest, shared by the sites.
        score: of a model; by default ``score_of``.
        requests: all that it was sent.
    """

    name: str
    cases: int = 3
    mailbox: dict[str, Weights] = field(default_factory=dict)
    score: Callable[[str, Mapping[str, Tensor]], float | None] = score_of
    requests: list[Request] = field(default_factory=list)

    def __call__(self, request: Request) -> Result | Refusal | Delayed:
        """Do a task."""
        self.requests.append(request)
        if isinstance(request, PrepareRequest):
            splits = {"train": self.cases, "validation": _TEST_CASES, "test": _TEST_CASES}
            return SiteFacts({**splits, "device": "cpu", "version": oncofed.__version__})
        if isinstance(request, TrainRequest):
            return self._train(request)
        if isinstance(request, EvaluateRequest):
            return EvaluateResult({"evaluation": evaluation(self.score(self.name, request.weights))})
        assert isinstance(request, CombineRequest)
        return self._combine(request)

    def _train(self, request: TrainRequest) -> TrainResult:
        numbers = {"evaluation": evaluation(self.score(self.name, request.weights)), "loss": 0.5, "train_s": 1.0}
        delta = trained_delta(self.name, request.weights)
        if request.collector is None:
            return TrainResult(delta=delta, cases=self.cases, steps=4, numbers=numbers)
        digest = digest_of(delta, hashlib.sha256).hexdigest()
        self.mailbox[digest] = delta
        return TrainResult(delta={}, cases=self.cases, steps=4, numbers={**numbers, "update": digest})

    def _combine(self, request: CombineRequest) -> CombineResult | Refusal:
        missing = sorted(site for site, update in request.updates.items() if update.digest not in self.mailbox)
        if missing:
            return CombineResult(mean={}, cases=0, missing=missing)
        updates = [Update(site, self.mailbox[of.digest], of.cases) for site, of in request.updates.items()]
        if not updates:
            return Refusal("no update that counts")
        zeros = {name: torch.zeros_like(WEIGHTS[name]) for name in TRAVELLING}
        mean = FedAvg(FedAvg.Settings(), TRAINED).aggregate(zeros, updates, len(updates))
        return CombineResult(mean=mean, cases=sum(update.cases for update in updates))


def tiny_sites(**cases: int) -> dict[str, TinySite]:
    """Return sites with numbers of cases, by name."""
    mailbox: dict[str, Weights] = {}
    return {name: TinySite(name, number, mailbox) for name, number in cases.items()}


class Killed(BaseException):
    """The server's process ended."""


def tiny_loop(
    folder: Path,
    sites: InMemorySites,
    record: Callable[[Event], None],
    *,
    plan: Plan = PLAN,
    settings: Mapping[str, Any] | None = None,
    evaluate_only: bool = False,
    test: bool = True,
    is_stopped: Callable[[], bool] = bool,
    synchronize: Callable[[], None] = lambda: None,
) -> RoundLoop:
    """Return a round loop recorded by ``record``."""
    return RoundLoop(
        plan=plan,
        federation=FederationPlan.model_validate(settings or {}),
        transport=sites,
        folder=folder,
        server=Server(
            record=record, sites=sites.names, clock=sites.clock, is_stopped=is_stopped, synchronize=synchronize
        ),
        model=TinyModel(),
        evaluate_only=evaluate_only,
        test=test,
    )


@dataclass
class Recorder:
    """Keeps events like the record's file.

    Ends the process after one of them.

    Attributes:
        log: the file.
        kill_after: number of events that this process still writes; None for all.
        events: what it wrote.
    """

    log: EventLog
    kill_after: int | None = None
    events: list[Event] = field(default_factory=list)

    def __call__(self, event: Event) -> None:
        """Write an event."""
        self.log.write(event)
        self.events.append(event)
        if self.kill_after is not None and len(self.events) > self.kill_after:
            raise Killed
