"""Sums of targets leave a site in the form that the job's heads know: nobody's answer, outcome or rare value."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oncofed.client.reported_patients import refuse_overlap
from oncofed.errors import PolicyError
from oncofed.privacy.outbound import check_numbers, withhold
from oncofed.tasks.targets import TargetHead
from target_heads import keys, make_head

HEADS: dict[str, TargetHead[Any]] = {
    "lump": make_head("class", classes=["absent", "present"]),
    "findings": make_head("labels", findings=["Effusion", "Mass"]),
    "grade": make_head("grade", grades=["low", "middle", "high"]),
    "age": make_head("value", unit="years", range=[0, 120], loss="gaussian"),
}
COUNT = 60


def _made(count: int = COUNT, seed: int = 0) -> dict[str, tuple[Any, Any]]:
    """Return answers and truths of a site's patients by target."""
    rng = np.random.default_rng(seed)
    lump, findings = rng.integers(0, 2, (count, 1)), rng.integers(0, 2, (count, 2)).astype(float)
    second = 1 / (1 + np.exp(-rng.normal(2 * lump[:, 0] - 1, 1.5)))
    findings[rng.random((count, 2)) < 0.2] = np.nan
    grade, age = rng.integers(0, 3, (count, 1)), rng.uniform(20, 90, (count, 1))
    spread = np.full((count, 1), 6.0)
    return {
        "lump": (np.stack([1 - second, second], axis=1), lump.astype(float)),
        "findings": (rng.random((count, 2)), findings),
        "grade": (rng.dirichlet([1, 1, 1], count), grade.astype(float)),
        "age": (np.concatenate([age + rng.normal(0, 6, (count, 1)), spread], axis=1), age),
    }


def _sent(count: int = COUNT) -> dict[str, Any]:
    """Return what a site with so many patients sends."""
    targets = {name: HEADS[name].site_sums(*made, keys(count)) for name, made in _made(count).items()}
    return {"pooled": {"patients": count, "targets": {name: sums for name, sums in targets.items() if sums}}}


def _check(numbers: dict[str, Any], most: int = COUNT) -> None:
    check_numbers(numbers, ["lump", "findings", "grade", "age"], sums=True, most=most, targets=HEADS)


def test_what_a_site_makes_passes_and_survives_its_way() -> None:
    numbers = _sent()
    assert set(numbers["pooled"]["targets"]) == set(HEADS)
    _check(numbers)
    _check(json.loads(json.dumps(_sent(23))))


def test_sums_of_a_job_without_targets_are_none() -> None:
    with pytest.raises(PolicyError, match="pooled is not within its bounds"):
        check_numbers(_sent(), ["lump"], sums=True)
    with pytest.raises(PolicyError):
        check_numbers(_sent(), ["lump"], targets=HEADS)  # beside an update


def _at(numbers: Any, path: str) -> tuple[Any, Any]:
    *parents, last = (int(part) if part.lstrip("-").isdigit() else part for part in path.split("/"))
    for parent in parents:
        numbers = numbers[parent if isinstance(numbers, list) or parent in numbers else str(parent)]
    return numbers, last


@pytest.mark.attack(
    "single patients' answers, outcomes or names in the place of a target's sums",
    by="the site's outbound check: the job's targets know names, fewest patients, bounds and digits of each sum",
    logged="the site's audit log: held back",
)
@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("MRN-0001", {"patients": 60}),
        ("lump/patients", 4),
        ("lump/patients", 61),
        ("lump/scores", [0.1, 0.9]),
        ("lump/classes/MRN-0001", {}),
        ("lump/classes/present/with/0/1", 4),
        ("lump/classes/present/with/0/2", 1.23456789),
        ("findings/findings/MRN-0001", {}),
        ("findings/findings/Mass/patients", 3),
        ("findings/findings/Mass/patients", 59),
        ("findings/findings/Mass/classes/Effusion", {}),
        ("findings/findings/Mass/classes/Mass/without/0/1", 1),
        ("findings/findings/Mass/classes/Mass/pairs", 1e9),
        ("findings/findings/Mass/reliability/cells/0", [1, 1, 0.97]),
        ("findings/labels", [[1, 0]]),
        ("grade/table/cells/0/0", 4),
        ("grade/table/cells/0/0", 5.5),
        ("grade/table/cells/0", [5, 5]),
        ("grade/table/rest/0/1", 3),
        ("grade/table/rest/0/0", 1),
        ("grade/table/rest", []),
        ("grade/table/rest", [[0, 0], [2, 4]]),
        ("grade/table/names", ["MRN-0001"]),
        ("grade/at_least/high", {}),
        ("grade/at_least/1/with/0/1", 4),
        ("grade/at_least/1/pairs", 17.25),
        ("grade/patients", 4),
        ("age/patients", 4),
        ("age/sums/0", 61.0),
        ("age/sums/0", -1.0),
        ("age/sums/0", 30.123456),
        ("age/sums/0", float("nan")),
        ("age/sums", [1.0] * 7),
        ("age/values", [61.5, 43.2]),
        ("age/inside", 3),
        ("age/inside", 58),
        ("age/inside", 61),
        ("age/inside", "MRN-0001"),
    ],
)
def test_another_shape_is_held_back_and_the_reason_repeats_none_of_it(path: str, value: Any) -> None:
    numbers = copy.deepcopy(_sent())
    inner, last = _at(numbers["pooled"]["targets"], path)
    inner[last] = value
    with pytest.raises(PolicyError) as caught:
        _check(numbers)
    assert "MRN" not in str(caught.value)
    assert str(value) not in str(caught.value)


@pytest.mark.parametrize("targets", [{}, [], {"lump": [1, 2]}, {"lump": None}, "MRN-0001"])
def test_what_is_no_table_of_targets_is_held_back(targets: Any) -> None:
    with pytest.raises(PolicyError, match="pooled is not within its bounds"):
        _check({"pooled": {"patients": 60, "targets": targets}})


@pytest.mark.attack(
    "how many patients have a rare finding, from the wrong answers among those that the model says are without it",
    by="the site before it sends: the reliability of a finding that few have stays, too",
    logged="nowhere: there is nothing to leave",
)
def test_rows_of_reliability_do_not_count_a_rare_finding() -> None:
    head, truths = HEADS["findings"], np.zeros((COUNT, 2))
    truths[0], truths[::2, 1] = [1, 0], 1
    truths[:12, 0] = np.arange(12) < 1
    answers = np.full((COUNT, 2), 0.1)
    sums = head.site_sums(answers, truths, keys(COUNT))
    assert sums
    assert sums["findings"]["Effusion"] == {"patients": COUNT, "classes": {}, "reliability": None}
    common = sums["findings"]["Mass"]
    assert common["reliability"]
    kept = head.withhold(sums, 40)
    assert kept
    assert (kept["findings"]["Mass"]["classes"], kept["findings"]["Mass"]["reliability"]) == ({}, None)
    sums["findings"]["Effusion"]["reliability"] = common["reliability"]
    with pytest.raises(PolicyError):
        _check({"pooled": {"patients": COUNT, "targets": {"findings": sums}}})


@pytest.mark.attack(
    "in which few patients a finding was not looked for, or a target is not known, from two numbers of patients",
    by="the site before it sends, its outbound check, and the server's: nothing that all but one to four state leaves",
    logged="nowhere; the site's audit log where it is sent anyway",
)
def test_what_one_patient_lacks_does_not_leave() -> None:
    head, (answers, _) = HEADS["findings"], _made()["findings"]
    truths = (np.arange(2 * COUNT).reshape(COUNT, 2) % 3 == 0).astype(float)
    full = head.site_sums(answers, truths, keys(COUNT))
    of_others = head.site_sums(np.delete(answers, 3, 0), np.delete(truths, 3, 0), keys(COUNT - 1))
    truths[3, 1] = np.nan
    sums = head.site_sums(answers, truths, keys(COUNT))
    assert full
    assert of_others
    assert sums
    assert set(sums["findings"]) == {"Effusion"}
    full["findings"]["Mass"] = of_others["findings"]["Mass"]
    with pytest.raises(PolicyError):
        _check({"pooled": {"patients": COUNT, "targets": {"findings": full}}})
    numbers = {"pooled": {"patients": COUNT, "targets": {"findings": sums}}}
    _check(numbers)
    with pytest.raises(PolicyError):
        _check({"pooled": {**numbers["pooled"], "patients": COUNT + 1}}, COUNT + 1)
    numbers["pooled"]["patients"] = COUNT + 8
    _check(numbers, COUNT + 8)
    assert withhold(numbers, 10, HEADS), "a policy wants ten"
    assert "pooled" not in numbers


@pytest.mark.attack(
    "outcomes of four patients",
    by="the site before it sends: a target's sums rest on five patients or more",
    logged="nowhere: there is nothing to leave",
)
@pytest.mark.parametrize("name", list(HEADS))
def test_of_four_patients_no_target_makes_sums_however_many_images_they_have(name: str) -> None:
    answers, truths = _made()[name]
    of_four = [f"p{number % 4}" for number in range(COUNT)]
    assert HEADS[name].site_sums(answers, truths, of_four) is None


@pytest.mark.attack(
    "a rare finding from the sums of others",
    by="the site before it sends: cells of a finding that fewer than five have, or lack, are not made",
    logged="nowhere: what is left leaves",
)
def test_a_finding_of_four_patients_has_no_cells() -> None:
    answers, truths = _made()["findings"]
    truths[:, 1] = 0
    truths[:4, 1] = 1
    sums = HEADS["findings"].site_sums(answers, truths, keys(COUNT))
    assert sums
    assert sums["findings"]["Mass"]["classes"] == {}
    assert "Mass" in HEADS["findings"].site_sums(answers, 1 - truths, keys(COUNT))["findings"]  # type: ignore[index]
    truths[4:, 1] = np.nan  # looked for in four alone
    sums = HEADS["findings"].site_sums(answers, truths, keys(COUNT))
    assert sums
    assert set(sums["findings"]) == {"Effusion"}


@pytest.mark.attack(
    "how few true values lie beyond an interval",
    by="the site before it sends, and its outbound check where its policy wants more patients behind a number",
    logged="nowhere: what is left leaves",
)
@given(st.integers(5, 80), st.integers(0, 200), st.integers(5, 20))
def test_a_count_within_an_interval_is_told_where_those_beyond_are_enough(count: int, seed: int, least: int) -> None:
    answers, truths = _made(count, seed)["age"]
    sums = HEADS["age"].site_sums(answers, truths, keys(count))
    assert sums
    for one, fewest in ((sums, 5), (HEADS["age"].withhold(sums, least), least)):
        if one and one["inside"] is not None:
            assert all(part == 0 or part >= fewest for part in (one["inside"], count - one["inside"]))


def test_a_site_that_wants_more_patients_behind_a_number_sends_it_coarser() -> None:
    numbers = _sent()
    assert withhold(numbers, 12, HEADS)
    _check(numbers)
    targets = numbers["pooled"]["targets"]
    cells = targets["findings"]["findings"]["Effusion"]["classes"]["Effusion"]
    assert all(cell[1] >= 12 for kind in ("with", "without") for cell in cells[kind])
    assert all(cell is None or cell >= 12 for row in targets["grade"]["table"]["cells"] for cell in row)
    assert not withhold(_sent(), 5, HEADS)
    numbers = _sent()
    assert withhold(numbers, 61, HEADS)
    assert "pooled" not in numbers


@pytest.mark.attack(
    "the outcome of a few patients from two jobs' sums of nearly the same ones",
    by="the site: it notes of whom a target's sums were, by finding, class and grade",
    logged="the site's log: sums stay here",
)
def test_a_second_job_without_two_of_those_with_a_finding_gets_no_sums(tmp_path: Path) -> None:
    _, truths = _made()["findings"]
    people = [sorted(group) for group in HEADS["findings"].kinds(truths, keys(COUNT)).values()]
    assert sorted(map(len, people)) == sorted(int((truths[:, n] == v).sum()) for n in (0, 1) for v in (0, 1))
    assert refuse_overlap(tmp_path, "set", people) == ""
    assert refuse_overlap(tmp_path, "set", people) == ""
    assert "would tell of 2" in refuse_overlap(tmp_path, "set", [people[0][2:]])
