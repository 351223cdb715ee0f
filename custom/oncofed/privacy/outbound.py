"""Numbers that may leave a site.

The job declares them, within bounds, so they cannot carry anything else.

Names can reveal as much as values: those of classes must be the job's, those of figures its task's, as the site's
installed class declares them. Text leaves only if it is in a short list.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from errno import errorcode
from typing import Any

from oncofed.data.harmonization.sums import SumsForm
from oncofed.errors import PolicyError
from oncofed.privacy.covariates import are_sums
from oncofed.privacy.evaluations import is_evaluation, is_number, withhold_evaluation
from oncofed.privacy.gains import is_gain, withhold_gain
from oncofed.privacy.harmonization import are_combat_sums
from oncofed.privacy.pooled import SUMS, is_attention, is_paired, is_pooled, is_temperature_sums, keep_back_small
from oncofed.privacy.tiles import are_tiles
from oncofed.suppression import LEAST_PATIENTS
from oncofed.tasks.metrics import Metric
from oncofed.tasks.parts import Part, Parts
from oncofed.tasks.pooled_target import NO_TARGETS, TargetSums

Check = Callable[[Any], bool]

_MOST_CASES = 10_000_000
_PHASES = frozenset(
    {"checking data", "loading data", "training", "validating", "testing", "personalizing", "checking labels"}
)
_DIGITS = 4
# The system's messages for files that cannot be written: a list that no site can add to.
_SYSTEM_ERRORS = frozenset(os.strerror(number) for number in errorcode)


def check_counts(
    numbers: Mapping[str, Any],
    version: str,
    bins: Mapping[str, int] | None = None,
    covariates: Collection[str] = (),
    slides: bool = False,
    combat: SumsForm | None = None,
) -> None:
    """Check a site's data counts before the first round.

    Args:
        numbers: ``train``, ``validation``, ``test``, ``device``, ``version``; ``contributions``, whether its policy
            agrees to them; digests ``dataset``, ``policy`` and
            ``encoder``; ``profile``, histograms of what its training images are like; ``covariates``, sums of its
            table's numbers; ``harmonization``, those for ComBat; ``tiles``, how good those of its training slides are.
        version: of oncofed.
        bins: of each such histogram, by name.
        covariates: names of the job's numbers.
        slides: whether its images may be slides.
        combat: what its sums for ComBat look like; None: the job has none.

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
            "encoder": lambda value: value is None or _is_digest(value),
            "contributions": lambda value: isinstance(value, bool),
            "profile": lambda value: is_profile(value, bins or {}, numbers.get("train")),
            "covariates": lambda value: are_sums(value, covariates, numbers.get("train")),
            **({"harmonization": lambda value: are_combat_sums(value, combat, numbers.get("train"))} if combat else {}),
            **({"tiles": lambda value: are_tiles(value, numbers.get("train"))} if slides else {}),
        },
    )
    if not {"train", "validation", "test"} <= numbers.keys():
        raise PolicyError("it does not say how many cases it has")


def check_numbers(
    numbers: Mapping[str, Any],
    classes: Sequence[str],
    sums: bool = False,
    most: int | None = None,
    metrics: Sequence[Metric] | None = None,
    lowest: float = 0.0,
    targets: Mapping[str, TargetSums] = NO_TARGETS,
    attention: bool = False,
) -> None:
    """Check the numbers of an update or a score.

    Args:
        numbers: as a result carries them.
        classes: names of the job's classes.
        sums: whether counts and sums over patients may come along (``privacy.pooled``), as with a score.
        most: cases that the site has to score a model on, by its first message; None: unknown.
        metrics: extra ones that the job's task declares; None: those of any installed task.
        lowest: value of its metric.
        targets: its named targets, whose sums have a form of their own and whose figures make the mean.
        attention: its answers come with attention over tiles, whose deletion test may come along.

    Raises:
        PolicyError: a name, a value or a type that the job does not declare.
    """
    most = _MOST_CASES if most is None else most
    parts = _parts(targets)
    of_patients: dict[str, Check] = {
        "pooled": lambda value: is_pooled(value, classes, most, targets),
        "temperature": lambda value: is_temperature_sums(value, most, targets),
        "paired": lambda value: is_paired(value, most),
        **({"attention": lambda value: is_attention(value, most)} if attention else {}),
    }
    _check(
        numbers,
        {
            **({**of_patients, "gain": lambda value: is_gain(value, most, lowest)} if sums else {}),
            "loss": is_number,
            "train_s": _is_seconds,
            "validate_s": _is_seconds,
            "evaluation": lambda value: is_evaluation(value, classes, most, metrics, lowest, parts),
            "personal": lambda value: is_evaluation(value, classes, most, metrics, lowest, parts),
            "update": lambda value: value is None or _is_digest(value),
            "not_kept": lambda value: value in _SYSTEM_ERRORS,
        },
    )
    patients = numbers["evaluation"]["patients"]["all"] if "evaluation" in numbers else most
    if sums and any(numbers[name]["patients"] > patients for name in SUMS & numbers.keys()):
        raise PolicyError("sums are of more patients than the score beside them")


def most_scored(counts: Mapping[str, Any] | None) -> int | None:
    """Return how many cases a site scores at most.

    By its first message; None where it gave none.
    """
    return max((int(count) for name, count in (counts or {}).items() if name in ("validation", "test")), default=None)


def progress_that_may_leave(values: Mapping[str, Any], private: bool = False) -> dict[str, Any]:
    """Return the progress that may leave: phase, counts, rounded loss.

    Args:
        values: as reported.
        private: the loss stays: it has no noise, in a job with differential privacy, or leaves under masks alone.
    """
    kept: dict[str, Any] = {}
    if values.get("phase") in _PHASES:
        kept["phase"] = values["phase"]
    for name in ("round", "step", "steps"):
        if _is_count(values.get(name)):
            kept[name] = values[name]
    if is_number(values.get("loss")) and not private:
        # Further digits could carry hidden information.
        kept["loss"] = float(f"{values['loss']:.{_DIGITS}g}")
    return kept


def withhold(
    numbers: dict[str, Any],
    minimum: int,
    targets: Mapping[str, TargetSums] = NO_TARGETS,
    classes: Sequence[str] = (),
) -> bool:
    """Withhold scores of too few patients; return whether any.

    Args:
        numbers: as sent; changed in place.
        minimum: fewest patients.
        targets: the job's, by name.
        classes: names of the job's classes.
    """
    withheld = keep_back_small(numbers, minimum, targets, classes)
    for name in ("evaluation", "personal"):
        evaluation = numbers.get(name)
        left = withhold_evaluation(evaluation, minimum, _parts(targets), classes) if evaluation else evaluation
        if left != evaluation:
            numbers[name] = left
            withheld = True
    return _withhold_gain(numbers, minimum) or withheld


def _withhold_gain(numbers: dict[str, Any], minimum: int) -> bool:
    found = numbers.pop("gain", None)
    left = withhold_gain(found, minimum) if found else None
    if left:
        numbers["gain"] = left
    return bool(left != found)


def is_profile(value: Any, bins: Mapping[str, int], cases: Any = _MOST_CASES) -> bool:
    """Return whether histograms may leave.

    Those that the job declares, with at least five patients behind each number.

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
        and _differ_by_enough({one["patients"] for one in value.values()})
    )


def _parts(targets: Mapping[str, TargetSums]) -> Parts:
    return {name: Part(target.members, target.has_own_figure) for name, target in targets.items() if target.makes_mean}


def _differ_by_enough(counts: set[int]) -> bool:
    """Return whether no two counts reveal a small difference."""
    return all(most - count >= LEAST_PATIENTS for most in [max(counts, default=0)] for count in counts - {most})


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
        # A name may itself be the secret.
        raise PolicyError(f"{len(strange)} numbers that the job does not declare")
    for name, value in found.items():
        if not expected[name](value):
            raise PolicyError(f"{name} is not within its bounds")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST_CASES


def _is_seconds(value: Any) -> bool:
    return is_number(value) and 0 <= value < 1e8


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64 and all(letter in "0123456789abcdef" for letter in value)
