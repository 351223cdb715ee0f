"""The cost of privacy: outbound checks, secure aggregation.

The checks are those of a round of the hippocampus job at one site: update and scores are compared with the job's
declarations, and recorded in the audit log on disk. They are compared with the round's training on this machine.
Another figure is the admission of a job at a site. Features that oncofed lacks have a row that says so.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import torch

from harness.bench import Bench, Settings
from harness.results import Limit, Target
from oncofed.algorithms.plan import FederationPlan
from oncofed.audit import AuditLog
from oncofed.data.cases import read_cases
from oncofed.flare import wire
from oncofed.flare.security.outbound_filter import check_reply
from oncofed.flare.security.outbound_policy import OutboundPolicy
from oncofed.job.spec import read_job
from oncofed.messages.requests import EvaluateRequest, TrainRequest
from oncofed.messages.results import EvaluateResult, TrainResult
from oncofed.models.weights import exchanged_names, weights_of
from oncofed.privacy.policy import Policy, ProposedJob, read_policy
from oncofed.training import Plan, Trainer
from volumes import make_volumes

_EVALUATION = {
    "mean": 0.8,
    "by_class": {"anterior": 0.8, "posterior": 0.8},
    "more": {},
    "interval": None,
    "cases": 9,
    "patients": {"all": 9, "mean": 9, "by_class": {"anterior": 9, "posterior": 9}, "more": {}},
}
_MOST_OF_A_ROUND, _MOST_AT_THE_START = 0.02, 0.2


def run(bench: Bench) -> None:
    """Measure the checks, and list missing features."""
    plan = read_job("hippocampus_segmentation").plan()
    seconds = _round(bench, plan)
    bench.doing("checks of what leaves")
    times = [_checks(bench.folder / str(number), plan) for number in range(bench.times() + 1)][1:]
    settings: Settings = {"job": "hippocampus_segmentation", "steps": plan.training.steps_per_round}
    bench.measured(
        "checks of what leaves a site, of a round",
        [value / seconds for value in times],
        "share",
        settings=settings,
        target=Target(of="value", value=_MOST_OF_A_ROUND),
        note=f"{statistics.median(times) * 1000:.1f} ms beside a round's training of {seconds:.1f} s",
    )
    update = sum(value.nbytes for value in weights_of(plan.build_network()).values())
    bench.measured(
        "checks of what leaves a site",
        times,
        "s",
        settings=settings,
        limit=Limit(name="reading the update once from memory", value=update / bench.limits.memory_bandwidth()),
    )
    starts = [_start(bench.folder / f"start-{number}") for number in range(bench.times())]
    bench.measured(
        "policy and audit log before a job starts", starts, "s", target=Target(of="value", value=_MOST_AT_THE_START)
    )
    bench.skip("a round with secure aggregation", "share of a round", "oncofed does not have it yet")


def _round(bench: Bench, plan: Plan) -> float:
    """Return the seconds of a round's training."""
    data = plan.data.model_copy(update={"patch": (48, 48, 48)})  # volumes that any patch of the job fits into
    dataset = make_volumes(bench.folder / "volumes", data, plan.task.classes)
    cases = read_cases(dataset, plan.data.split, plan.seed, plan.supervision())
    trainer = Trainer(plan, cases, "bench", bench.device)
    trainer.train(2)
    steps = 5 if bench.quick else 20
    return bench.best(lambda: trainer.train(steps), 2) / steps * plan.training.steps_per_round


def _checks(folder: Path, plan: Plan) -> float:
    network = plan.build_network()
    travelling = exchanged_names(network)
    delta = {n: torch.randn_like(v) * 1e-3 for n, v in weights_of(network).items() if n in travelling}
    numbers = {"loss": 0.5, "train_s": 7.0, "validate_s": 1.0, "evaluation": _EVALUATION}
    update = wire.to_shareable(TrainResult(delta=delta, cases=100, steps=60, numbers=numbers))
    score = wire.to_shareable(EvaluateResult({"evaluation": _EVALUATION, "validate_s": 1.0}))
    policy = OutboundPolicy(plan=plan, federation=FederationPlan(), policy=Policy(schema=1))
    log = AuditLog(folder)
    log.write("job admitted", "engineer")
    begun = time.perf_counter()
    for task, message in ((TrainRequest.task, update), (EvaluateRequest.task, score)):
        log.write("message left", "engineer", task=task, **check_reply(policy, task, message))
    return time.perf_counter() - begun


def _start(folder: Path) -> float:
    folder.mkdir()
    (folder / "policy.json").write_text(Policy(schema=1, networks=("unet",)).model_dump_json(by_alias=True))
    begun = time.perf_counter()
    policy = read_policy(folder)
    assert policy
    assert policy.refusal(ProposedJob("job", "engineer", "hippocampus", "unet", "fedavg")) is None
    AuditLog(folder).write("job admitted", "engineer")
    return time.perf_counter() - begun
