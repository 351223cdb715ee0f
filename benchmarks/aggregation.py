"""Aggregating updates on the server: gigabytes a second, and memory.

Each program gets the same updates in memory, with weights, and returns the mean. oncofed adds tensor by tensor over
the sites, in a fixed order; FLARE's helper adds whole updates as they arrive; NumPy adds them in one loop. The limit
only reads each update once. Other strategies of oncofed are compared with its mean.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence

import numpy as np
import psutil
import torch
from nvflare.app_common.aggregators.weighted_aggregation_helper import WeightedAggregationHelper

from harness.bench import Bench, Program, Settings
from harness.results import Baseline, Limit, Target
from oncofed.algorithms import Update, algorithm_class
from oncofed.flare.runtime.malloc import trim_heap
from peak import Peak

_TENSORS = 40
_STRATEGIES = ("fedadam", "scaffold", "median", "trimmed_mean", "krum", "clipped_mean")
# Updates and megabytes of each.
_SIZES = ((4, 10), (16, 10), (64, 10), (4, 100), (16, 100), (64, 100), (4, 1000))
_SIZES_QUICK = ((4, 10), (16, 10))
_MOST_OF_MEMORY = 0.4


def run(bench: Bench) -> None:
    """Measure the mean at every size, others at one."""
    sizes = _SIZES_QUICK if bench.quick else _SIZES
    for count, megabytes in sizes:
        _mean(bench, count, megabytes)
    _others(bench, *(sizes[-1] if bench.quick else (16, 100)))


def _mean(bench: Bench, count: int, megabytes: int) -> None:
    name = f"mean of {count} updates of {megabytes} MB"
    need, free = count * megabytes * 1e6, psutil.virtual_memory().available
    if need > _MOST_OF_MEMORY * free:
        bench.skip(name, "GB/s", f"the updates need {need / 1e9:.0f} GB of the {free / 1e9:.0f} that are free")
        return
    model, updates = make_updates(count, megabytes)
    size = sum(value.nbytes for value in model.values())
    programs: dict[str, Program] = {
        "oncofed": _step("fedavg", model, updates),
        "FLARE's helper": lambda: _flare(updates),
        "NumPy": lambda: _numpy(updates),
    }
    settings: Settings = {"updates": count, "megabytes": megabytes, "threads": torch.get_num_threads()}
    bench.race(
        name,
        programs,
        unit="GB/s",
        amount=count * size / 1e9,
        limit=Limit(name="memory bandwidth", value=bench.limits.memory_bandwidth() / 1e9),
        target=Target(of="baseline", value=1.0),
        settings=settings,
    )
    _memory(bench, name, programs, size, settings)


def _others(bench: Bench, count: int, megabytes: int) -> None:
    model, updates = make_updates(count, megabytes)
    size = sum(value.nbytes for value in model.values())
    mean = _step("fedavg", model, updates)
    for name in _STRATEGIES:
        bench.race(
            f"{name} of {count} updates of {megabytes} MB",
            {"oncofed": _step(name, model, updates), "oncofed's mean": mean},
            unit="GB/s",
            amount=count * size / 1e9,
            settings={"updates": count, "megabytes": megabytes, "threads": torch.get_num_threads()},
        )


def make_updates(count: int, megabytes: int) -> tuple[dict[str, torch.Tensor], list[Update]]:
    """Return a float32 model and updates of it.

    Each of about ``megabytes``; there are ``count`` updates.
    """
    length = megabytes * 10**6 // 4 // _TENSORS
    model = {f"layer{number}.weight": torch.randn(length) for number in range(_TENSORS)}
    updates = []
    for site in range(count):
        delta = {name: torch.randn_like(value) for name, value in model.items()}
        updates.append(Update(f"site-{site:03}", delta, cases=10 + site, steps=10, extra=delta))
    return model, updates


def _step(name: str, model: dict[str, torch.Tensor], updates: Sequence[Update]) -> Program:
    kind = algorithm_class(name)
    algorithm = kind(kind.Settings(name=name), frozenset(model))
    # A shallow copy: a step empties its model.
    return lambda: algorithm.aggregate(dict(model), updates, len(updates))


def _flare(updates: Sequence[Update]) -> object:
    helper = WeightedAggregationHelper()
    for update in updates:
        helper.add(dict(update.delta), update.cases, update.site, 0)
    return helper.get_result()


def _numpy(updates: Sequence[Update]) -> dict[str, np.ndarray]:
    whole = sum(update.cases for update in updates)
    total: dict[str, np.ndarray] = {}
    for update in updates:
        for name, value in update.delta.items():
            part = value.numpy() * np.float32(update.cases / whole)
            total[name] = total[name] + part if name in total else part
    return total


def _memory(bench: Bench, name: str, programs: dict[str, Program], size: int, settings: Settings) -> None:
    """Keep the peak memory beyond the updates, in models."""
    peaks = {}
    for who, program in programs.items():
        gc.collect()
        trim_heap()  # memory freed before would be reused, and not counted
        with Peak(every=0.001) as peak:
            before = peak.most
            program()
        peaks[who] = (peak.most - before) / size
    ours, *beside = (Baseline(name=who, samples=[value]) for who, value in peaks.items())
    bench.measured(
        f"memory for the {name}",
        ours.samples,
        "models",
        settings=settings,
        baseline=beside[0],
        others=beside[1:],
        limit=Limit(name="the mean itself", value=1.0),
    )
