"""Validates counts and sums pooled over sites.

Each covers five patients or more.

Numbers have limited digits, and values that the number of patients allows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from oncofed.suppression import LEAST_PATIENTS, withheld_counts
from oncofed.tasks.calibration import TEMPERATURES
from oncofed.tasks.deletion import DIGITS_OF_MOVES, ORDERS, SHARES
from oncofed.tasks.pooled import MEAN
from oncofed.tasks.pooled_target import NO_TARGETS, TargetSums
from oncofed.tasks.site_sums import DIGITS_OF_FIGURES
from oncofed.tasks.sum_forms import (
    LARGEST_LOSS,
    MOST_PATIENTS,
    are_named,
    coarser_classification,
    is_classification,
    is_part,
    is_patients,
    is_sum,
)

# Keys of the sums that accompany a score.
SUMS = frozenset({"pooled", "temperature", "paired", "attention"})
# Significant digits of a difference and its variance.
_PRECISION = 6


def is_pooled(
    value: Any, classes: Sequence[str], most: int = MOST_PATIENTS, targets: Mapping[str, TargetSums] = NO_TARGETS
) -> bool:
    """Return whether a value is a valid ``Task.pooled`` result.

    Args:
        value: as sent.
        classes: names of the job's classes.
        most: number of the site's cases.
        targets: the job's, by name, each of which knows its own sums.
    """
    if not isinstance(value, Mapping) or not is_patients(value.get("patients"), most):
        return False
    if set(value) == {"patients", "targets"}:
        return bool(value["targets"]) and _are_of_targets(value["targets"], targets, value["patients"], most)
    if set(value) == {"patients", "figures"}:
        figures = value["figures"]
        return (
            are_named(figures, [MEAN, *classes])
            and all(map(_is_figure, figures.values()))
            and all(is_part(one[0], value["patients"]) for one in figures.values())
        )
    return is_classification(value, classes, most)


def is_temperature_sums(value: Any, most: int = MOST_PATIENTS, targets: Mapping[str, TargetSums] = NO_TARGETS) -> bool:
    """Return whether a value is a valid ``Task.temperature_sums`` result."""
    if targets:
        return (
            isinstance(value, Mapping)
            and set(value) == {"patients", "targets"}
            and is_patients(value["patients"], most)
            and are_named(value["targets"], list(targets))
            and all(
                _are_temperatures(of_target, targets[name].tempered, value["patients"])
                for name, of_target in value["targets"].items()
            )
        )
    if not isinstance(value, Mapping) or set(value) != {"patients", "log_loss"}:
        return False
    patients, sums = value["patients"], value["log_loss"]
    if not is_patients(patients, most) or not isinstance(sums, list) or len(sums) != len(TEMPERATURES):
        return False
    return all(is_sum(one, 0, LARGEST_LOSS * patients, 1) for one in sums)


def _are_temperatures(value: Any, parts: Sequence[str], most: int) -> bool:
    """Return whether a value is one target's part of ``Task.temperature_sums``."""
    return (
        isinstance(value, Mapping)
        and set(value) == {"patients", "parts"}
        and is_patients(value["patients"], most)
        and is_part(value["patients"], most)
        and are_named(value["parts"], parts)
        and all(
            is_temperature_sums(one, value["patients"]) and is_part(one["patients"], value["patients"])
            for one in value["parts"].values()
        )
    )


def is_paired(value: Any, most: int = MOST_PATIENTS) -> bool:
    """Return whether a value is a valid paired difference.

    With the variance of its mean, over at most ``most`` patients.
    """
    return (
        isinstance(value, Mapping)
        and set(value) == {"patients", "difference", "variance"}
        and is_patients(value["patients"], most)
        and all(is_sum(value[name], low, 1, 30) for name, low in (("difference", -1), ("variance", 0)))
        and all(value[name] == float(f"{value[name]:.{_PRECISION}g}") for name in ("difference", "variance"))
    )


def is_attention(value: Any, most: int = MOST_PATIENTS) -> bool:
    """Return whether a value is a valid ``deletion.site_sums`` result, over at most ``most`` patients."""
    if not isinstance(value, Mapping) or set(value) != {"patients", "moved", "gain"}:
        return False
    patients, moved, gain = value["patients"], value["moved"], value["gain"]
    return (
        is_patients(patients, most)
        and isinstance(moved, list)
        and len(moved) == len(ORDERS)
        and all(isinstance(curve, list) and len(curve) == len(SHARES) for curve in moved)
        and all(is_sum(one, 0, patients, DIGITS_OF_MOVES) for curve in moved for one in curve)
        and isinstance(gain, list)
        and len(gain) == 2
        and all(is_sum(one, low, patients, DIGITS_OF_MOVES) for one, low in zip(gain, (-patients, 0), strict=True))
    )


def keep_back_small(
    numbers: dict[str, Any],
    minimum: int,
    targets: Mapping[str, TargetSums] = NO_TARGETS,
    classes: Sequence[str] = (),
) -> bool:
    """Coarsen or drop numbers below a policy's minimum.

    Returns whether anything changed.

    Args:
        numbers: as sent; modified in place.
        minimum: fewest patients behind a number.
        targets: the job's, by name.
        classes: names of the job's classes.
    """
    changed = False
    for name in SUMS:
        if name in numbers and numbers[name]["patients"] < minimum:
            del numbers[name]
            changed = True
    scored = numbers.get("evaluation", {}).get("patients", {}).get("all")
    if "attention" in numbers and scored and not is_part(numbers["attention"]["patients"], scored, minimum):
        del numbers["attention"]
        changed = True
    curves = numbers.get("temperature")
    if curves and "targets" in curves and minimum > LEAST_PATIENTS:
        kept = {
            name: {
                **one,
                "parts": {
                    n: p
                    for n, p in one["parts"].items()
                    if is_part(p["patients"], one["patients"], minimum) and p["patients"] >= minimum
                },
            }
            for name, one in curves["targets"].items()
            if one["patients"] >= minimum and is_part(one["patients"], curves["patients"], minimum)
        }
        changed = changed or kept != curves["targets"]
        numbers["temperature"] = {**curves, "targets": kept}
    pooled = numbers.get("pooled")
    if pooled is None or minimum <= LEAST_PATIENTS:
        return changed
    if "targets" in pooled:
        left = {
            name: targets[name].withhold(sums, minimum)
            for name, sums in pooled["targets"].items()
            if is_part(sums["patients"], pooled["patients"], minimum)
        }
        enough = {name: sums for name, sums in left.items() if sums}
        numbers["pooled"] = {**pooled, "targets": enough}
        if not enough:
            del numbers["pooled"]
        return changed or enough != pooled["targets"]
    if "figures" in pooled:
        rows = {name: sums for name, sums in pooled["figures"].items() if name != MEAN}
        counts = {name: sums[0] for name, sums in rows.items()}
        # The site may have hidden a class of five patients. One that is all of the mean tells nothing beside it.
        others = any(sums != pooled["figures"].get(MEAN) for sums in rows.values())
        hidden = withheld_counts(counts, pooled["patients"], minimum, others and not counts.keys() >= set(classes))
        kept = {name: sums for name, sums in pooled["figures"].items() if name not in hidden}
        numbers["pooled"] = {**pooled, "figures": kept}
        return changed or kept != pooled["figures"]
    numbers["pooled"] = coarser_classification(pooled, minimum)
    return changed or numbers["pooled"] != pooled


def _are_of_targets(value: Any, targets: Mapping[str, TargetSums], patients: int, most: int) -> bool:
    """Return whether a value holds the job's targets' sums alone."""
    return are_named(value, list(targets)) and all(
        isinstance(sums, Mapping)
        and is_patients(sums.get("patients"), patients)
        and is_part(sums["patients"], patients)
        and targets[name].is_site_sums(sums, most)
        for name, sums in value.items()
    )


def _is_figure(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 3
        and is_patients(value[0])
        and all(is_sum(one, 0, value[0], DIGITS_OF_FIGURES) for one in value[1:])
    )
