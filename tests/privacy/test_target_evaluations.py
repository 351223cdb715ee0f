"""Evaluations of jobs with targets: no mean tells of a part that rests on few patients."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from oncofed.data.spec import DataSpec
from oncofed.errors import PolicyError
from oncofed.prediction.evaluation import caveats
from oncofed.prediction.evaluation.shareable import scores_record
from oncofed.prediction.evaluation.subgroup_columns import Column
from oncofed.prediction.evaluation.subgroups import Outcomes, by_subgroup, shareable_scores
from oncofed.privacy.evaluations import evaluation_numbers
from oncofed.privacy.outbound import check_numbers, withhold
from oncofed.tasks import metrics_that_may_leave
from oncofed.tasks.scores import Evaluation
from oncofed.tasks.targets import ImageTargets, ImageTargetsSpec, MaskTargets, MaskTargetsSpec, TargetsTask
from oncofed.tasks.targets.outcome import TargetOutcome

FINDINGS = {"name": "findings", "kind": "labels", "findings": ["Effusion", "Mass", "Hernia"]}
DEATH = {"name": "death", "kind": "survival", "unit": "months", "horizon": 36, "model": "cox"}
SIZE = {"name": "size", "kind": "value", "unit": "mm", "range": [0, 40]}
NONE = float("nan")


def task_of(*targets: dict[str, Any]) -> ImageTargets:
    settings = ImageTargetsSpec.model_validate({"targets": targets})
    return ImageTargets(settings, DataSpec(dataset="any", patch=(32, 32)))


def mask_task() -> MaskTargets:
    mask = {"type": "segmentation", "classes": {1: "rim", 2: "heart"}, "partial": True}
    settings = MaskTargetsSpec.model_validate({"targets": [{"name": "disc", "kind": "mask", "mask": mask}, SIZE]})
    return MaskTargets(settings, DataSpec(dataset="any", patch=(32, 32)))


def outcomes_of(task: ImageTargets, truths: dict[str, Sequence[Sequence[float]]]) -> list[tuple[str, TargetOutcome]]:
    """Return random answers beside what patients state."""
    rng = np.random.default_rng(3)
    return [
        (
            f"p{number:02}",
            TargetOutcome(
                {name: head.answer(rng.normal(size=(1, head.outputs)))[0] for name, head in task.heads.items()},
                {name: tuple(map(float, of_target[number])) for name, of_target in truths.items()},
            ),
        )
        for number in range(len(next(iter(truths.values()))))
    ]


def sent(task: TargetsTask, outcomes: list[tuple[str, TargetOutcome]], minimum: int = 1) -> dict[str, Any]:
    """Return what a site sends past its policy."""
    scores = task.summarise(outcomes)
    behind = {name: frozenset(patients) for name, patients in task.patients_behind(outcomes).items()}
    everybody = frozenset(patient for patient, _ in outcomes)
    found = Evaluation(
        scores.mean,
        scores.by_class,
        scores.extra_metrics,
        len(outcomes),
        (0.4, 0.6),
        patients=everybody,
        behind=behind,
        parts=task.parts,
    )
    numbers = {"evaluation": evaluation_numbers(found)}
    withhold(numbers, minimum, task.heads)
    check(task, numbers, len(outcomes))
    return numbers["evaluation"]


def check(task: TargetsTask, numbers: dict[str, Any], most: int) -> None:
    metrics = metrics_that_may_leave(task.spec)
    check_numbers(numbers, task.figure_names, most=most, metrics=metrics, lowest=-1.0, targets=task.heads)


def findings(hernias: int, of: int = 60) -> list[tuple[float, float, float]]:
    return [(float(n % 2), float(n % 3 == 0), float(n < hernias)) for n in range(of)]


def follow_ups(events: int, of: int = 60) -> list[tuple[float, float]]:
    return [(10.0 + n / 10, 1.0) if n < events else (40.0, 0.0) for n in range(of)]


def sizes(unknown: int = 0, of: int = 60) -> list[tuple[float]]:
    return [(NONE if n < unknown else 5.0 + n / 2,) for n in range(of)]


@pytest.mark.attack(
    "the rank of the one patient with a finding, from the mean and the other findings' exact pairs",
    by="the site before it sends: the mean is made of the figures that leave beside it, of enough patients each",
    logged="nowhere: the mean of the others leaves",
)
@pytest.mark.parametrize("minimum", [1, 20])
def test_a_rare_finding_is_in_no_mean(minimum: int) -> None:
    task = task_of(FINDINGS)
    numbers = sent(task, outcomes_of(task, {"findings": findings(1)}), minimum)
    told = {name: value for name, value in numbers["by_class"].items() if "." in name}
    assert told
    assert "findings.Hernia" not in told
    assert numbers["mean"] == pytest.approx(np.mean(list(told.values())), abs=1e-4)
    assert numbers["interval"] is None, "its draws have the finding"
    assert numbers["patients"]["mean"] == min(numbers["patients"]["by_class"].values()) >= max(minimum, 5)


def test_common_findings_are_all_told_and_the_mean_is_theirs() -> None:
    task = task_of(FINDINGS)
    outcomes = outcomes_of(task, {"findings": findings(12)})
    numbers = sent(task, outcomes)
    assert set(numbers["by_class"]) == set(task.figure_names)
    assert numbers["mean"] == pytest.approx(task.summarise(outcomes).mean, abs=1e-4)
    assert numbers["interval"] == [0.4, 0.6]
    assert "findings.Hernia" not in sent(task, outcomes, 20)["by_class"], "a policy wants more patients"


@pytest.mark.attack(
    "the concordance of one to four patients with an event, and how many they are, from the mean",
    by="the site before it sends: neither the mean nor its number of patients has them",
    logged="nowhere: what other targets tell leaves",
)
@pytest.mark.parametrize("events", [1, 4])
def test_of_few_events_neither_figure_nor_number_leaves(events: int) -> None:
    task = task_of(DEATH)
    numbers = sent(task, outcomes_of(task, {"death": follow_ups(events)}))
    assert (numbers["mean"], numbers["by_class"], numbers["more"], numbers["interval"]) == (None, {}, {}, None)
    assert numbers["patients"] == {"all": 60, "mean": 0, "by_class": {}, "more": {}}
    task = task_of(DEATH, SIZE)
    numbers = sent(task, outcomes_of(task, {"death": follow_ups(events), "size": sizes()}))
    assert set(numbers["by_class"]) == {"size"}
    assert (numbers["mean"], numbers["patients"]["mean"]) == (numbers["by_class"]["size"], 60)


@pytest.mark.attack(
    "in how few patients a target is not known, from the number of those in whom it is",
    by="the site before it sends: a target that one to four lack tells nothing",
    logged="nowhere: what other targets tell leaves",
)
def test_a_target_that_few_lack_tells_nothing() -> None:
    task = task_of(DEATH, SIZE)
    truths = {"death": follow_ups(20), "size": sizes(unknown=2)}
    assert set(sent(task, outcomes_of(task, truths))["by_class"]) == {"death"}
    truths["size"] = sizes(unknown=6)
    assert set(sent(task, outcomes_of(task, truths))["by_class"]) == {"death", "size"}


@pytest.mark.attack(
    "a mean, or a number of patients, that does not follow from the figures beside it, by code that ignores the rule",
    by="the site's outbound check, and the server's",
    logged="the site's audit log: held back",
)
@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("mean", 0.1526),
        ("mean", None),
        ("patients/mean", 1),
        ("patients/mean", 60),
        ("by_class/findings", 0.1526),
        ("patients/by_class/findings", 6),
        ("patients/by_class/findings.Mass", 58),
    ],
)
def test_a_mean_follows_from_what_is_sent(path: str, value: Any) -> None:
    task = task_of(FINDINGS)
    numbers = sent(task, outcomes_of(task, {"findings": findings(12)}))
    other = copy.deepcopy(numbers)
    *parents, last = path.split("/")
    inner = other
    for parent in parents:
        inner = inner[parent]
    inner[last] = value
    with pytest.raises(PolicyError, match="evaluation is not within its bounds"):
        check(task, {"evaluation": other}, 60)


@pytest.mark.attack(
    "that one patient's grade is two off, which the table's suppression hides, from the share within one grade",
    by="the site before it sends: those who are off are five at least, or none",
    logged="nowhere: other figures leave",
)
@pytest.mark.parametrize(
    ("off", "told"),
    [
        ((0, 0), {"accuracy", "within_one", "mae_grades"}),
        ((3, 0), {"within_one"}),
        ((8, 0), {"accuracy", "within_one", "mae_grades"}),
        ((8, 1), {"accuracy"}),
        ((8, 6), {"accuracy", "within_one", "mae_grades"}),
    ],
)
def test_shares_of_grades_do_not_count_few_patients(off: tuple[int, int], told: set[str]) -> None:
    task = task_of({"name": "grade", "kind": "grade", "grades": ["low", "middle", "high"]})
    stated = np.arange(90) % 3
    predicted = stated.copy()
    one, two = off
    lows = np.flatnonzero(stated == 0)
    predicted[lows[:one]] = 1
    predicted[lows[one : one + two]] = 2
    outcomes = [
        (f"p{number}", TargetOutcome({"grade": 0.9 * np.eye(3)[said] + 0.033}, {"grade": (float(is_it),)}))
        for number, (said, is_it) in enumerate(zip(predicted, stated, strict=True))
    ]
    shares = {name.partition(".")[0] for name in sent(task, outcomes)["more"]} - {"auroc_from_1", "auroc_from_2"}
    assert shares == told


def outcomes_in_file(outcomes: list[tuple[str, TargetOutcome]]) -> Outcomes:
    patients = tuple(patient for patient, _ in outcomes)
    return Outcomes(patients, patients, tuple(outcome for _, outcome in outcomes))


@pytest.mark.attack(
    "the same from the file of an evaluation that is given away, at full precision, or from its subgroups",
    by="the file: its means are made of figures that it tells, each of five patients at least",
    logged="nowhere: the others are told",
)
def test_a_file_tells_no_mean_of_few_patients() -> None:
    task = task_of(FINDINGS)
    outcomes = outcomes_in_file(outcomes_of(task, {"findings": findings(1)}))
    record = scores_record(task, outcomes, (0.4, 0.6))
    told = shareable_scores(task, outcomes).by_class
    assert "findings.Hernia" not in told
    members = [value for name, value in told.items() if "." in name]
    assert record.mean == pytest.approx(np.mean(members))
    assert record.interval is None
    task = task_of(DEATH)
    outcomes = outcomes_in_file(outcomes_of(task, {"death": follow_ups(1, 30)}))
    assert shareable_scores(task, outcomes).mean is None


def test_a_subgroup_tells_no_mean_of_few_events() -> None:
    task = task_of(DEATH)
    # Of eight patients of one vendor one has the event.
    truths = [*follow_ups(1, 8), *follow_ups(10, 30)]
    outcomes = outcomes_in_file(outcomes_of(task, {"death": truths}))
    names = outcomes.cases
    [found] = by_subgroup(task, outcomes, [Column("vendor", {"A": names[:8], "B": names[8:]})])
    first, second = found.groups
    assert first.scores is None or (first.scores.mean, first.scores.by_class, first.scores.extra_metrics) == (
        None,
        {},
        {},
    )
    assert first.interval is None
    assert second.scores
    assert second.scores.mean is not None
    assert found.differences == ()


def drawn(task: MaskTargets, *dice: tuple[float, float]) -> list[tuple[str, TargetOutcome]]:
    """Return outcomes of masks by their Dice of rim and heart, NaN: not judged; all state their size."""
    head = task.heads["disc"]
    return [
        (
            f"p{number:02}",
            TargetOutcome(
                {"disc": head.encoded({"dice.rim": rim, "dice.heart": heart}), "size": np.array([5.0])},
                {"disc": (1.0,), "size": (5.0 + number % 3,)},
            ),
        )
        for number, (rim, heart) in enumerate(dice)
    ]


def test_the_dice_of_a_mask_that_lacks_structures_is_a_mean_over_patients() -> None:
    task = mask_task()
    outcomes = drawn(task, *[(0.9, NONE)] * 25, *[(NONE, 0.3)] * 5)
    numbers = sent(task, outcomes)
    assert (numbers["by_class"]["disc"], task.summarise(outcomes).by_class["disc"]) == pytest.approx((0.8, 0.8))
    assert numbers["mean"] == pytest.approx(task.summarise(outcomes).mean, abs=1e-4)
    assert {name: numbers["by_class"][f"disc.{name}"] for name in ("rim", "heart")} == {"rim": 0.9, "heart": 0.3}


@pytest.mark.attack(
    "the Dice of one to four patients, from a mask's own figure and those of its structures",
    by="the site before it sends: the mask's figure stays where that of a structure does",
    logged="nowhere: what other targets tell leaves",
)
@pytest.mark.parametrize(
    ("few", "told"),
    [
        ([(0.9, 0.1)] * 3 + [(0.8, NONE)] * 27, {"size"}),
        ([(0.9, 0.1)] * 27 + [(0.8, NONE)] * 3, {"disc.rim", "size"}),
    ],
)
def test_a_masks_figure_is_not_told_beside_part_of_its_structures(
    few: list[tuple[float, float]], told: set[str]
) -> None:
    task = mask_task()
    outcomes = drawn(task, *few)
    numbers = sent(task, outcomes)
    assert set(numbers["by_class"]) == told
    assert numbers["mean"] == numbers["by_class"]["size"]
    names = tuple(name for name, _ in outcomes)
    scores = shareable_scores(task, Outcomes(names, names, tuple(one for _, one in outcomes)))
    assert "disc" not in scores.by_class
    assert scores.mean == scores.by_class["size"]
    everybody = Outcomes(names, names, tuple(one for _, one in outcomes))
    record = scores_record(task, everybody, None)
    assert record.in_mean == ["size"]
    note = caveats.of_mean(task, task.summarise(outcomes), record)[0]
    assert note.startswith(f"mean over targets in evaluation.json: of size alone, {record.mean:.3f}. A figure of disc")
    assert f"{task.summarise(outcomes).mean:.3f}" not in note, "it may be handed on"
