"""What a site tells of masks: by no sums and differences is it of few patients."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from oncofed.data.spec import DataSpec
from oncofed.privacy.evaluations import evaluation_numbers
from oncofed.privacy.outbound import check_numbers, withhold
from oncofed.suppression import LEAST_PATIENTS, are_told_beside
from oncofed.tasks import metrics_that_may_leave
from oncofed.tasks.over_sites import pooled_test
from oncofed.tasks.pooled import MEAN
from oncofed.tasks.scores import Evaluation
from oncofed.tasks.targets import MaskTargets, MaskTargetsSpec
from oncofed.tasks.targets.outcome import TargetOutcome

MEMBERS = ("core", "organ", "vessel")
# Which members the masks of a patient can judge.
KINDS = tuple(kind for size in (1, 2, 3) for kind in itertools.combinations(MEMBERS, size))
Kinds = Mapping[tuple[str, ...], int]
SIZE = {"name": "size", "kind": "value", "unit": "mm", "range": [0, 40]}


def _task() -> MaskTargets:
    mask = {"type": "segmentation", "classes": dict(enumerate(MEMBERS, 1)), "partial": True}
    settings = MaskTargetsSpec.model_validate({"targets": [{"name": "scan", "kind": "mask", "mask": mask}, SIZE]})
    return MaskTargets(settings, DataSpec(dataset="any", patch=(32, 32)))


TASK = _task()


def _outcomes(kinds: Kinds) -> list[tuple[str, TargetOutcome]]:
    rng = np.random.default_rng(4)
    judged = [kind for kind, patients in kinds.items() for _ in range(patients)]
    return [
        (
            f"p{number:03}",
            TargetOutcome(
                {
                    "scan": TASK.heads["scan"].encoded({f"dice.{name}": float(rng.uniform(0.2, 1)) for name in kind}),
                    "size": np.array([5.0]),
                },
                {"scan": (1.0,), "size": (5.0 + number % 3,)},
            ),
        )
        for number, kind in enumerate(judged)
    ]


def _sent(kinds: Kinds, minimum: int) -> dict[str, Any]:
    """Return what a site sends past its policy: sums, and an evaluation."""
    outcomes = _outcomes(kinds)
    scores = TASK.summarise(outcomes)
    behind = {name: frozenset(patients) for name, patients in TASK.patients_behind(outcomes).items()}
    people = frozenset(patient for patient, _ in outcomes)
    found = Evaluation(
        scores.mean,
        scores.by_class,
        scores.extra_metrics,
        len(outcomes),
        (0.4, 0.6),
        patients=people,
        behind=behind,
        parts=TASK.parts,
    )
    numbers: dict[str, Any] = {"evaluation": evaluation_numbers(found)}
    if sums := TASK.pooled(outcomes):
        numbers["pooled"] = sums
    withhold(numbers, minimum, TASK.heads)
    metrics = metrics_that_may_leave(TASK.spec)
    check_numbers(numbers, TASK.figure_names, True, len(outcomes), metrics, -1.0, TASK.heads)
    return numbers


def _told(numbers: Mapping[str, Any]) -> set[str]:
    """Return the members, and the mean over a patient's, of which a sum is known from either."""
    found = {name.partition(".")[2] or MEAN for name in numbers["evaluation"]["by_class"] if name != "size"}
    sums = numbers.get("pooled", {}).get("targets", {}).get("scan", {"figures": {}})
    return found | set(sums["figures"])


def _discloses(told: Collection[str], kinds: Kinds, least: int) -> bool:
    """Return whether some sum of what is told is of one to ``least - 1`` patients alone.

    Patients whose masks judge the same members are in the same sums, so that they stand for each other.
    """
    present = [kind for kind, patients in kinds.items() if patients]
    columns = [(kind, name) for kind in present for name in kind]
    rows = np.array(
        [[1 / len(kind) if one == MEAN else float(one == name) for kind, name in columns] for one in sorted(told)]
    ).reshape(len(told), len(columns))
    rank = np.linalg.matrix_rank(rows) if rows.size else 0
    for size in range(1, len(present) + 1):
        for few in itertools.combinations(present, size):
            if sum(kinds[kind] for kind in few) < least:
                others = rows[:, [n for n, (kind, _) in enumerate(columns) if kind not in few]]
                if (np.linalg.matrix_rank(others) if others.size else 0) < rank:
                    return True
    return False


@pytest.mark.attack(
    "the Dice of the few patients who have a structure, from the mean over structures less those of the others",
    by="the site before it sends, and its policy: the mean stays where the sums of a structure do",
    logged="nowhere: what is left leaves",
)
@given(st.fixed_dictionaries({kind: st.sampled_from([0, 0, 1, 3, 6, 15, 40]) for kind in KINDS}), st.integers(1, 20))
@example({("organ",): 45, ("core", "organ"): 2, ("organ", "vessel"): 4}, 20)
@example({("core", "organ"): 30, ("core", "vessel"): 30, ("organ", "vessel"): 30, MEMBERS: 1}, 1)
@example({("core", "organ"): 30, ("core", "vessel"): 30, ("organ", "vessel"): 30, MEMBERS: 6}, 20)
@example({MEMBERS: 47, ("core", "vessel"): 3}, 5)
@settings(deadline=None, max_examples=40)
def test_no_sum_of_what_is_told_is_of_few(kinds: Kinds, minimum: int) -> None:
    if not any(kinds.values()):
        return
    numbers = _sent(kinds, minimum)
    assert not _discloses(_told(numbers), kinds, max(minimum, LEAST_PATIENTS))


def test_the_attack_finds_what_a_mean_beside_its_parts_tells() -> None:
    assert _discloses({MEAN, "organ"}, {("organ",): 45, ("core", "organ"): 2}, 5)
    assert not _discloses({MEAN, "organ"}, {("organ",): 45, ("core", "organ"): 5}, 5)


@pytest.mark.parametrize(
    ("kinds", "minimum", "told"),
    [
        ({MEMBERS: 40}, 20, {MEAN, *MEMBERS}),
        ({("organ",): 40}, 20, {MEAN, "organ"}),
        ({("organ",): 30, ("core", "organ"): 30}, 20, {MEAN, "core", "organ"}),
        ({("organ",): 45, ("core", "organ"): 2}, 5, set()),
        ({MEMBERS: 38, ("organ", "vessel"): 8}, 5, {MEAN, *MEMBERS}),
        ({MEMBERS: 38, ("organ", "vessel"): 8}, 20, {"organ", "vessel"}),
    ],
)
def test_what_enough_patients_are_behind_is_told(kinds: Kinds, minimum: int, told: set[str]) -> None:
    numbers = _sent(kinds, minimum)
    assert _told(numbers) == told
    pooled = pooled_test({"here": numbers["pooled"]}, ["here"], TASK.heads)
    assert pooled is not None
    figures = pooled.targets["scan"].figures if "scan" in pooled.targets else {}
    assert set(figures) == {"dice" if name == MEAN else f"dice.{name}" for name in told}


def test_groups_that_some_lack_may_have_any_number_in_common() -> None:
    assert are_told_beside({"a": 60, "b": 60}, 60, 20)
    assert are_told_beside({"a": 60, "b": 40}, 60, 20)
    assert not are_told_beside({"a": 40, "b": 40}, 60, 20)
    assert not are_told_beside({"a": 60, "b": 50}, 60, 20)
