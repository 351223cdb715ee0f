"""Dates tell of lists and outcomes where chance does not explain it: of one null dataset in a hundred at most."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from oncofed.data.leaks import Outcome
from oncofed.data.manifest import Entry, Manifest
from oncofed.data.target_columns.dates import DAYS
from oncofed.data.targets import DatasetTarget, FollowUp
from oncofed.data.time_order import LEVEL, OF_OUTCOME, goes_with, outcomes_by_date, share_earlier
from oncofed.tasks.targets.base import TargetSettings, head_of
from oncofed.tasks.targets.labels import LabelsTarget
from oncofed.tasks.targets.one_class import ClassTarget
from oncofed.tasks.targets.survival import SurvivalTarget
from oncofed.tasks.targets.value import ValueTarget

Rng = np.random.Generator
# Beyond so many alarms in as many null datasets, the level is not kept (binomial, one in 10,000).
DRAWS, MOST_ALARMS = 400, 14
TARGETS: list[TargetSettings] = [
    LabelsTarget(name="findings", findings=("Effusion", "Mass", "Nodule")),
    ClassTarget(name="kind", classes=("a", "b", "c")),
    ValueTarget(name="size", unit="mm", range=(0, 100)),
    SurvivalTarget(name="death", unit="days", horizon=900),
]
DECLARED = {
    "findings": DatasetTarget(kind="labels", names=["Effusion", "Mass", "Nodule"]),
    "kind": DatasetTarget(kind="class", names=["a", "b", "c"]),
    "size": DatasetTarget(kind="value", unit="mm"),
    "death": DatasetTarget(kind="survival", unit="days"),
}


def _dataset(rng: Rng, patients: int, drift: str = "") -> Manifest:
    """Return patients of four years, followed until a day after the last; one outcome drifts by the year, or none."""
    entries = []
    sizes, kinds = 15 * (drift == "size"), 0.5 * (drift == "kind")
    for number in range(patients):
        day = int(rng.integers(0, 1460))
        year = day // 365 / 3  # 0 to 1
        end, rate = 1800 - day, 1 / 900 * (3**year if drift == "death" else 1)
        event = float(rng.exponential(1 / rate))
        entries.append(
            Entry(
                image=f"{number}.png",
                name=str(number),
                tags={DAYS: str(day)},
                targets={
                    "findings": {
                        name: bool(rng.uniform() < (0.1 + 0.5 * year if drift == name else 0.3))
                        for name in ("Effusion", "Mass", "Nodule")
                    },
                    "kind": str(rng.choice(["a", "b", "c"], p=[0.6 - kinds * year, 0.2, 0.2 + kinds * year])),
                    "size": float(rng.normal(50 + sizes * year, 8)),
                    "death": FollowUp(time=round(min(event, end), 1), event=event < end),
                },
            )
        )
    return Manifest(training=entries, targets=DECLARED)


def _told(manifest: Manifest) -> list[str]:
    found = list(outcomes_by_date(manifest, [head_of(target).settings for target in TARGETS]))
    assert all(finding.kind == OF_OUTCOME and not finding.severe for finding in found)
    return [finding.what for finding in found]


def test_of_null_datasets_one_in_a_hundred_is_said_to_drift() -> None:
    """Six outcomes each, of 40 to 200 patients; follow-up is shorter the later a patient came."""
    draws = map(np.random.default_rng, range(DRAWS // 8))
    alarms = sum(bool(_told(_dataset(rng, int(rng.integers(40, 200))))) for rng in draws)
    assert alarms <= 4, "50 datasets at a level of one in a hundred (binomial, one in 5,000)"


@pytest.mark.parametrize(
    ("drift", "name"),
    [("Mass", "findings (Mass)"), ("kind", "kind"), ("size", "size"), ("death", "death")],
)
def test_an_outcome_that_goes_with_the_date_is_named(drift: str, name: str) -> None:
    (what,) = _told(_dataset(np.random.default_rng(1), 400, drift))
    assert what.startswith(f"the date of examination goes with {name} (p < 0.01 over 6 outcomes, ")


def test_a_trifle_of_many_patients_is_not_told() -> None:
    rng = np.random.default_rng(2)
    days = {str(n): int(rng.integers(0, 1000)) for n in range(20_000)}
    outcome: Outcome = {patient: float(rng.normal(day / 5000, 1)) for patient, day in days.items()}
    found = goes_with(days, outcome)
    assert found
    chance, share = found
    assert chance < LEVEL
    assert share < 0.06


def _numbers(rng: Rng) -> float:
    return float(rng.normal())


def _names(rng: Rng) -> str:
    return str(rng.choice(["a", "b", "b"]))


@pytest.mark.parametrize("draw", [_numbers, _names])
def test_an_outcome_by_itself_keeps_the_level(draw: Callable[[Rng], str | float]) -> None:
    alarms = 0
    for seed in range(DRAWS):
        rng = np.random.default_rng(seed)
        days = {str(n): int(rng.integers(0, 90)) for n in range(int(rng.integers(20, 80)))}
        found = goes_with(days, {patient: draw(rng) for patient in days})
        alarms += bool(found and found[0] < LEVEL)
    assert alarms <= MOST_ALARMS


def test_lists_dealt_by_chance_are_told_of_once_in_a_hundred() -> None:
    alarms = 0
    for seed in range(DRAWS):
        rng = np.random.default_rng(seed)
        days = rng.integers(0, 1000, int(rng.integers(25, 150)))
        test = len(days) // 5
        alarms += share_earlier(days[:test].tolist(), days[test:].tolist()) is not None
    assert alarms <= MOST_ALARMS


def test_lists_that_go_back_are_told_of_and_others_not() -> None:
    assert share_earlier(list(range(10)), list(range(10, 40))) == 1
    assert share_earlier(list(range(10, 40)), list(range(10))) is None
    assert share_earlier([1, 2, 3, 4], list(range(10, 40))) is None, "too few"
    assert share_earlier([5] * 10, [5] * 40) is None
