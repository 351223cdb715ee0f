"""A reproducible sample, spread over classes and patients."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence

from oncofed.data.case import Case

# Least number of cases of a rare class, if present: fewer would not show how well it is found.
_LEAST_OF_A_CLASS = 10


def sample_cases(cases: Sequence[Case], most: int, seed: int) -> tuple[Case, ...]:
    """Return a sample of at most ``most`` cases.

    Each class gets its share, and each patient's first image comes before any second image.

    The sample depends on the cases and the seed alone, by a hash of the patient, so that it is the same in each round
    and after a restart. Masks, which hold several classes, count as one class.

    Args:
        cases: to draw from.
        most: how many.
        seed: of the job.
    """
    if len(cases) <= most:
        return tuple(cases)
    by_class: dict[int, list[Case]] = defaultdict(list)
    for case in cases:
        by_class[case.label if isinstance(case.label, int) else 0].append(case)
    least = max(1, min(_LEAST_OF_A_CLASS, most // len(by_class)))
    rare = {label: len(own) for label, own in by_class.items() if len(own) * most <= least * len(cases)}
    counts = {label: min(count, least) for label, count in rare.items()}
    left, among = most - sum(counts.values()), len(cases) - sum(rare.values())
    drawn: list[Case] = []
    for label, own in by_class.items():
        count = counts.get(label, len(own) * left // among if among else 0)
        drawn += _spread(own, seed)[:count]
    # There may be more classes than wanted cases.
    chosen = set(_spread(drawn, seed)[:most])
    return tuple(case for case in cases if case in chosen)


def _spread(cases: Sequence[Case], seed: int) -> list[Case]:
    """Return cases in rounds over their patients."""
    taken: dict[str, int] = defaultdict(int)
    ranked = []
    # Folders of different classes may use the same image names.
    for case in sorted(cases, key=lambda case: _hash(seed, f"{case.name} {case.label}")):
        ranked.append((taken[case.patient], _hash(seed, case.patient), case))
        taken[case.patient] += 1
    return [case for _, _, case in sorted(ranked, key=lambda rank: rank[:2])]


def _hash(seed: int, text: str) -> bytes:
    return hashlib.sha256(f"{seed}:sample:{text}".encode()).digest()
