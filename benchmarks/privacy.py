"""The cost of privacy: outbound checks, secure aggregation.

The checks are those of a round of the hippocampus job at one site: update and scores are compared with the job's
declarations, and recorded in the audit log on disk. They are compared with the round's training on this machine.
Another figure is the admission of a job at a site. Masks of secure aggregation are measured in one process and thread:
the processor's time of a site and of the server, bytes and memory; beside the masks of Flower's SecAgg+, and beside the
homomorphic encryption that FLARE uses (TenSEAL), each in an environment of its own.
"""

from __future__ import annotations

import gc
import statistics
import time
from pathlib import Path

import torch

from encryption import encryption_baselines
from flower import flower_baseline, measure_flower_masks
from harness.bench import Bench, Settings
from harness.results import Baseline, Limit, Target
from masking import Attempt
from oncofed.algorithms.plan import FederationPlan
from oncofed.audit import AuditLog
from oncofed.data.cases import read_cases
from oncofed.flare import wire
from oncofed.flare.runtime.malloc import trim_heap
from oncofed.flare.security.outbound_filter import check_reply
from oncofed.flare.security.outbound_policy import OutboundPolicy
from oncofed.job.spec import read_job
from oncofed.messages.requests import EvaluateRequest, TrainRequest
from oncofed.messages.results import EvaluateResult, TrainResult
from oncofed.models.weights import exchanged_names, weights_of
from oncofed.privacy.policy import Policy, ProposedJob, read_policy
from oncofed.training import Plan, Trainer
from peak import Peak
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
# Milliseconds of the processor for a megabyte of float32: at 10 sites, and at 50.
_MASK = {10: 10.0, 50: 20.0}
# Likewise of the server at 10 sites, by sites lost.
_UNMASK = {0: 6.0, 3: 10.0}
# Of the bytes without secure aggregation by bits, and bytes more for each site of the roster.
_BYTES, _BYTES_A_SITE = {32: 1.01, 16: 0.51}, 100
_MOST_BESIDE_A_MODEL = 32 << 20
_KEPT_FLOATS = 20_000_000


def run(bench: Bench) -> None:
    """Measure checks and masks."""
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
    floats = 500_000 if bench.quick else 5_000_000
    # A twentieth: encryption takes longer than all else.
    encryption = encryption_baselines(bench, floats // 20)
    _sums(bench, floats, *encryption)
    _fifty_sites(bench, floats, encryption[0])


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


def _sums(bench: Bench, floats: int, encryption: Baseline, encrypted: Baseline) -> None:
    """Measure whole attempts of ten sites.

    Args:
        bench: of the suite.
        floats: of the model.
        encryption: milliseconds for a megabyte.
        encrypted: bytes, as a multiple of float32's.
    """
    size, sites = floats * 4, 10
    for bits, lost in ((32, 0), (32, 3), (16, 0)):
        what = f"{sites} sites, {lost} lost, {bits} bits"
        bench.doing(f"a sum of {what}")
        attempts = [Attempt(sites, floats, bits) for _ in range(bench.times())]
        for attempt in attempts:
            attempt.finish(lost)
        settings: Settings = {"sites": sites, "lost": lost, "bits": bits, "megabytes": size / 1e6}
        if bits == 32:
            seconds = [statistics.mean(attempt.seconds["unmask"]) for attempt in attempts]
            target = Target(of="value", value=_UNMASK[lost])
            bench.measured(
                f"unmasking of {what}", _for_a_megabyte(seconds, size), "ms/MB", settings=settings, target=target
            )
        if not lost:
            seconds = [statistics.mean(attempt.seconds["mask"]) for attempt in attempts]
            _masking(bench, f"masking of {what}", seconds, settings, floats, encryption)
            sent = size * bits / 32 + attempts[0].sent
            bench.measured(
                f"bytes of a site, {what}",
                [sent / size],
                "times float32",
                settings=settings,
                baseline=encrypted,
                target=Target(of="value", value=_BYTES[bits] + _BYTES_A_SITE * sites / size),
                note=f"{attempts[0].sent} B of keys, shares and signatures",
            )


def _fifty_sites(bench: Bench, floats: int, encryption: Baseline) -> None:
    """Measure a site among fifty, and the server's memory."""
    sites, bits = 50, 32
    attempt = Attempt(sites, floats, bits)
    for _ in range(bench.times() + 1):
        attempt.mask()
    settings: Settings = {"sites": sites, "lost": 0, "bits": bits, "megabytes": floats * 4 / 1e6}
    _masking(bench, f"masking of {sites} sites, {bits} bits", attempt.seconds["mask"][1:], settings, floats, encryption)
    attempt = Attempt(sites, floats if bench.quick else _KEPT_FLOATS, bits)
    size = sum(value.nbytes for value in attempt.mask().values())
    gc.collect()
    trim_heap()  # memory freed before would be reused, and not counted
    with Peak(every=0.001) as peak:
        before = peak.most
        for number in range(sites):
            attempt.add(number)
    bench.measured(
        f"memory of the server for a sum of {sites} sites",
        [(peak.most - before) / size],
        "models",
        settings={**settings, "megabytes": size / 1e6},
        limit=Limit(name="the sum itself", value=1.0),
        target=Target(of="value", value=1 + _MOST_BESIDE_A_MODEL / size),
    )


def _masking(
    bench: Bench, name: str, seconds: list[float], settings: Settings, floats: int, encryption: Baseline
) -> None:
    sites = int(settings["sites"] or 0)
    flower = flower_baseline(
        bench,
        "'s masks of SecAgg+",
        lambda: measure_flower_masks(floats, sites, bench.times(), bench.folder / "flower"),
    )
    flower.samples = _for_a_megabyte(flower.samples, floats * 4)
    bench.measured(
        name,
        _for_a_megabyte(seconds, floats * 4),
        "ms/MB",
        settings=settings,
        baseline=flower,
        others=[encryption],
        target=Target(of="value", value=_MASK[sites]),
    )


def _for_a_megabyte(seconds: list[float], size: int) -> list[float]:
    return [value * 1e3 / (size / 1e6) for value in seconds]
