"""Scores by subgroup.

Each as the task scores it, none of few patients, and none that can be derived from others.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from oncofed.data.spec import DataSpec
from oncofed.prediction.evaluation.shareable import scores_record, subgroups_record
from oncofed.prediction.evaluation.subgroup_columns import Column
from oncofed.prediction.evaluation.subgroups import Outcomes, Subgroups, by_subgroup, shareable_scores
from oncofed.tasks import Classification, ClassificationSpec, Segmentation, SegmentationSpec, Task
from oncofed.tasks.classification import Classified
from oncofed.tasks.patient_statistics import confidence

TASK = Segmentation(SegmentationSpec(classes={1: "shell", 2: "core"}), DataSpec(dataset="x"))
CLASSES = Classification(
    ClassificationSpec(classes={0: "a", 1: "b", 2: "c"}), DataSpec(dataset="x", modality="xray", patch=(32, 32))
)
NAN = float("nan")


def _outcomes(shell: list[float], core: list[float] | None = None, patients: list[str] | None = None) -> Outcomes:
    core = core or shell
    names = tuple(f"case-{n}" for n in range(len(shell)))
    found = tuple({"dice.shell": s, "dice.core": c, "hd95_mm.core": 1.0} for s, c in zip(shell, core, strict=True))
    return Outcomes(names, tuple(patients or names), found)


def _column(*sizes: int) -> Column:
    starts = [sum(sizes[:n]) for n in range(len(sizes))]
    ranges = [range(start, start + size) for start, size in zip(starts, sizes, strict=True)]
    return Column("vendor", {f"g{n}": tuple(f"case-{k}" for k in numbers) for n, numbers in enumerate(ranges)})


def _by(task: Task[Any], outcomes: Outcomes, column: Column) -> Subgroups:
    [found] = by_subgroup(task, outcomes, [column])
    return found


def test_each_group_is_scored_as_the_task_does_and_the_difference_has_an_interval() -> None:
    rng = np.random.default_rng(0)
    values = [*rng.uniform(0.8, 0.9, 20), *rng.uniform(0.5, 0.6, 12)]
    found = _by(TASK, _outcomes(values), _column(20, 12))
    first, second = found.groups
    assert first.scores
    assert second.scores
    assert first.scores.mean == pytest.approx(np.mean(values[:20]))
    assert second.interval
    assert second.interval[0] < np.mean(values[20:]) < second.interval[1] < first.interval[0]
    [away] = found.differences
    assert (away.group, away.reference) == ("g1", "g0")
    assert away.difference == pytest.approx(np.mean(values[20:]) - np.mean(values[:20]))
    assert away.interval
    assert away.interval[0] < away.difference < away.interval[1] < -0.2


def test_all_patients_in_one_group_have_the_interval_of_all() -> None:
    outcomes = _outcomes(np.random.default_rng(1).uniform(0, 1, 9).tolist())
    [group] = _by(TASK, outcomes, _column(9)).groups
    assert group.interval == pytest.approx(confidence(TASK, outcomes.patient_outcomes()))
    assert _by(TASK, outcomes, _column(9)).differences == ()


def test_small_groups_are_withheld_with_groups_that_reveal_them() -> None:
    found = _by(TASK, _outcomes([0.5] * 40), _column(20, 17, 3))
    assert [group.scores is None for group in found.groups] == [False, True, True]
    assert [group.reason for group in found.groups] == [
        "",
        "it would give others away",
        "fewer than 5 patients",
    ]
    assert found.differences == ()
    record = subgroups_record(TASK, found)
    assert ([group.name for group in record.groups], record.withheld_groups) == (["g0"], 2)
    assert "g2" not in record.model_dump_json()


def test_patients_count_not_cases() -> None:
    outcomes = _outcomes([0.5] * 20, patients=[*(f"p{n}" for n in range(10)), *["same"] * 10])
    found = _by(TASK, outcomes, _column(10, 10))
    assert [(group.patients, group.cases) for group in found.groups] == [(10, 10), (1, 10)]
    assert all(group.scores is None for group in found.groups)


def test_a_rare_class_of_a_group_is_withheld_also_where_derivable() -> None:
    core = [0.4] * 20 + [NAN] * 9 + [0.9] * 3 + [0.6] * 8
    found = _by(TASK, _outcomes([0.5] * 40, core), _column(20, 12, 8))
    shown = [group.scores for group in found.groups]
    assert all(shown)
    assert [sorted(scores.by_class) for scores in shown if scores] == [["core", "shell"], ["shell"], ["shell"]]
    assert ["hd95_mm.core" in scores.extra_metrics for scores in shown if scores] == [True, False, False]


def test_absent_classes_and_unreported_metrics_are_left_out() -> None:
    outcomes = _outcomes([NAN] * 12, [NAN] * 12)
    found = _by(TASK, outcomes, _column(6, 6))
    assert [(g.scores.mean, g.interval) for g in found.groups if g.scores] == [(None, None)] * 2
    assert found.differences == ()
    record = scores_record(TASK, outcomes, None)
    assert (record.patients, record.mean, record.by_class) == (12, None, {})
    assert subgroups_record(TASK, found).groups[0].mean is None


def test_patients_without_a_figure_provide_no_cover() -> None:
    """Correctly empty masks have no Dice.

    So the mean of such a group is that of the others.
    """
    values = [0.5] * 20 + [NAN] * 8 + [0.9] * 3
    found = _by(TASK, _outcomes(values), _column(14, 6, 11))
    assert [group.reason for group in found.groups] == ["", "it would give others away", "fewer than 5 patients"]
    assert scores_record(TASK, _outcomes(values[-11:]), None).model_dump(exclude_defaults=True) == {}


def test_nothing_about_few_patients_is_shared() -> None:
    outcomes = _outcomes([0.5] * 9, patients=["a", "b", "c", "d"] * 2 + ["a"])
    assert scores_record(TASK, outcomes, None).model_dump(exclude_defaults=True) == {}


def test_of_a_classification_a_class_needs_its_own_patients() -> None:
    rng = np.random.default_rng(0)
    labels = [0] * 10 + [1] * 10 + [2] * 2
    found = tuple(Classified(p / p.sum(), label) for p, label in zip(rng.uniform(0, 1, (22, 3)), labels, strict=True))
    names = tuple(str(n) for n in range(22))
    scores = shareable_scores(CLASSES, Outcomes(names, names, found))
    assert set(scores.by_class) == {"a", "b"}
    assert scores.mean is not None
    column = Column("sex", {"f": names[::2], "m": names[1::2]})
    for group in _by(CLASSES, Outcomes(names, names, found), column).groups:
        assert group.scores
        assert group.interval
        assert group.interval[0] <= group.scores.mean <= group.interval[1]


def test_a_group_with_one_class_has_no_auc() -> None:
    names = tuple(str(n) for n in range(20))
    found = tuple(Classified(np.array([0.2, 0.3, 0.5]), n // 10) for n in range(20))
    column = Column("site", {"x": names[:10], "y": names[10:]})
    groups = _by(CLASSES, Outcomes(names, names, found), column)
    assert [group.scores.mean for group in groups.groups if group.scores] == [None, None]
    assert groups.differences == ()


def test_one_patient_cannot_be_derived_from_two_columns() -> None:
    values = np.random.default_rng(0).uniform(0.3, 0.95, 24).tolist()
    vendor, slices = _column(12, 12), Column("slices", _column(11, 13).groups)
    found = by_subgroup(TASK, _outcomes(values), [vendor, slices])
    told = [group for column in found for group in column.groups if group.scores]
    assert sorted(group.patients for group in told) == [11, 13]  # 12 and 11 would leave one
    hidden = [group for column in found for group in column.groups if not group.scores]
    assert {group.reason for group in hidden} == {"it would give others away"}
    assert subgroups_record(TASK, found[0]).withheld_groups == 2


def test_a_patient_with_one_more_image_in_a_group_cannot_be_derived() -> None:
    """Two groups with the same patients differ by one image.

    One patient has two images of the first group, and one of them is in the second.
    """
    patients = [f"p{n % 20}" for n in range(21)]
    outcomes = _outcomes(np.random.default_rng(0).uniform(0.3, 0.95, 21).tolist(), patients=patients)
    names = outcomes.cases
    first = Column("a", {"x": (*names[:10], names[20]), "y": names[10:20]})
    second = Column("b", {"x": names[:10], "y": names[10:]})
    found = by_subgroup(TASK, outcomes, [first, second])
    told = [(column.column, group.name) for column in found for group in column.groups if group.scores]
    assert told == [("b", "y")]


def test_a_class_cannot_be_derived_from_two_columns() -> None:
    core = [0.5 if n < 10 or 12 <= n < 22 else NAN for n in range(24)]
    second = Column("slices", _column(6, 18).groups)
    both = by_subgroup(TASK, _outcomes([0.5] * 24, core), [_column(12, 12), second])
    assert all("core" in group.scores.by_class for column in both for group in column.groups if group.scores) is False
    assert all(group.scores for column in both for group in column.groups)
