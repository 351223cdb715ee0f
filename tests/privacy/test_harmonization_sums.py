"""Sums for ComBat leave of five patients or more, and nothing else passes for them."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from oncofed.data.harmonization.agreed import PatientValues
from oncofed.data.harmonization.combat import sums_of
from oncofed.data.harmonization.sums import SumsForm, read_sums, told_sums
from oncofed.errors import PolicyError
from oncofed.privacy.harmonization import are_combat_sums
from oncofed.privacy.outbound import check_counts

FORM = SumsForm({"features": 6, "columns": 2}, 2)
NAMES, COLUMNS = ["age", "sex"], ["volume", "area"]


def _patients(count: int = 20, seed: int = 1) -> PatientValues:
    rng = np.random.default_rng(seed)
    covariates = np.stack([rng.uniform(-0.4, 0.4, count), np.arange(count) % 2], axis=1).astype(float)
    values = {"features": rng.normal(3, 20, (count, 6)), "columns": rng.uniform(-0.5, 0.5, (count, 2))}
    return PatientValues(tuple(f"p{number}" for number in range(count)), covariates, values)


def _changed(**changes: Callable[[Any], None]) -> PatientValues:
    found = copy.deepcopy(_patients())
    for name, change in changes.items():
        change(found.covariates if name == "covariates" else found.values[name])
    return found


def test_what_a_site_tells_passes_also_as_json_and_is_what_it_adds_up() -> None:
    told = told_sums(_patients(), NAMES, COLUMNS)
    message = json.loads(json.dumps(told.message))
    assert are_combat_sums(message, FORM, 20)
    assert len(told.patients) == 20
    expected = sums_of(_patients().values["features"], _patients().covariates)
    found = read_sums(message, "features")
    for name in ("covariates", "scatter", "values", "joint", "squares"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-5, atol=1e-9)
    assert are_combat_sums({}, FORM, 20)


@pytest.mark.parametrize("count", [4, 7])
def test_few_patients_tell_nothing(count: int) -> None:
    """With two covariates and a mean, seven patients could be solved for: eight are asked for."""
    told = told_sums(_patients(count), NAMES, COLUMNS)
    assert told.message == {}
    assert told.patients == ()
    assert "the fewest" in told.withheld
    assert told_sums(_patients(8 if count == 7 else 20), [], COLUMNS).message or count == 7


def test_where_one_lacks_a_value_five_are_left_out() -> None:
    lacks = _changed(columns=lambda values: values.__setitem__((3, 1), np.nan))
    told = told_sums(lacks, NAMES, COLUMNS)
    assert told.message["patients"] == 15
    assert "p3" not in told.patients
    assert told_sums(lacks, NAMES, COLUMNS).patients == told.patients, "the next job leaves out the same"


def test_a_rare_value_is_in_no_sum() -> None:
    few = _changed(covariates=lambda x: x.__setitem__((slice(None), 1), np.arange(20) < 3))
    assert told_sums(few, NAMES, COLUMNS).withheld == "fewer than 5 patients differ from the others in sex"
    flat = _changed(columns=lambda y: y.__setitem__((slice(4, None), 0), 0.25))
    assert told_sums(flat, NAMES, COLUMNS).withheld == "fewer than 5 patients differ from the others in volume"
    dead = _changed(features=lambda y: y.__setitem__((slice(2, None), 0), 0.0))
    message = told_sums(dead, NAMES, COLUMNS).message
    assert message["features"]["sum"][0] == 0
    assert message["features"]["squares"][0] == 0
    alike = _changed(covariates=lambda x: x.__setitem__((slice(None), 1), 1))
    assert told_sums(alike, NAMES, COLUMNS).message, "how many are of each sex leaves with other sums, too"


def test_two_categories_that_few_share_are_in_no_sum() -> None:
    patients = _patients(40)
    covariates = np.stack([np.arange(40) % 2, np.arange(40) < 12], axis=1).astype(float)
    covariates[:10, 0] = 1
    both = PatientValues(patients.patients, covariates, patients.values)
    assert told_sums(both, ["sex", "smoker"], COLUMNS).withheld.endswith("differ from the others in sex and smoker")


def _set(*path: Any, value: Any) -> Callable[[Any], None]:
    def change(message: Any) -> None:
        for step in path[:-1]:
            message = message[step]
        message[path[-1]] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        _set("patients", value=4),
        _set("patients", value=21),
        _set("patients", value=True),
        _set("name", value="Mrs Miller"),
        _set("covariates", value=[0.1]),
        _set("covariates", 0, value="Miller"),
        _set("covariates", 0, value=20.5),
        _set("scatter", 0, 1, value=0.5),
        _set("scatter", 1, value=[0.1]),
        _set("features", "sum", 0, value=20_001.0),
        _set("features", "sum", 0, value=1.23456789),
        _set("features", "sum", 0, value=float("nan")),
        _set("features", "squares", 0, value=-1.0),
        _set("features", "joint", 0, 0, value=1e9),
        _set("features", "more", value=[1.0]),
        _set("columns", "sum", value=[0.1, 0.1, 0.1]),
        _set("columns", "squares", 0, value=6.0),
        lambda message: message.pop("columns"),
    ],
)
def test_nothing_else_passes(change: Callable[[Any], None]) -> None:
    message = told_sums(_patients(), NAMES, COLUMNS).message
    assert are_combat_sums(message, FORM, 20)
    change(message)
    assert not are_combat_sums(message, FORM, 20)


def test_they_pass_in_jobs_that_ask_for_them_alone() -> None:
    counts = {"train": 20, "validation": 3, "test": 4, "device": "cpu", "version": "1"}
    message = told_sums(_patients(), NAMES, COLUMNS).message
    check_counts({**counts, "harmonization": message}, "1", combat=FORM)
    with pytest.raises(PolicyError, match="does not declare"):
        check_counts({**counts, "harmonization": message}, "1")
    with pytest.raises(PolicyError, match="harmonization is not within its bounds"):
        check_counts({**counts, "train": 19, "harmonization": message}, "1", combat=FORM)
