"""Figures that leave a site rest on five patients."""

from __future__ import annotations

import copy
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oncofed.data.spec import DataSpec
from oncofed.errors import PolicyError
from oncofed.privacy.evaluations import evaluation_numbers, is_evaluation
from oncofed.privacy.outbound import check_numbers, withhold
from oncofed.suppression import LEAST_PATIENTS, withheld_counts, withheld_groups
from oncofed.tasks import Classification, ClassificationSpec, Segmentation, SegmentationSpec, metrics_that_may_leave
from oncofed.tasks.base import Task
from oncofed.tasks.classification import Classified
from oncofed.tasks.scores import Evaluation

NAMES = ["liver", "lesion", "spleen"]
ORGANS = Segmentation(SegmentationSpec(classes=dict(enumerate(NAMES, 1))), DataSpec(dataset="d"))
KINDS = Classification(
    ClassificationSpec(classes={0: "a", 1: "b", 2: "c"}), DataSpec(dataset="d", modality="xray", patch=(64, 64))
)
NONE = float("nan")
KIND = ("dice", "hd95_mm")


def _sent(task: Task[Any], outcomes: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return what a site sends, after its guard."""
    scores = task.summarise(outcomes)
    behind = {name: frozenset(patients) for name, patients in task.patients_behind(outcomes).items()}
    everybody = frozenset(patient for patient, _ in outcomes)
    found = Evaluation(
        scores.mean, scores.by_class, scores.extra_metrics, len(outcomes), (0.4, 0.6), patients=everybody, behind=behind
    )
    numbers = evaluation_numbers(found)
    check_numbers({"evaluation": numbers}, list(task.classes.values()), most=len(outcomes))
    return numbers


def _organs(*having: int, of: int = 8) -> list[tuple[str, dict[str, float]]]:
    """Return outcomes with given numbers of patients per class.

    With a surface distance each.
    """
    return [
        (f"p{n}", {f"{kind}.{name}": 0.3141592653 if n < count else NONE for name, count in found for kind in KIND})
        for n in range(of)
        for found in [list(zip(NAMES, having, strict=False))]
    ]


@pytest.mark.attack(
    "the score of the one patient who has a rare class, from what is told of the class, or of the others and the mean",
    by="the site before it sends: five patients stand behind a class, and behind what it would give away",
    logged="nowhere: the mean leaves as before",
)
def test_a_class_of_one_patient_is_neither_reported_nor_derivable() -> None:
    numbers = _sent(ORGANS, _organs(8, 1))
    assert (numbers["by_class"], numbers["more"]) == ({}, {})
    assert numbers["patients"] == {"all": 8, "mean": 8, "by_class": {}, "more": {}}
    assert numbers["mean"] == 0.3142, "digits that nobody looks at stay"
    numbers = _sent(ORGANS, _organs(8, 1, 8))
    assert set(numbers["by_class"]) == {"spleen"}, "the mean is of another one that is not told, too"
    assert set(numbers["more"]) == {"hd95_mm.spleen"}
    numbers = _sent(ORGANS, _organs(20, 17, 20, of=20))
    assert set(numbers["by_class"]) == {"liver", "spleen"}, "three patients lack it"
    assert set(_sent(ORGANS, _organs(12, 6, 12, of=12))["by_class"]) == set(NAMES)


def test_a_further_figure_of_few_patients_stays() -> None:
    outcomes = _organs(8, 8, 8)
    for _, figures in outcomes[1:]:
        figures["hd95_mm.lesion"] = NONE
    assert set(_sent(ORGANS, outcomes)["more"]) == {"hd95_mm.liver", "hd95_mm.spleen"}


def test_patients_count_not_cases() -> None:
    numbers = _sent(ORGANS, [(f"p{n % 2}", figures) for n, (_, figures) in enumerate(_organs(8, 8, 8))])
    assert (numbers["cases"], numbers["patients"]["all"], numbers["by_class"], numbers["interval"]) == (8, 2, {}, None)
    assert not math.isnan(numbers["mean"])
    sent = {"evaluation": numbers}
    assert withhold(sent, 3)
    assert sent["evaluation"]["mean"] is None


def test_of_a_classifier_the_rarer_kind_counts() -> None:
    rng = np.random.default_rng(0)

    def of(task: Classification, *counts: int) -> dict[str, Any]:
        labels = [label for label, count in enumerate(counts) for _ in range(count)]
        few = len(task.classes)
        return _sent(task, [(f"p{n}", Classified(rng.dirichlet([1] * few), label)) for n, label in enumerate(labels)])

    numbers = of(KINDS, 10, 9, 1)
    assert set(numbers["by_class"]) == {"a"}
    assert numbers["more"] == {}, "one patient's class is right or not"
    assert set(of(KINDS, 10, 9, 6)["by_class"]) == {"a", "b", "c"}
    two = Classification(ClassificationSpec(classes={0: "a", 1: "b"}), KINDS.data)
    numbers = of(two, 19, 1)
    assert (numbers["by_class"], numbers["more"], numbers["interval"]) == ({}, {}, None)
    assert set(of(two, 19, 5)["more"]) == {"auprc", "balanced_accuracy", "calibration_error"}


@pytest.mark.attack(
    "how many patients of a site have the rarer of two classes, and the rank of one who has it, from mean and count",
    by="the site before it sends, and its outbound filter: below five of some patients neither leaves",
    logged="nowhere: the score is not there",
)
@pytest.mark.parametrize("rare", [1, 2, 4])
def test_a_mean_of_a_few_of_the_patients_stays_with_their_number(rare: int) -> None:
    two = Classification(ClassificationSpec(classes={0: "a", 1: "b"}), KINDS.data)
    rng = np.random.default_rng(0)

    def of(*counts: int) -> dict[str, Any]:
        labels = [label for label, count in enumerate(counts) for _ in range(count)]
        return _sent(two, [(f"p{n}", Classified(rng.dirichlet([1, 1]), label)) for n, label in enumerate(labels)])

    numbers = of(20 - rare, rare)
    assert (numbers["mean"], numbers["patients"]["mean"], numbers["patients"]["all"]) == (None, 0, 20)
    assert of(rare, rare)["mean"] is None, "of as many of either kind it rests on as few"
    told = of(15, 5)
    assert told["mean"] is not None
    assert told["patients"]["mean"] == 5
    # A changed client is held back, by the filter of its site and by the server.
    for count, mean in ((rare, told["mean"]), (rare, None), (0, told["mean"])):
        lie = {**told, "mean": mean, "interval": None, "by_class": {}, "more": {}}
        lie["patients"] = {"all": 20, "mean": count, "by_class": {}, "more": {}}
        with pytest.raises(PolicyError, match="evaluation is not within its bounds"):
            check_numbers({"evaluation": lie}, ["a", "b"], most=20)


def test_a_mean_of_a_mask_that_few_have_stays() -> None:
    numbers = _sent(ORGANS, _organs(3, 2, 1))
    assert (numbers["mean"], numbers["patients"]["mean"], numbers["patients"]["all"]) == (None, 0, 8)
    # Of few patients in all it leaves as the policy says.
    assert _sent(ORGANS, _organs(3, 3, 3, of=3))["mean"] == 0.3142


GROUPS = st.dictionaries(st.sampled_from("abcd"), st.sets(st.sampled_from([f"p{n}" for n in range(14)])), min_size=1)


@given(GROUPS)
def test_figures_next_to_a_mean_differ_from_it_by_enough_patients(groups: dict[str, set[str]]) -> None:
    hidden = withheld_groups(groups, LEAST_PATIENTS)
    everybody = set[str]().union(*groups.values())
    told = [group for name, group in groups.items() if name not in hidden and group]
    assert all(len(group) >= LEAST_PATIENTS for group in told)
    assert all(group == everybody or len(everybody - group) >= LEAST_PATIENTS for group in told)
    # A sum of the mean and the told figures has what is hidden of each patient who is in a hidden group.
    if told and hidden:
        assert len(set[str]().union(*(groups[name] for name in hidden))) >= LEAST_PATIENTS
    if not hidden:
        alike = Counter(tuple(patient in group for group in groups.values()) for patient in everybody)
        assert all(count >= LEAST_PATIENTS for count in alike.values())


@given(st.dictionaries(st.sampled_from("abcd"), st.integers(1, 40)), st.integers(5, 12))
def test_counts_that_few_patients_have_or_lack_are_withheld(counts: dict[str, int], least: int) -> None:
    whole = max(counts.values(), default=0)
    hidden = withheld_counts(counts, whole, least)
    told = [count for name, count in counts.items() if name not in hidden]
    assert all(count >= least and not 0 < whole - count < least for count in told)
    assert not (told and hidden) or max(counts[name] for name in hidden) >= least


def test_a_stricter_policy_hides_figures_that_would_reveal_patients() -> None:
    sent = {"evaluation": _sent(ORGANS, _organs(30, 24, 30, of=30))}
    assert set(sent["evaluation"]["by_class"]) == set(NAMES)
    assert withhold(sent, 10)
    assert set(sent["evaluation"]["by_class"]) == {"liver", "spleen"}, "six lack a lesion"
    assert set(sent["evaluation"]["more"]) == {"hd95_mm.liver", "hd95_mm.spleen"}
    check_numbers(sent, NAMES)
    assert not withhold(copy.deepcopy(sent), 10)


@pytest.mark.attack(
    "the mean score of the few patients of a class that the site hid, from the mean and the classes that it told",
    by="the site's policy: another class of enough patients is hidden beside it",
    logged="nowhere: what is left leaves",
)
@pytest.mark.parametrize(("lesions", "told"), [((4, 3), {"spleen"}), ((30, 30), set(NAMES))])
def test_a_stricter_policy_knows_of_classes_that_the_site_hid(lesions: tuple[int, int], told: set[str]) -> None:
    """Seven of 30 patients have one of two rare classes: enough for the site, too few for a policy of ten."""
    outcomes = [
        (
            f"p{n}",
            {
                "dice.liver": 0.5 if n < lesions[0] else NONE,
                "dice.lesion": 0.25 if n >= 30 - lesions[1] else NONE,
                "dice.spleen": 0.75,
            },
        )
        for n in range(30)
    ]
    numbers: dict[str, Any] = {"evaluation": _sent(ORGANS, outcomes), "pooled": ORGANS.pooled(outcomes)}
    assert set(numbers["evaluation"]["by_class"]) == told
    assert set(numbers["pooled"]["figures"]) == {"mean", *told}
    withhold(numbers, 10, classes=NAMES)
    if len(told) == 1:
        told = set()
    assert set(numbers["evaluation"]["by_class"]) == told
    assert set(numbers["pooled"]["figures"]) == {"mean", *told}
    check_numbers(numbers, NAMES, sums=True)


def test_a_class_that_is_all_of_the_mean_is_told_by_a_stricter_policy() -> None:
    outcomes = _organs(30, 0, 0, of=30)
    numbers: dict[str, Any] = {"evaluation": _sent(ORGANS, outcomes), "pooled": ORGANS.pooled(outcomes)}
    assert not withhold(numbers, 10, classes=NAMES)
    assert set(numbers["evaluation"]["by_class"]) == {"liver"}


def test_classes_of_few_patients_are_not_what_is_left_of_all() -> None:
    """Seven patients have one of two rare classes: all less those of the classes that are told."""
    rng = np.random.default_rng(2)
    task = Classification(ClassificationSpec(classes=dict(enumerate("abcd"))), KINDS.data)
    labels = np.repeat(range(4), (30, 20, 4, 3)).tolist()
    outcomes = [(f"p{n}", Classified(rng.dirichlet([1] * 4), label)) for n, label in enumerate(labels)]
    numbers: dict[str, Any] = {"pooled": task.pooled(outcomes)}
    assert set(numbers["pooled"]["classes"]) == {"a", "b"}
    assert withhold(numbers, 10)
    assert set(numbers["pooled"]["classes"]) == {"a"}


@pytest.mark.attack(
    "a class's figure with no, or too few, patients behind it, sent by code that does not hold to the rule",
    by="the site's outbound check, and the server's: numbers of patients that agree with each other",
    logged="the site's audit log: held back",
)
@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("patients", None),
        ("patients/all", 21),
        ("patients/all", 0),
        ("patients/mean", 21),
        ("patients/by_class", {}),
        ("patients/by_class/liver", 4),
        ("patients/by_class/liver", 17),  # three lack it
        ("patients/by_class/liver", 20.0),
        ("patients/more", {}),
        ("patients/more/hd95_mm.liver", 1),
        ("patients/MRN-0001", 20),
        ("cases", 19),
        ("by_class/liver", 0.3141592653),
        ("mean", 0.31415926),
        ("more/hd95_mm.liver", 3.14159265),
        ("interval", [0.1234567, 0.5]),
    ],
)
def test_numbers_of_patients_agree_with_each_other(path: str, value: Any) -> None:
    numbers = _sent(ORGANS, _organs(20, 20, 20, of=20))
    assert is_evaluation(numbers, NAMES, 20)
    assert not is_evaluation(numbers, NAMES, 19), "more than the site has"
    *parents, last = path.split("/")
    inner = numbers
    for parent in parents:
        inner = inner[parent]
    inner[last] = value
    with pytest.raises(PolicyError):
        check_numbers({"evaluation": numbers}, NAMES, most=20)


@pytest.mark.attack(
    "a figure of another task's, in a message of a job that has none of that name",
    by="the site before it sends: its installed task declares its metrics",
    logged="the site's audit log (held back)",
)
def test_a_figure_that_the_jobs_own_task_does_not_declare_is_held_back() -> None:
    numbers = _sent(ORGANS, _organs(8, 8, 8))
    metrics = metrics_that_may_leave(ORGANS.spec)
    check_numbers({"evaluation": numbers}, NAMES, metrics=metrics)
    numbers["more"]["f1"], numbers["patients"]["more"]["f1"] = 0.5, 8
    check_numbers({"evaluation": numbers}, NAMES)
    with pytest.raises(PolicyError, match="evaluation is not within its bounds"):
        check_numbers({"evaluation": numbers}, NAMES, metrics=metrics)
