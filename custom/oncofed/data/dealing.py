"""Deal patients to validation and test, by a hash of patient and seed.

Adding a patient then moves few others.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence

from oncofed.data.label_names import name_key
from oncofed.data.targets import FollowUp, TargetValue

Stratum = tuple[str, ...]
_UNKNOWN, _NONE = "unknown", "none of them"


def deal(patients: Collection[str], share: float, seed: int, purpose: str, taken: int = 0) -> set[str]:
    """Return the patients of a split.

    Args:
        patients: to choose from.
        share: of all patients.
        seed: of the deal.
        purpose: name of the split.
        taken: patients that an earlier deal took.
    """
    return set(_in_order(patients, seed, purpose)[: _count(len(patients), share, taken)])


def deal_by_stratum(strata: Mapping[str, Stratum], share: float, seed: int, purpose: str, taken: int = 0) -> set[str]:
    """Return the patients of a split, as ``deal``, with each stratum in proportion.

    The seats are dealt to the values of the first target by largest remainders, then within each value to those of the
    next target, and so on; within a stratum, to patients in the order of their hashes. A value of the first target
    differs from its proportional number by less than one patient.

    Args:
        strata: patient -> stratum, a value per target.
        share: of all patients.
        seed: of the deal.
        purpose: name of the split.
        taken: patients that an earlier deal took.
    """
    return _seated(_in_order(strata, seed, purpose), strata, _count(len(strata), share, taken), 0)


def _seated(patients: Sequence[str], strata: Mapping[str, Stratum], seats: int, depth: int) -> set[str]:
    if depth == len(next(iter(strata.values()), ())) or seats in (0, len(patients)):
        return set(patients[:seats])
    groups: dict[str, list[str]] = defaultdict(list)
    for patient in patients:
        groups[strata[patient][depth]].append(patient)
    # Exact quotas as whole numbers: seats times size, in units of all patients.
    quotas = {value: divmod(seats * len(group), len(patients)) for value, group in groups.items()}
    left = seats - sum(whole for whole, _ in quotas.values())
    favoured = set(sorted(groups, key=lambda value: (-quotas[value][1], value))[:left])
    chosen: set[str] = set()
    for value, group in groups.items():
        chosen |= _seated(group, strata, quotas[value][0] + (value in favoured), depth + 1)
    return chosen


def _in_order(patients: Iterable[str], seed: int, purpose: str) -> list[str]:
    return sorted(patients, key=lambda patient: hashlib.sha256(f"{seed}:{purpose}:{patient}".encode()).digest())


def _count(patients: int, share: float, taken: int) -> int:
    count = round((patients + taken) * share) if patients > 2 else 0
    return min(max(count, 1 if share > 0 and patients > 2 else 0), max(patients - 1, 0))


def strata_of(stated: Mapping[str, Sequence[Sequence[TargetValue | None]]]) -> dict[str, Stratum]:
    """Return patient -> stratum, a value per target.

    The value of a class or grade is its name, of survival whether the event came, of findings the rarest that holds, of
    a number its third among all patients. A patient with several cases is in the rarest of theirs, and of numbers in
    that of their mean.

    Args:
        stated: patient -> values of each case, one per target; None: unknown.
    """
    width = len(next(iter(stated.values()))[0]) if stated else 0
    by_target = [
        _values({patient: [case[n] for case in cases] for patient, cases in stated.items()}) for n in range(width)
    ]
    return {patient: tuple(values[patient] for values in by_target) for patient in stated}


def _values(stated: Mapping[str, Sequence[TargetValue | None]]) -> dict[str, str]:
    """Return patient -> value of one target."""
    numbers = {
        patient: sum(known) / len(known)
        for patient, cases in stated.items()
        if (known := [float(value) for value in cases if isinstance(value, (int, float))])
    }
    ordered = sorted(numbers.values())
    edges = [ordered[len(ordered) * third // 3] for third in (1, 2)] if ordered else []
    options = {
        patient: {f"third {sum(numbers[patient] >= edge for edge in edges)}"}
        if patient in numbers
        else {name for value in cases for name in _names(value)} or {_UNKNOWN}
        for patient, cases in stated.items()
    }
    counts = Counter(name for names in options.values() for name in names)
    # A case in which none of the findings holds says less than another in which one does.
    return {
        patient: min(names - {_NONE} or names, key=lambda name: (counts[name], name))
        for patient, names in options.items()
    }


def _names(value: TargetValue | None) -> list[str]:
    if isinstance(value, FollowUp):
        return ["event" if value.event else "censored"]
    if isinstance(value, dict):
        return [name_key(name) for name, holds in value.items() if holds] or ([_NONE] if value else [])
    return [name_key(value)] if isinstance(value, str) else []
