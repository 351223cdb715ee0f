"""Validates a site's sums of a table's numbers.

Each covers five patients or more, of a column that the job declares.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from oncofed.data.moments import DECIMALS
from oncofed.privacy.evaluations import is_number
from oncofed.suppression import LEAST_PATIENTS

# Rounding of a sum and of a sum of squares.
_ROUNDING = 0.5 * 10**-DECIMALS


def are_sums(value: Any, columns: Collection[str], cases: Any) -> bool:
    """Return whether a value is one that ``data.moments.site_sums`` may make.

    Args:
        value: column -> [patients, sum, sum of squares].
        columns: names of the job's numbers.
        cases: no sum is of more patients.
    """
    return (
        isinstance(value, Mapping)
        and all(name in columns and _are_of_column(sums, cases) for name, sums in value.items())
        and _differ_by_enough([sums[0] for sums in value.values()])
    )


def withhold_sums(sums: Mapping[str, Sequence[float]], minimum: int) -> dict[str, Sequence[float]]:
    """Return sums without those of too few patients.

    Args:
        sums: as sent.
        minimum: fewest patients, by a site's policy.
    """
    return {name: of for name, of in sums.items() if of[0] >= minimum}


def _are_of_column(value: Any, cases: Any) -> bool:
    if not isinstance(value, list) or len(value) != 3 or not all(map(is_number, value)):
        return False
    patients, total, squares = value
    if not isinstance(patients, int) or not isinstance(cases, int) or not LEAST_PATIENTS <= patients <= cases:
        return False
    return (
        abs(total) <= patients / 2 + _ROUNDING
        and -_ROUNDING <= squares <= patients / 4 + _ROUNDING
        # No values have a larger mean than root mean square.
        and (abs(total) - _ROUNDING) ** 2 <= patients * (squares + _ROUNDING)
        and all(part == round(part, DECIMALS) for part in (total, squares))
    )


def _differ_by_enough(patients: Collection[int]) -> bool:
    """Return whether no two columns tell of few who lack one."""
    most = max(patients, default=0)
    return all(count == most or most - count >= LEAST_PATIENTS for count in patients)
