"""Which groups are too small to be told of, and which others would give them away."""

from __future__ import annotations

from collections.abc import Collection, Sequence, Set

Group = Set[str]


def withheld(groups: Sequence[Group], least: int, already: Collection[int] = ()) -> set[int]:
    """Return the numbers of the groups of which nothing may be told.

    These are the groups of too few patients, and as many of the next smallest as it takes that what is left of the
    total is of at least two groups and of enough patients (complementary suppression; Hundepool et al., Statistical
    Disclosure Control, 2012, section 4).

    Args:
        groups: patients of each; a patient may be in several.
        least: patients of whom something may be told.
        already: numbers of groups that are withheld anyway.
    """
    order = sorted((n for n, group in enumerate(groups) if group), key=lambda n: len(groups[n]))
    hidden = {n for n in order if len(groups[n]) < least or n in already}
    for number in order:
        hidden_patients = set().union(*(groups[n] for n in hidden))
        if not hidden or (len(hidden) > 1 and len(hidden_patients) >= least):
            break
        hidden.add(number)
    return hidden | set(already)
