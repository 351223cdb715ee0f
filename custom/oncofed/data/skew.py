"""Deal patients to simulated sites, evenly or not.

Three ways in which sites of a federation differ, as the literature simulates them:

- ``none``: equal sites, patients at random;
- ``size``: the same kinds of patients, in numbers that fall from site to site by a constant ratio;
- ``dirichlet``: each group of patients (a class, a scanner, a quarter of the sizes) is spread over the sites by shares
  that are drawn from a symmetric Dirichlet distribution (Hsu, Qi and Brown, *Measuring the Effects of Non-Identical
  Data Distribution for Federated Visual Classification*, 2019): near 0 a site holds few groups, from about 100 on all.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from oncofed.errors import DataError, SpecError

Kind = Literal["none", "size", "dirichlet"]
_WRITTEN = "none, size, size:RATIO (more than 0, at most 1) or dirichlet:ALPHA (more than 0), such as dirichlet:0.3"
_DRAWS = 2000


@dataclass(frozen=True)
class Skew:
    """How sites differ.

    Attributes:
        kind: none, size or dirichlet.
        strength: of size, each site's patients as a share of the one before, 0 to 1; of dirichlet, its concentration
            (alpha), more than 0. Not used by none.
    """

    kind: Kind
    strength: float = 1.0


def parse_skew(text: str) -> Skew:
    """Read a skew as it is typed, such as ``dirichlet:0.3``.

    Raises:
        SpecError: it is none of them, or its number is out of range.
    """
    kind, _, number = text.strip().partition(":")
    if kind == "none" and not number:
        return Skew("none")
    if kind == "size":
        strength = _number(number or "0.5", text)
        if strength <= 1:
            return Skew("size", strength)
    if kind == "dirichlet" and number:
        return Skew("dirichlet", _number(number, text))
    raise _unknown(text)


def _number(number: str, text: str) -> float:
    try:
        value = float(number)
    except ValueError:
        raise _unknown(text) from None
    if not (math.isfinite(value) and value > 0):
        raise _unknown(text)
    return value


def _unknown(text: str) -> SpecError:
    return SpecError(f"--skew {text}: expected {_WRITTEN}.")


def deal_skewed(
    groups: Mapping[str, str], sites: int, skew: Skew, least: int, seed: int, counted: Collection[str] | None = None
) -> list[list[str]]:
    """Return the patients of each site.

    Every patient goes to exactly one site; the same arguments give the same deal on every machine.

    Args:
        groups: patient -> group, which only ``dirichlet`` looks at.
        sites: number of sites.
        skew: how they differ.
        least: fewest patients of a site.
        seed: of all draws.
        counted: who counts for ``least``, such as those for training; None: all.

    Raises:
        DataError: so many sites of at least so many patients cannot be made.
    """
    known = set(groups) if counted is None else set(counted)
    if len(known) < sites * least:
        raise DataError(
            f"{len(known)} patients for training are too few for {sites} sites of at least {least}. Expected at least "
            f"{sites * least} patients: ask for fewer --parts, or a smaller --least"
        )
    rng = np.random.default_rng(seed)
    if skew.kind == "dirichlet":
        return _by_dirichlet(groups, sites, skew.strength, least, rng, known)
    shares = (skew.strength if skew.kind == "size" else 1.0) ** np.arange(sites, dtype=np.float64)
    parts: list[list[str]] = [[] for _ in range(sites)]
    for members, fewest in ((known, least), (set(groups) - known, 0)):
        patients = sorted(members)
        rng.shuffle(patients)
        for part, dealt in zip(parts, _cut(patients, _sizes(len(patients), shares, fewest)), strict=True):
            part.extend(dealt)
    return parts


def _sizes(total: int, shares: NDArray[np.float64], least: int) -> list[int]:
    """Return whole numbers that add up to ``total``, in proportion to shares where none would be under ``least``."""
    sizes = np.full(len(shares), least)
    free = np.ones(len(shares), bool)
    while free.any():
        exact = (total - sizes[~free].sum()) * shares / shares[free].sum()
        small = free & (exact < least)
        if not small.any():
            break
        free &= ~small
    if free.any():
        sizes[free] = np.floor(exact[free])
        # Largest remainders get what rounding down left.
        order = sorted(np.flatnonzero(free), key=lambda site: sizes[site] - exact[site])
        sizes[order[: total - sizes.sum()]] += 1
    return [int(size) for size in sizes]


def _cut(patients: Sequence[str], sizes: Sequence[int]) -> list[list[str]]:
    ends = np.cumsum(sizes)
    return [list(patients[end - size : end]) for size, end in zip(sizes, ends, strict=True)]


def _by_dirichlet(
    groups: Mapping[str, str], sites: int, alpha: float, least: int, rng: np.random.Generator, counted: Collection[str]
) -> list[list[str]]:
    members: dict[str, list[str]] = defaultdict(list)
    for patient in sorted(groups):
        members[groups[patient]].append(patient)
    # Drawn again until no site is too small, as Li et al. do (Federated Learning on Non-IID Data Silos, ICDE 2022).
    for _ in range(_DRAWS):
        parts: list[list[str]] = [[] for _ in range(sites)]
        for group in sorted(members):
            patients = list(members[group])
            rng.shuffle(patients)
            # A tiny alpha underflows to shares of 0/0.
            shares = np.nan_to_num(rng.dirichlet(np.full(sites, alpha)))
            if not shares.sum():
                shares[rng.integers(sites)] = 1.0
            for part, dealt in zip(parts, _cut(patients, _sizes(len(patients), shares, 0)), strict=True):
                part.extend(dealt)
        if min(sum(patient in counted for patient in part) for part in parts) >= least:
            return parts
    raise DataError(
        f"dirichlet:{alpha:g} gave no {sites} sites of at least {least} patients in {_DRAWS} draws of "
        f"{len(groups)} patients in {len(members)} groups. Expected a larger alpha, fewer --parts or a smaller --least"
    )
