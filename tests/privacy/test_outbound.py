"""Tests of the numbers that may leave a site."""

from __future__ import annotations

import copy
import errno
import math
import os
from typing import Any

import pytest

from oncofed.errors import PolicyError
from oncofed.privacy.outbound import check_counts, check_numbers, progress_that_may_leave, withhold

CLASSES = ["head", "body"]
EVALUATION: dict[str, Any] = {
    "mean": 0.8,
    "by_class": {"head": 0.7, "body": float("nan")},
    "more": {"hd95_mm.head": 3.2, "surface_dice.body": 0.4, "pq": 1.0, "calibration_error": 0.1},
    "interval": [0.7, 0.9],
    "cases": 7,
    "patients": {
        "all": 7,
        "mean": 7,
        "by_class": {"head": 7, "body": 7},
        "more": {"hd95_mm.head": 5, "surface_dice.body": 7, "pq": 7, "calibration_error": 7},
    },
}
NOBODY = {"all": 0, "mean": 0, "by_class": {}, "more": {}}
NUMBERS = {
    "loss": -3.0,
    "train_s": 1.5,
    "validate_s": 0.1,
    "evaluation": EVALUATION,
    "personal": {"mean": None, "by_class": {}, "more": {}, "interval": None, "cases": 0, "patients": NOBODY},
    "update": "ab" * 32,
    "not_kept": os.strerror(errno.ENOSPC),
}
COUNTS = {"train": 3, "validation": 1, "test": 0, "device": "cuda", "version": "1"}


def _with(path: str, value: Any) -> dict[str, Any]:
    numbers = copy.deepcopy(NUMBERS)
    *parents, last = path.split("/")
    inner: Any = numbers
    for parent in parents:
        inner = inner[parent]
    inner[last] = value
    return numbers


def test_what_a_job_declares_passes() -> None:
    check_numbers(NUMBERS, CLASSES)
    check_numbers({}, CLASSES)
    check_counts(COUNTS, "1")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("patient", 1.0),
        ("loss", "MRN-0001"),
        ("loss", [1.0, 2.0]),
        ("loss", True),
        ("train_s", -1.0),
        ("train_s", math.inf),
        ("update", "MRN-0001"),
        ("update", "g" * 64),
        ("not_kept", "/data/MRN-0001: full"),
        ("evaluation", 0.5),
        ("evaluation/name", "x"),
        ("evaluation/mean", 1.5),
        ("evaluation/mean", "x"),
        ("evaluation/cases", 1.5),
        ("evaluation/cases", -1),
        ("evaluation/interval", [0.1]),
        ("evaluation/interval", (0.1, 0.2, 0.3)),
        ("evaluation/by_class/MRN-0001", 0.5),
        ("evaluation/by_class/head", 12345.0),
        ("evaluation/more/MRN-0001", 0.5),
        ("evaluation/more/dice.MRN-0001", 0.5),
        ("evaluation/more/hd95_mm.MRN-0001", 0.5),
        ("evaluation/more/hd95_mm.head", 1e9),
        ("evaluation/more/pq", 19560412.0),
    ],
)
def test_anything_else_is_held_back_and_the_reason_repeats_none_of_it(path: str, value: Any) -> None:
    with pytest.raises(PolicyError) as caught:
        check_numbers(_with(path, value), CLASSES)
    assert "MRN" not in str(caught.value)
    assert str(value) not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [("device", "MRN-0001"), ("version", "2"), ("train", 10**9), ("train", 2.0), ("site", "x")],
)
def test_only_valid_counts_pass(name: str, value: Any) -> None:
    with pytest.raises(PolicyError):
        check_counts({**COUNTS, name: value}, "1")


BINS = {"spacing": 4}
HISTOGRAM: dict[str, Any] = {"patients": 20, "counts": [0, 15, 5, 0]}


def test_histograms_of_what_images_are_like_leave_where_the_job_declares_them() -> None:
    counts = {**COUNTS, "train": 20}
    for told in ({}, {"spacing": HISTOGRAM}, {"spacing": {"patients": 5, "counts": [0] * 4}}):
        check_counts({**counts, "profile": told}, "1", BINS)
    with pytest.raises(PolicyError):
        check_counts({**counts, "profile": {"spacing": HISTOGRAM}}, "1")


@pytest.mark.parametrize(
    "change",
    [
        {"counts": [0, 15, 4, 0]},
        {"counts": [0, 16, 0, 0]},
        {"counts": [0, 15, 5]},
        {"counts": [0, 15, 5, 5]},
        {"counts": [0, 15, 5.0, 0]},
        {"counts": "MRN-0001"},
        {"patients": 4, "counts": [0] * 4},
        {"patients": 21, "counts": [0, 15, 6, 0]},
        {"patients": True},
        {"smallest": 0.4},
    ],
)
def test_a_histogram_with_fewer_than_five_behind_a_number_stays(change: dict[str, Any]) -> None:
    told = {"spacing": {**HISTOGRAM, **change}}
    with pytest.raises(PolicyError, match=r"^profile is not within its bounds$"):
        check_counts({**COUNTS, "train": 20, "profile": told}, "1", BINS)
    with pytest.raises(PolicyError):
        check_counts({**COUNTS, "train": 20, "profile": {"MRN-0001": HISTOGRAM}}, "1", BINS)


TILES = {"patients": 9, "tiles": 4_000, "pen": 0, "blur": 4_000, "bubble": 40}


def test_numbers_of_tiles_leave_where_the_job_is_of_slides() -> None:
    counts = {**COUNTS, "train": 9}
    for told in ({}, TILES, {"patients": 5, "tiles": 0}):
        check_counts({**counts, "tiles": told}, "1", slides=True)
    with pytest.raises(PolicyError, match="1 numbers that the job does not declare"):
        check_counts({**counts, "tiles": TILES}, "1")


@pytest.mark.parametrize(
    "told",
    [
        *({**TILES, name: value} for name, value in [("patients", 4), ("patients", 10), ("MRN-0001", 1)]),
        *({**TILES, "pen": value} for value in [4_001, -1, 0.5, True, "MRN-0001"]),
        {"patients": 9},
        {"tiles": 4_000},
        {**TILES, "tiles": 1 << 50},
        [4_000],
        None,
    ],
)
def test_numbers_of_tiles_beyond_their_bounds_stay(told: Any) -> None:
    with pytest.raises(PolicyError, match=r"^tiles is not within its bounds$"):
        check_counts({**COUNTS, "train": 9, "tiles": told}, "1", slides=True)


def test_numbers_of_patients_do_not_tell_how_few_lack_a_trait() -> None:
    both = {"spacing": HISTOGRAM, "modality": HISTOGRAM}
    bins = {**BINS, "modality": BINS["spacing"]}
    check_counts({**COUNTS, "train": 40, "profile": both}, "1", bins)
    counts = HISTOGRAM["counts"]
    place = max(range(len(counts)), key=lambda n: counts[n])
    more = [count + 2 * (n == place) for n, count in enumerate(counts)]
    both["modality"] = {"patients": HISTOGRAM["patients"] + 2, "counts": more}
    with pytest.raises(PolicyError):
        check_counts({**COUNTS, "train": 40, "profile": both}, "1", bins)


def test_scores_of_too_few_patients_stay() -> None:
    numbers = copy.deepcopy(NUMBERS)
    assert not withhold(numbers, 0)
    assert numbers["evaluation"] == NUMBERS["evaluation"]
    assert withhold(numbers, 8)
    counts = {"all": 7, "mean": 7, "by_class": {}, "more": {}}
    nothing = {"mean": None, "by_class": {}, "more": {}, "interval": None}
    assert numbers["evaluation"] == {**nothing, "cases": 7, "patients": counts}
    check_numbers(numbers, CLASSES)


def test_the_loss_of_a_private_job_is_no_progress_that_leaves() -> None:
    told = {"phase": "training", "step": 3, "loss": 0.123456}
    assert progress_that_may_leave(told)["loss"] == 0.1235
    assert progress_that_may_leave(told, private=True) == {"phase": "training", "step": 3}
