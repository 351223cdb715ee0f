"""Which groups are too small to be told of, and which others would give them away."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

Group = frozenset[str] | set[str]

# Fewest patients behind any number that tells of a site's data and leaves it, whatever a job asks for.
LEAST_PATIENTS = 5


def withheld_beside_a_mean(groups: Mapping[str, Group], least: int, everybody: Group = frozenset()) -> set[str]:
    """Return the names of the groups whose figure would tell of too few patients, beside a mean over all groups.

    A patient's part of the mean is made of the figures of the groups that the patient is in. Where everybody who is in
    the same groups is one of enough, no difference of the mean and the groups' figures is of few. Else groups that few
    are in, or that few lack, are withheld, and the next smallest until those are of enough patients: then each
    difference has their figures in it, too.

    Args:
        groups: patients of each; a patient may be in several.
        least: patients of whom something may be told.
        everybody: behind the mean, where some are in no group.
    """
    whole: set[str] = set(everybody).union(*groups.values())
    alike = Counter(frozenset(name for name, group in groups.items() if patient in group) for patient in whole)
    if all(count >= least for count in alike.values()):
        return set()
    hidden = {name for name, group in groups.items() if len(group) < least or 0 < len(whole - group) < least}
    for name in sorted(groups, key=lambda name: len(groups[name])):
        if len(set[str]().union(*(groups[one] for one in hidden))) >= least:
            break
        hidden.add(name)
    return hidden


def withheld_counts(counts: Mapping[str, int], whole: int, least: int) -> set[str]:
    """Return the same of groups of whom only the numbers are known, so that it is enough whoever is in which.

    Args:
        counts: patients of each group.
        whole: patients behind the mean.
        least: patients of whom something may be told.
    """
    few = {name for name, count in counts.items() if count < least or 0 < whole - count < least}
    hidden = set(few)
    for name in sorted(counts, key=lambda name: counts[name]):
        if not few or max(counts[name] for name in hidden) >= least:
            break
        hidden.add(name)
    return hidden
