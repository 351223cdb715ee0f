"""The runner of a derived schedule."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import pytest

from oncofed.algorithms.fedavg import FedAvg
from oncofed.algorithms.schedule import Schedule, Sequential
from oncofed.algorithms.settings import EvaluationSpec, RoundsSpec
from oncofed.rounds.schedules import SequentialRunner, runner_for


@dataclass(frozen=True)
class _Backwards(Sequential):
    """Derived from a known schedule."""


@dataclass(frozen=True)
class _Whenever(Schedule):
    """Derived from none."""


class _Scheduled(FedAvg):
    def __init__(self, schedule: Schedule) -> None:
        super().__init__(FedAvg.Settings())
        self._schedule = schedule

    @property
    def schedule(self) -> Schedule:
        return self._schedule


def test_a_derived_schedule_has_its_bases_runner() -> None:
    algorithm = _Scheduled(_Backwards())
    algorithm.check_settings(RoundsSpec(), EvaluationSpec())
    assert isinstance(runner_for(cast("Any", SimpleNamespace()), algorithm), SequentialRunner)


def test_an_unknown_schedule_is_refused_before_the_run() -> None:
    with pytest.raises(ValueError, match="fedavg has the schedule _Whenever, expected one that is derived"):
        _Scheduled(_Whenever()).check_settings(RoundsSpec(), EvaluationSpec())
