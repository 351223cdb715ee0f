"""The sums that leave a site for ComBat, as a message."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from oncofed.data.harmonization.agreed import Agreed, PatientValues
from oncofed.data.harmonization.combat import Common, Numbers, Sums, agree, sums_of
from oncofed.data.harmonization.spec import COLUMNS, FEATURES
from oncofed.suppression import LEAST_PATIENTS

# Significant digits of a sum: further ones could carry hidden information.
DIGITS = 6
# Largest size of a number: of a column or covariate in widths of its range, of a feature as the encoder gives it.
BOUNDS: Mapping[str, float] = {COLUMNS: 0.5, FEATURES: 1000.0}
COVARIATE_BOUND = 1.0


@dataclass(frozen=True)
class SumsForm:
    """What a job's sums look like.

    Attributes:
        sizes: numbers of each group.
        covariates: numbers that are preserved.
    """

    sizes: Mapping[str, int]
    covariates: int


@dataclass(frozen=True)
class ToldSums:
    """What a site tells for ComBat.

    Attributes:
        message: sums; empty: it tells none.
        patients: keys of those behind them.
        withheld: why it tells none, for the site's own log.
    """

    message: dict[str, Any]
    patients: tuple[str, ...] = ()
    withheld: str = ""


def told_sums(patients: PatientValues, names: Sequence[str], columns: Sequence[str]) -> ToldSums:
    """Return the sums that may leave a site.

    They are of patients of whom everything is known; where one to four lack something, others are left out too, up to
    five. With as many covariates as patients, sums could be solved for each: five patients more are asked for. A value
    that fewer than five have beside another is in no sum.

    Args:
        patients: for training.
        names: of the covariates, as ``PatientValues`` has them.
        columns: of the table's numbers that are made alike.
    """
    everybody = len(patients.patients)
    known = [number for number, there in enumerate(patients.complete) if there]
    # By a hash, so that the next job leaves out the same.
    known.sort(key=lambda number: hashlib.sha256(patients.patients[number].encode()).digest())
    if len(known) < everybody:
        known = known[: max(everybody - LEAST_PATIENTS, 0)]
    least = LEAST_PATIENTS + (1 + len(names) if names else 0)
    if len(known) < least:
        return ToldSums({}, withheld=f"they would be of {len(known)} patients, and {least} are the fewest")
    told = patients.of(known)
    rare = _rare_covariate(told.covariates, names) or _rare_column(told.values.get(COLUMNS), columns)
    if rare:
        return ToldSums({}, withheld=f"fewer than {LEAST_PATIENTS} patients differ from the others in {rare}")
    groups = {
        group: sums_of(np.clip(_without_rare(values), -BOUNDS[group], BOUNDS[group]), told.covariates)
        for group, values in told.values.items()
    }
    first = next(iter(groups.values()))
    message = {
        "patients": first.patients,
        "covariates": _rounded(first.covariates),
        "scatter": _rounded(first.scatter),
        **{
            group: {"sum": _rounded(of.values), "joint": _rounded(of.joint), "squares": _rounded(of.squares)}
            for group, of in groups.items()
        },
    }
    return ToldSums(message, told.patients)


def read_sums(message: Mapping[str, Any], group: str) -> Sums:
    """Return a site's sums of a group."""
    of = message[group]
    numbers = len(of["sum"])
    covariates = len(message["covariates"])
    return Sums(
        int(message["patients"]),
        np.array(message["covariates"], dtype=np.float64),
        np.array(message["scatter"], dtype=np.float64).reshape(covariates, covariates),
        np.array(of["sum"], dtype=np.float64),
        np.array(of["joint"], dtype=np.float64).reshape(covariates, numbers),
        np.array(of["squares"], dtype=np.float64),
    )


def agreed_of(messages: Sequence[Mapping[str, Any]], groups: Sequence[str], names: Sequence[str]) -> Agreed:
    """Return what the sites' sums say together.

    Args:
        messages: of the sites.
        groups: of the job.
        names: of the covariates.

    Raises:
        DataError: they do not tell a site's shift; see ``combat.agree``.
    """
    found: dict[str, Common] = {}
    for group in groups:
        found[group] = agree([read_sums(message, group) for message in messages], names)
    return Agreed(found)


def _rare_covariate(covariates: Numbers, names: Sequence[str]) -> str:
    """Return the name of a covariate, or two, in which few patients differ; empty where there are none."""
    binary = [bool(np.isin(column, (0.0, 1.0)).all()) for column in covariates.T]
    for place, name in enumerate(names):
        column = covariates[:, place]
        if not (binary[place] and len(set(column)) == 1) and _differ(column) < LEAST_PATIENTS:
            return name
    categories = [place for place, is_binary in enumerate(binary) if is_binary]
    # How many patients are of two categories at once is in the scatter.
    pairs = [(one, other) for one in categories for other in categories if one < other]
    for one, other in pairs:
        cells = Counter(map(tuple, covariates[:, [one, other]].tolist()))
        if min(cells.values()) < LEAST_PATIENTS:
            return f"{names[one]} and {names[other]}" if names[one] != names[other] else names[one]
    return ""


def _rare_column(values: Numbers | None, names: Sequence[str]) -> str:
    columns = [] if values is None else list(zip(names, values.T, strict=True))
    return next((name for name, column in columns if _differ(column) < LEAST_PATIENTS), "")


def _without_rare(values: Numbers) -> Numbers:
    """Return values whose columns have at least five that differ from the commonest, or none."""
    found: Numbers = values.copy()
    for column in found.T:
        if _differ(column) < LEAST_PATIENTS:
            column[:] = Counter(column.tolist()).most_common(1)[0][0]
    return found


def _differ(column: Numbers) -> int:
    return len(column) - max(Counter(column.tolist()).values())


def _rounded(values: Numbers) -> Any:
    def one(value: float) -> float:
        return float(f"{value:.{DIGITS}g}")

    return [one(v) for v in values.tolist()] if values.ndim == 1 else [[one(v) for v in row] for row in values.tolist()]
