"""Counts and sums leave a site in one shape.

They hold nobody's score, and nothing else fits into them.
"""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest

from oncofed.errors import PolicyError
from oncofed.privacy.outbound import check_numbers, withhold
from oncofed.tasks.calibration import TEMPERATURES, temperature_sums
from oncofed.tasks.deletion import SHARES, site_sums
from oncofed.tasks.site_sums import classification_sums, figure_sums

CLASSES = ["clear", "pneumonia"]


def _sent(count: int = 60) -> dict[str, Any]:
    """Return what a site with so many patients sends."""
    rng = np.random.default_rng(0)
    labels = np.arange(count) % 2
    second = 1 / (1 + np.exp(-rng.normal(2 * labels - 1, 1.5)))
    found, names = np.stack([1 - second, second], axis=1), [f"p{n}" for n in range(count)]
    return {
        "evaluation": {
            "mean": 0.8,
            "by_class": {},
            "more": {},
            "interval": None,
            "cases": count,
            "patients": {"all": count, "mean": count // 2, "by_class": {}, "more": {}},
        },
        "pooled": classification_sums(found, labels, names, dict(enumerate(CLASSES)), 1.7),
        "temperature": temperature_sums(found, labels, names),
        "paired": {"patients": count, "difference": -0.0123457, "variance": 0.000123},
    }


FIGURES = figure_sums({"mean": {str(n): n / 20 for n in range(12)}, "clear": {str(n): 0.5 for n in range(12)}}, "mean")


def test_a_sites_sums_pass_and_survive_transport() -> None:
    check_numbers(_sent(), CLASSES, sums=True)
    check_numbers(json.loads(json.dumps(_sent(11))), CLASSES, sums=True)
    check_numbers({"pooled": FIGURES}, CLASSES, sums=True)


@pytest.mark.parametrize("name", ["pooled", "temperature", "paired"])
def test_no_sums_leave_with_an_update(name: str) -> None:
    with pytest.raises(PolicyError):
        check_numbers({name: _sent()[name]}, CLASSES)


def _at(numbers: dict[str, Any], path: str) -> tuple[Any, Any]:
    inner: Any = numbers
    *parents, last = (int(part) if part.lstrip("-").isdigit() else part for part in path.split("/"))
    for parent in parents:
        inner = inner[parent]
    return inner, last


@pytest.mark.attack(
    "a patient's scores in the place of counts and sums",
    by="the site's outbound check: counts of at least five patients, sums within bounds and digits",
    logged="the site's audit log: held back",
)
@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("pooled/patients", 4),
        ("pooled/patients", 60.0),
        ("pooled/scores", [0.1, 0.9]),
        ("pooled/classes/MRN-0001", {}),
        ("pooled/classes/pneumonia", {}),
        ("pooled/classes/pneumonia/with/0/1", 1),  # a cell of one patient
        ("pooled/classes/pneumonia/with/0/1", True),
        ("pooled/classes/pneumonia/with/0/0", 200),
        ("pooled/classes/pneumonia/with/-1/0", 3),  # where the lowest patient lies
        ("pooled/classes/pneumonia/without/0", [50, 5, 1.2, 3.4, 0.731]),
        ("pooled/classes/pneumonia/without/0", [50, 5]),
        ("pooled/classes/pneumonia/with/0/2", 1e6),
        ("pooled/classes/pneumonia/with/0/2", 12.345678901234),
        ("pooled/classes/pneumonia/with/0/3", -1.0),
        ("pooled/classes/pneumonia/pairs", 1e9),
        ("pooled/classes/pneumonia/pairs", 17.25),
        ("pooled/reliability/cells/0", [1, 1, 0.97, 0.9]),
        ("pooled/reliability/cells/0/0", 4),
        ("pooled/reliability/cells/0/1", 61),
        ("pooled/reliability/cells/0/2", 4.1234567),
        ("pooled/reliability/cells/0/2", "MRN-0001"),
        ("pooled/reliability/brier", [1.0, 2.0, 3.0]),
        ("pooled/reliability/log_loss/0", float("nan")),
        ("pooled/reliability/name", "x"),
        ("temperature/patients", 4),
        ("temperature/log_loss/0", 12.34),  # not rounded as all are
        ("temperature/log_loss/0", float("inf")),
        ("temperature/log_loss", [1.0] * (len(TEMPERATURES) + 1)),
        ("temperature/scores", [0.5]),
        ("paired/patients", 4),
        ("paired/difference", 0.12345678901),
        ("paired/difference", 2.0),
        ("paired/variance", -1.0),
        ("paired/name", "MRN-0001"),
    ],
)
def test_another_shape_is_held_back_and_the_reason_repeats_none_of_it(path: str, value: Any) -> None:
    numbers = copy.deepcopy(_sent())
    inner, last = _at(numbers, path)
    inner[last] = value
    with pytest.raises(PolicyError) as caught:
        check_numbers(numbers, CLASSES, sums=True)
    assert "MRN" not in str(caught.value)
    assert str(value) not in str(caught.value)


@pytest.mark.parametrize(
    "figures",
    [
        {"mean": [4, 2.0, 1.0]},
        {"mean": [5, 2.0]},
        {"mean": [5, 9.0, 1.0]},
        {"mean": [5, 2.00001, 1.0]},
        {"MRN-0001": [5, 2.0, 1.0]},
        [5, 2.0, 1.0],
    ],
)
def test_figures_are_sums_of_shares(figures: Any) -> None:
    with pytest.raises(PolicyError):
        check_numbers({"pooled": {"patients": 5, "figures": figures}}, CLASSES, sums=True)


def test_a_site_that_wants_more_patients_behind_a_number_sends_it_coarser() -> None:
    numbers = _sent()
    assert withhold(numbers, 12)
    check_numbers(numbers, CLASSES, sums=True)
    cells = numbers["pooled"]["classes"]["pneumonia"]
    assert all(count >= 12 for kind in ("with", "without") for _, count, *_ in cells[kind])
    assert sum(count for _, count, *_ in cells["with"]) == 30
    assert all(row[0] >= 12 for row in numbers["pooled"]["reliability"]["cells"])
    assert numbers["temperature"]["patients"] == 60
    assert not withhold(_sent(), 5)


def test_nothing_leaves_below_a_sites_minimum() -> None:
    numbers = _sent()
    assert withhold(numbers, 40)  # of each kind there are thirty
    assert numbers["pooled"]["classes"] == {}
    assert [row[0] for row in numbers["pooled"]["reliability"]["cells"]] == [60]
    numbers = _sent()
    assert withhold(numbers, 61)
    assert not {"pooled", "temperature", "paired"} & numbers.keys()
    numbers = {"pooled": copy.deepcopy(FIGURES)}
    assert withhold(numbers, 13)
    assert numbers == {}


@pytest.mark.attack(
    "the scores of few patients from sums of nearly the same ones in one message",
    by="the site before it sends, and its outbound check where the policy wants more patients behind a number",
    logged="nowhere: what is left leaves",
)
def test_few_patients_cannot_be_derived_from_others_sums() -> None:
    whole, some = ({f"p{n}": n / 40 for n in range(count)} for count in (30, 24))
    sums = figure_sums({"mean": whole, "clear": some, "pneumonia": whole}, "mean")
    assert sums
    numbers = {"pooled": sums}
    assert withhold(numbers, 10)
    assert set(numbers["pooled"]["figures"]) == {"mean", "pneumonia"}
    check_numbers(numbers, CLASSES, sums=True)
    # A rare class is in the mean: the sums of the mean and of the other class would tell of the one who has it.
    sums = figure_sums({"mean": whole, "clear": whole, "pneumonia": {"p0": 0.25}}, "mean")
    assert sums
    assert set(sums["figures"]) == {"mean"}


def test_classes_are_kept_back_together_where_a_site_wants_more_patients() -> None:
    labels = np.array([0] * 12 + [1] * 12 + [2] * 6)
    found = np.random.default_rng(0).dirichlet([1, 1, 1], len(labels))
    names = {0: "a", 1: "b", 2: "c"}
    numbers: dict[str, Any] = {"pooled": classification_sums(found, labels, [f"p{n}" for n in range(30)], names)}
    assert set(numbers["pooled"]["classes"]) == {"a", "b", "c"}
    assert withhold(numbers, 10)
    assert len(numbers["pooled"]["classes"]) == 1
    check_numbers(numbers, ["a", "b", "c"], sums=True)


def test_counts_of_one_message_agree_with_each_other() -> None:
    sent = _sent()
    check_numbers(sent, CLASSES, sums=True, most=60)
    with pytest.raises(PolicyError):
        check_numbers(sent, CLASSES, sums=True, most=59)
    cell = sent["pooled"]["classes"]["pneumonia"]["with"][0]
    for place, change in ((cell, 1), (sent["pooled"]["reliability"]["cells"][0], 0)):
        place[change] += 1
        with pytest.raises(PolicyError, match="pooled"):
            check_numbers(sent, CLASSES, sums=True)
        place[change] -= 1
    cells = [[0, 12, 0.0, 1.0]]
    three = {name: {"with": cells, "without": [[0, 15, 0.0, 1.0]], "pairs": 9.0} for name in ("a", "b")}
    with pytest.raises(PolicyError, match="pooled"):  # three are left for the class that is not told
        check_numbers({"pooled": {"patients": 27, "classes": three, "reliability": None}}, ["a", "b", "c"], sums=True)
    sent["evaluation"]["patients"]["all"] = 59
    with pytest.raises(PolicyError, match="more patients than the score"):
        check_numbers(sent, CLASSES, sums=True)
    figures = {"mean": [10, 5.0, 3.0], "clear": [9, 5.0, 3.0]}
    with pytest.raises(PolicyError):
        check_numbers({"pooled": {"patients": 10, "figures": figures}}, CLASSES, sums=True)


def _attention(patients: int = 20, of: int = 20) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    sums = site_sums({f"{n}": [rng.random((3, len(SHARES)))] for n in range(patients)}, patients)
    assert sums
    return {"evaluation": {**_sent()["evaluation"], "cases": of, "patients": _people(of)}, "attention": sums}


def _people(count: int) -> dict[str, Any]:
    return {"all": count, "mean": count // 2, "by_class": {}, "more": {}}


def test_the_deletion_test_of_attention_leaves_where_the_task_has_attention() -> None:
    check_numbers(_attention(), CLASSES, sums=True, attention=True)
    check_numbers(json.loads(json.dumps(_attention())), CLASSES, sums=True, attention=True)
    with pytest.raises(PolicyError):
        check_numbers(_attention(), CLASSES, sums=True)
    with pytest.raises(PolicyError):
        check_numbers(_attention(), CLASSES, attention=True)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("patients", 4),
        ("patients", 21),
        ("moved", [[0.5] * len(SHARES)] * 2),
        ("moved", [[0.5] * 5] * 3),
        ("moved", [[0.123456] * len(SHARES)] * 3),
        ("moved", [[20.5] * len(SHARES)] * 3),
        ("moved", [["P7"] * len(SHARES)] * 3),
        ("gain", [-21.0, 0.5]),
        ("gain", [0.5]),
        ("gain", [float("nan"), 0.5]),
        ("slide", "P7"),
    ],
)
def test_another_shape_of_the_deletion_test_is_held_back(path: str, value: Any) -> None:
    numbers = _attention()
    numbers["attention"][path] = value
    with pytest.raises(PolicyError) as caught:
        check_numbers(numbers, CLASSES, sums=True, attention=True)
    assert "P7" not in str(caught.value)


def test_the_deletion_test_stays_where_it_would_tell_of_few_patients() -> None:
    told = _attention(20, of=30)
    assert not withhold(told, 5)
    assert "attention" in told
    for patients, of, minimum in ((20, 22, 5), (20, 30, 15), (20, 20, 25)):
        numbers = _attention(patients, of)
        assert withhold(numbers, minimum)
        assert "attention" not in numbers
