"""What may leave a site: numbers that a job declares, within bounds, and nothing that could carry more.

Names are as telling as values: those of classes must be the job's, those of figures are listed here. No text leaves but
from short lists.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from errno import errorcode
from typing import Any

from oncofed.errors import PolicyError
from oncofed.privacy.pooled import is_paired, is_pooled, is_temperature_sums, keep_back_small
from oncofed.privacy.small_counts import LEAST_PATIENTS

Check = Callable[[Any], bool]

_MOST_CASES = 10_000_000
_PHASES = frozenset({"checking data", "loading data", "training", "validating", "testing"})
_DIGITS = 4
# Of an evaluation, beside the task's own figure; "of" a class, where the name goes on with ".CLASS".
_SHARES = frozenset({"dice", "iou", "f1", "pq", "auprc", "balanced_accuracy", "calibration_error"})
_SHARES_OF = frozenset({"surface_dice"})
_MILLIMETRES_OF = frozenset({"hd95_mm"})
_LONGEST_MM = 100_000.0
# What a system says when a file cannot be written: a list that no site can add to.
_SYSTEM_ERRORS = frozenset(os.strerror(number) for number in errorcode)


def check_counts(numbers: Mapping[str, Any], version: str, bins: Mapping[str, int] | None = None) -> None:
    """Check what a site says of its data before the first round.

    Args:
        numbers: ``train``, ``validation``, ``test``, ``device``, ``version``; digests ``dataset`` and ``policy``;
            ``profile``, histograms of what its training images are like.
        version: of oncofed.
        bins: of each such histogram, by name.

    Raises:
        PolicyError: something else is in it, or a count is missing.
    """
    _check(
        numbers,
        {
            "train": _is_count,
            "validation": _is_count,
            "test": _is_count,
            "device": lambda value: value in ("cpu", "cuda"),
            "version": lambda value: value == version,
            "dataset": lambda value: value is None or _is_digest(value),
            "policy": lambda value: value is None or _is_digest(value),
            "profile": lambda value: is_profile(value, bins or {}, numbers.get("train")),
        },
    )
    if not {"train", "validation", "test"} <= numbers.keys():
        raise PolicyError("it does not say how many cases it has")


def check_numbers(numbers: Mapping[str, Any], classes: Sequence[str], sums: bool = False) -> None:
    """Check the numbers beside an update, or of a model's score.

    Args:
        numbers: as ``federation.exchange`` sends them.
        classes: names of the job's classes.
        sums: whether counts and sums over patients may be beside them (``privacy.pooled``), as beside a score.

    Raises:
        PolicyError: a name, a value or a type that the job does not declare.
    """
    of_patients: dict[str, Check] = {
        "pooled": lambda value: is_pooled(value, classes),
        "temperature": is_temperature_sums,
        "paired": is_paired,
    }
    _check(
        numbers,
        {
            **(of_patients if sums else {}),
            "loss": _is_number,
            "train_s": _is_seconds,
            "validate_s": _is_seconds,
            "evaluation": lambda value: _is_evaluation(value, classes),
            "personal": lambda value: _is_evaluation(value, classes),
            "update": lambda value: value is None or _is_digest(value),
            "not_kept": lambda value: value in _SYSTEM_ERRORS,
        },
    )


def progress_that_may_leave(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return of what a site tells about its progress that which may leave: a known phase, counts, a rounded loss."""
    kept: dict[str, Any] = {}
    if values.get("phase") in _PHASES:
        kept["phase"] = values["phase"]
    for name in ("round", "step", "steps"):
        if _is_count(values.get(name)):
            kept[name] = values[name]
    if _is_number(values.get("loss")):
        # Digits that nobody looks at could carry something else.
        kept["loss"] = float(f"{values['loss']:.{_DIGITS}g}")
    return kept


def withhold(numbers: dict[str, Any], minimum: int) -> bool:
    """Take scores away behind which too few patients stand; return whether there were any.

    Args:
        numbers: as sent; changed in place.
        minimum: fewest patients.
    """
    withheld = keep_back_small(numbers, minimum)
    for name in ("evaluation", "personal"):
        evaluation = numbers.get(name)
        if evaluation and evaluation["cases"] < minimum:
            numbers[name] = {"mean": None, "by_class": {}, "more": {}, "interval": None, "cases": evaluation["cases"]}
            withheld = True
    return withheld


def is_profile(value: Any, bins: Mapping[str, int], cases: Any = _MOST_CASES) -> bool:
    """Return whether histograms may leave: those that the job declares, with at least five patients behind each number.

    Args:
        value: name -> ``patients``, how many there are, and ``counts``, of each bin.
        bins: how many bins each may have, by name.
        cases: no histogram holds more patients.
    """
    return (
        isinstance(value, Mapping)
        and all(name in bins and _is_histogram(one, bins[name]) for name, one in value.items())
        and _is_count(cases)
        and all(one["patients"] <= cases for one in value.values())
    )


def _is_histogram(value: Any, bins: int) -> bool:
    if not isinstance(value, Mapping) or set(value) != {"patients", "counts"}:
        return False
    patients, counts = value["patients"], value["counts"]
    if not (isinstance(counts, list) and len(counts) == bins and all(map(_is_count, [patients, *counts]))):
        return False
    hidden = patients - sum(counts)
    return all(count == 0 or count >= LEAST_PATIENTS for count in (*counts, hidden)) and patients >= LEAST_PATIENTS


def _check(found: Any, expected: Mapping[str, Check]) -> None:
    if not isinstance(found, Mapping):
        raise PolicyError(f"numbers by name were declared, found a {type(found).__name__}")
    strange = [name for name in found if name not in expected]
    if strange:
        # What it is called may be what somebody wants to know.
        raise PolicyError(f"{len(strange)} numbers that the job does not declare")
    for name, value in found.items():
        if not expected[name](value):
            raise PolicyError(f"{name} is not within its bounds")


def _is_evaluation(value: Any, classes: Sequence[str]) -> bool:
    if not isinstance(value, Mapping) or set(value) != {"mean", "by_class", "more", "interval", "cases"}:
        return False
    interval = value["interval"]
    return (
        (value["mean"] is None or _is_share(value["mean"]))
        and isinstance(value["by_class"], Mapping)
        and all(name in classes and _is_share(share) for name, share in value["by_class"].items())
        and isinstance(value["more"], Mapping)
        and all(_is_figure(name, number, classes) for name, number in value["more"].items())
        and (interval is None or (isinstance(interval, list) and len(interval) == 2 and all(map(_is_share, interval))))
        and _is_count(value["cases"])
    )


def _is_figure(name: Any, value: Any, classes: Sequence[str]) -> bool:
    kind, dot, of = str(name).partition(".")
    if dot and of not in classes:
        return False
    if kind in (_MILLIMETRES_OF if dot else ()):
        return _is_number(value) and (math.isnan(value) or 0 <= value <= _LONGEST_MM)
    return kind in (_SHARES_OF if dot else _SHARES) and _is_share(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST_CASES


def _is_number(value: Any) -> bool:
    return isinstance(value, float | int) and not isinstance(value, bool)


def _is_seconds(value: Any) -> bool:
    return _is_number(value) and 0 <= value < 1e8


def _is_share(value: Any) -> bool:
    # Rounding takes a share of ones a little above one; a class that nobody has gives none.
    return _is_number(value) and (math.isnan(value) or -1e-6 <= value <= 1 + 1e-6)


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64 and all(letter in "0123456789abcdef" for letter in value)
