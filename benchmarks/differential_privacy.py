"""What differential privacy per patient costs: steps, noise, accountant, ledger.

A private step is compared with a plain step of as many patches: all patients of a dataset are drawn, each with four.
"""

from __future__ import annotations

import random
import time
from typing import Any

import torch

from harness.bench import Bench, Settings
from harness.results import Target
from oncofed.data.cases import Cases, read_cases
from oncofed.job.spec import JobSpec, read_job
from oncofed.privacy import accountant
from oncofed.privacy.accountant import Event, epsilon, noise_multiplier_for
from oncofed.privacy.ledger import Charge, spent
from oncofed.privacy.noise import SecretRandomness
from oncofed.training import Trainer
from volumes import make_volumes

_NETWORKS: dict[str, dict[str, Any]] = {
    "unet": {"channels": [16, 32, 64, 128], "residual_units": 0},
    "segresnet": {"channels": [16, 32, 64]},
    "dynunet": {"channels": [16, 32, 64, 128]},
}
_PATCHES = 4
_MOST_OF_A_STEP, _MOST_OF_NOISE, _MOST_OF_ACCOUNTING, _MOST_OF_A_LEDGER = 1.3, 0.05, 1.0, 2.0
_PEOPLE, _JOBS, _IN_A_JOB = 1000, 50, 700
_MILLION = 1_000_000


def run(bench: Bench) -> None:
    """Measure all four."""
    for network in list(_NETWORKS)[: 1 if bench.quick else None]:
        _step(bench, network)
    _noise(bench)
    _accounting(bench)
    _ledger(bench)


def _step(bench: Bench, network: str) -> None:
    spec = read_job("hippocampus_segmentation").changed(
        {"data": {"patch": [32, 32, 32]}, "model": {"network": network, **_NETWORKS[network]}}
    )
    plan = spec.plan()
    dataset = make_volumes(bench.folder / network, plan.data, plan.task.classes)
    cases = read_cases(dataset, plan.data.split, plan.seed, plan.supervision())
    patients = len({case.patient for case in cases.train})
    private = {"noise_multiplier": 1.0, "delta": 1e-5, "sampling": 1.0, "patches": _PATCHES, "clip": 0.5}
    trainers = [
        _trainer(spec.changed({"privacy": {"differential_privacy": private}}), cases, bench),
        _trainer(spec.changed({"training": {"batch_size": patients * _PATCHES}}), cases, bench),
    ]
    for trainer in trainers:
        trainer.train(1)
    ratios = []
    for _ in range(bench.times()):
        own, plain = (_seconds(bench, trainer) for trainer in trainers)
        ratios.append(own / plain)
    bench.measured(
        f"a private step beside a plain one of as many patches, {network}",
        ratios,
        "times",
        settings={"patients": patients, "patches": _PATCHES},
        target=Target(of="value", value=_MOST_OF_A_STEP),
    )


def _trainer(spec: JobSpec, cases: Cases, bench: Bench) -> Trainer:
    return Trainer(spec.plan(), cases, "bench", bench.device)


def _seconds(bench: Bench, trainer: Trainer) -> float:
    """Return a step's seconds: of the processor, where there is no GPU, as other work on the machine disturbs less."""
    if bench.cuda:
        return bench.seconds(lambda: trainer.train(1))
    begun = time.process_time()
    trainer.train(1)
    return time.process_time() - begun


def _noise(bench: Bench) -> None:
    stream = SecretRandomness().step()

    def made() -> None:
        stream.normal(_MILLION, bench.device)

    beside = {"torch.randn, which can be guessed": lambda: torch.randn(_MILLION, device=bench.device)}
    target = Target(of="value", value=_MOST_OF_NOISE)
    bench.race("noise of a million weights", {"oncofed": made, **beside}, target=target)


def _accounting(bench: Bench) -> None:
    settings: Settings = {"noise": 1.2, "sampling": 0.08, "steps": 1000}

    def known() -> None:
        _forget()
        epsilon([Event(1.2, 0.08, 1000)], 1e-5)

    def sought() -> None:
        _forget()
        noise_multiplier_for(8, 1e-5, 0.08, 1000)

    known()
    target = Target(of="value", value=_MOST_OF_ACCOUNTING)
    times = [bench.seconds(known) for _ in range(bench.times())]
    bench.measured("epsilon of 1,000 steps, not computed before", times, "s", settings=settings, target=target)
    times = [bench.seconds(sought) for _ in range(bench.times())]
    bench.measured("noise for an epsilon, not computed before", times, "s", settings=settings)


def _ledger(bench: Bench) -> None:
    """Measure what patients spent who were each in other jobs, each job of other steps."""
    draws = random.Random(0)
    people = [f"patient{number}" for number in range(_PEOPLE)]
    charges = [
        Charge(f"job{number}", "one", "digest", Event(8.0 + number / 10, 0.02 + number / 2000, 200), frozenset(some))
        for number, some in enumerate(draws.sample(people, _IN_A_JOB) for _ in range(_JOBS))
    ]

    def told() -> None:
        _forget()
        spent(charges, 1e-5)

    told()
    bench.measured(
        "what patients of a ledger spent, not computed before",
        [bench.seconds(told) for _ in range(bench.times())],
        "s",
        settings={"patients": _PEOPLE, "jobs": _JOBS},
        target=Target(of="value", value=_MOST_OF_A_LEDGER),
    )


def _forget() -> None:
    for cached in (accountant._epsilon, accountant._distribution, accountant._one_step, noise_multiplier_for):
        cached.cache_clear()
