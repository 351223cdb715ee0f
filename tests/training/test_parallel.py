"""Two processes train together like one.

Through gloo on the CPU; one process takes both shares of each batch.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from pydantic import ValidationError
from torch.distributed import distributed_c10d

from oncofed.data.augment import Batch
from oncofed.data.batches import BatchStream
from oncofed.data.cases import read_cases
from oncofed.data.prepared import PreparedCases
from oncofed.errors import TrainingError
from oncofed.job.spec import JobSpec
from oncofed.training import Plan, Trainer, start_trainer
from oncofed.training import trainer as trainers
from oncofed.training.parallel import Group
from oncofed.training.trainer import _site_seed, _WorkerMain

_SLOW_SECONDS = 9.0


@pytest.fixture
def plan(spec: JobSpec) -> Plan:
    settings = {"optimizer": "sgd", "batch_size": 4, "micro_batch": 1, "steps_per_round": 20}
    return spec.changed({"training": settings, "resources": {"gpus": 2}}).plan()


class _Joined(Iterator[Batch]):
    def __init__(self, one: BatchStream, two: BatchStream) -> None:
        self._two = (one, two)

    def __next__(self) -> Batch:
        one, two = (next(stream) for stream in self._two)
        return {name: torch.cat([one[name], two[name]]) for name in one}

    def begin_round(self) -> None: ...


@pytest.mark.slow
def test_two_processes_learn_what_one_learns_from_both_shares(plan: Plan, site: Path, tmp_path: Path) -> None:
    cases = read_cases(site, plan.data.split, plan.seed)
    with start_trainer(plan, cases, "here", tmp_path / "checkpoint", devices="cpu") as together:
        together.train(3)
        together.load_weights(together.weights())
        loss = together.train(2)
        found = together.weights()
        stopped = together.train(5, should_stop=lambda: together.steps_done >= 6)
        assert together.steps_done == 6
        assert stopped > 0
        assert together.evaluate(cases.test).cases == len(cases.test)
    alone = Trainer(plan, cases, "here")
    prepared = alone.prepare()._builder.prepared
    seeds = (alone._seed, _site_seed(alone._seed, "1 0"))
    one, two = (BatchStream(prepared, alone.input, 2, seed, alone.device) for seed in seeds)
    alone._batches = _Joined(one, two)  # type: ignore[assignment]
    alone.train(3)
    assert alone.train(2) == pytest.approx(loss, rel=1e-4)
    for name, value in alone.weights().items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-4)


class _Slow(_WorkerMain):
    """Prepares longer than others wait for gradients."""

    def __call__(self, group: Group) -> Callable[[int | None, int], object]:
        def slow(*arguments: Any) -> PreparedCases:
            time.sleep(_SLOW_SECONDS)
            return PreparedCases(*arguments)

        trainers.PreparedCases = slow  # type: ignore[attr-defined]
        return super().__call__(group)


@pytest.mark.slow
def test_the_first_process_waits_for_those_that_prepare_for_long(
    plan: Plan, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainers, "_WorkerMain", _Slow)
    with start_trainer(plan, read_cases(site, plan.data.split, plan.seed), "here", devices="cpu") as trainer:
        distributed_c10d._set_pg_timeout(timedelta(seconds=_SLOW_SECONDS / 3))
        assert trainer.train(2) > 0


def test_fewer_gpus_than_asked_for_and_batches_that_cannot_be_shared(plan: Plan, site: Path, spec: JobSpec) -> None:
    if torch.cuda.device_count() < 2:
        with (
            pytest.raises(TrainingError, match=r"asks for 2 GPUs at a site \(resources\.gpus\), found"),
            start_trainer(plan, read_cases(site, plan.data.split, plan.seed), "here"),
        ):
            pass
    with pytest.raises(ValidationError, match=r"training\.batch_size: found 3, expected a multiple of the 2 GPUs"):
        Plan.model_validate({**plan.model_dump(), "training": {"batch_size": 3}})


def _is_follower(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):  # another test's, which has ended meanwhile
        return "spawn_main" in " ".join(process.cmdline())
    return False


@pytest.mark.slow
def test_a_killed_process_of_the_group_ends_the_training_with_a_message(plan: Plan, site: Path) -> None:
    cases = read_cases(site, plan.data.split, plan.seed)

    def killed_halfway() -> None:
        with start_trainer(plan, cases, "here", devices="cpu") as trainer:
            trainer.train(1)
            next(child for child in psutil.Process().children() if _is_follower(child)).kill()
            trainer.train(20)

    with pytest.raises(TrainingError, match=r"1 of 2 processes that train together ended \(status -9\)"):
        killed_halfway()
