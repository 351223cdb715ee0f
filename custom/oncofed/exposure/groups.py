"""Which patients an attack trains on, tells apart and learns from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from oncofed.data.case import Case
from oncofed.errors import DataError

# Fewer patients in an update, and its AUC has an error above 0.13.
FEWEST_INSIDE = 10
_FEWEST_REFERENCES, _MOST_REFERENCES = 6, 31

Patients = Sequence[Sequence[Case]]


@dataclass(frozen=True)
class Groups:
    """Patients, each with all cases.

    Attributes:
        inside: of each site, trained on; the first site is attacked.
        outside: of the attacked site, not trained on.
        reference: the attacker's own.
        stand_ins: the sites are parts of one dataset.
    """

    inside: Sequence[Patients]
    outside: Patients
    reference: Patients
    stand_ins: bool


def deal(sites: Mapping[str, Sequence[Case]], parts: int, most: int, seed: int) -> Groups:
    """Deal patients.

    A single dataset is dealt to ``parts`` sites that stand in for others.

    Args:
        sites: training cases by site; the first is attacked.
        parts: sites in the sum, where there is one dataset.
        most: patients of each site that are trained on.
        seed: of the deal.

    Raises:
        DataError: there are too few patients.
    """
    name, *others = sites
    parts = 1 if others else parts
    own = _patients(sites[name], seed)
    references, inside = _sizes(len(own), parts, most)
    if inside < FEWEST_INSIDE or references < _FEWEST_REFERENCES:
        least = next(n for n in range(10_000) if _sizes(n, parts, most)[1] >= FEWEST_INSIDE)
        least = max(least, 5 * _FEWEST_REFERENCES)
        advice = "" if parts == 1 else " Or name other sites' folders with --site, or fewer sites with --sites."
        each = f" for each of {parts} sites" if parts > 1 else ""
        raise DataError(
            f"{name}: found {len(own)} training patients, expected at least {least}: {FEWEST_INSIDE} to train "
            f"on{each}, {FEWEST_INSIDE} to tell them from, the rest for the attacker. Add labelled cases.{advice}"
        )
    bounds = [references, references + inside, *(references + inside * (2 + part) for part in range(parts))]
    reference, outside, *trained = (own[first:last] for first, last in zip([0, *bounds[:-1]], bounds, strict=True))
    trained += [_patients(sites[other], seed)[:inside] for other in others]
    for other, patients in zip(others, trained[1:], strict=False):
        if len(patients) < FEWEST_INSIDE:
            raise DataError(
                f"{other}: found {len(patients)} training patients, expected at least {FEWEST_INSIDE}. Add labelled "
                "cases or leave the site out."
            )
    return Groups(trained, outside, reference, stand_ins=not others)


def _sizes(patients: int, parts: int, most: int) -> tuple[int, int]:
    """Return how many are references, and how many a site trains on."""
    references = min(_MOST_REFERENCES, patients // 5)
    return references, min(most, (patients - references) // (parts + 1))


def _patients(cases: Sequence[Case], seed: int) -> list[tuple[Case, ...]]:
    """Return the cases of each patient, shuffled."""
    found: dict[str, list[Case]] = {}
    for case in cases:
        found.setdefault(case.patient, []).append(case)
    order = np.random.default_rng(seed).permutation(len(found))
    names = sorted(found)
    return [tuple(found[names[place]]) for place in order]
