"""What a site's kept model gains, as it may leave the site.

A difference of two models' metrics over five test patients or more, and which kind of model is kept. The kind follows
from validation patients, of whom there are five or more, too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from oncofed.privacy.evaluations import is_number, round_figure
from oncofed.suppression import LEAST_PATIENTS
from oncofed.tasks.differences import Part, combined_difference

FEDERATED, AVERAGED_NORMS, PERSONAL = "federated", "averaged_norms", "personal"
FINE_TUNED, MIXED, ALONE = "fine_tuned", "mixed", "alone"
# The kinds of models that a site can keep.
KEPT = (FEDERATED, AVERAGED_NORMS, PERSONAL, FINE_TUNED, MIXED, ALONE)
_PAIRS = ("over_federated", "over_alone")
_MOST_CASES = 10_000_000


def gain_numbers(kept: str, validated: int, over_federated: Part | None, over_alone: Part | None) -> dict[str, Any]:
    """Return a gain as it may leave a site; nothing of fewer than five patients.

    Args:
        kept: kind of the model that the site keeps.
        validated: validation patients who chose it.
        over_federated: its difference from the federated model on test patients; None: of too few.
        over_alone: from the model that the site trained alone; None: of too few, or there is none.
    """
    if validated < LEAST_PATIENTS or over_federated is None or over_federated.patients < LEAST_PATIENTS:
        return {}
    pairs = {name: _told(part) for name, part in zip(_PAIRS, (over_federated, over_alone), strict=True)}
    return {"kept": kept, "validated": validated, **pairs}


def withhold_gain(numbers: Mapping[str, Any], minimum: int) -> dict[str, Any] | None:
    """Return a gain without what rests on too few patients; None: all of it does.

    Args:
        numbers: as ``gain_numbers`` makes them.
        minimum: fewest patients.
    """
    if min(numbers["validated"], numbers["over_federated"]["patients"]) < minimum:
        return None
    alone = numbers["over_alone"]
    return {**numbers, "over_alone": alone if alone and alone["patients"] >= minimum else None}


def is_gain(value: Any, most: int = _MOST_CASES, lowest: float = 0.0) -> bool:
    """Return whether a value is a valid gain; the rules are those of ``gain_numbers``.

    Args:
        value: as sent.
        most: cases that the site has at most.
        lowest: value of the task's metric.
    """
    return (
        isinstance(value, Mapping)
        and set(value) == {"kept", "validated", *_PAIRS}
        and value["kept"] in KEPT
        and _are_enough(value["validated"], most)
        and _is_pair(value["over_federated"], most, 1 - lowest)
        and (value["over_alone"] is None or _is_pair(value["over_alone"], most, 1 - lowest))
    )


def _told(part: Part | None) -> dict[str, Any] | None:
    if part is None or part.patients < LEAST_PATIENTS:
        return None
    found = combined_difference({"": part}, "")
    return {
        "patients": part.patients,
        "difference": round_figure(found.difference),
        "interval": [round_figure(end) for end in found.interval],
    }


def _is_pair(value: Any, most: int, widest: float) -> bool:
    """Return whether a value is a difference of so many patients, with its interval."""
    if not isinstance(value, Mapping) or set(value) != {"patients", "difference", "interval"}:
        return False
    interval = value["interval"]
    if not _are_enough(value["patients"], most) or not isinstance(interval, list) or len(interval) != 2:
        return False
    figures = (value["difference"], *interval)
    return (
        all(is_number(one) and math.isfinite(one) and one == round_figure(one) for one in figures)
        and abs(value["difference"]) <= widest
        and interval[0] <= value["difference"] <= interval[1]
    )


def _are_enough(value: Any, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and LEAST_PATIENTS <= value <= most
