"""Suppression of small groups.

Groups too small to report, and others that would reveal them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

Group = frozenset[str] | set[str]

# Fewest patients behind any figure that leaves a site; no job can lower it.
LEAST_PATIENTS = 5


def withheld_groups(groups: Mapping[str, Group], least: int, everybody: Group = frozenset()) -> set[str]:
    """Return the groups that would reveal too few patients.

    Their figures are reported together with a mean over all groups.

    A patient contributes to the mean the figures of the groups that the patient is in. If at least ``least`` patients
    share each combination of groups, no difference between the mean and the groups' figures is of few patients. Else
    groups that few are in, or that few are not in, are withheld, then the next smallest until the withheld ones have
    enough patients: every difference then contains their figures too.

    Args:
        groups: patients of each group; a patient may be in several.
        least: smallest number of patients to report on.
        everybody: patients behind the mean, if some are in no group.
    """
    whole: set[str] = set(everybody).union(*groups.values())
    alike = Counter(frozenset(name for name, group in groups.items() if patient in group) for patient in whole)
    if all(count >= least for count in alike.values()):
        return set()
    hidden = {name for name, group in groups.items() if len(group) < least or 0 < len(whole - group) < least}
    for name in sorted(groups, key=lambda name: (len(groups[name]), name)):
        if len(set[str]().union(*(groups[withheld] for withheld in hidden))) >= least:
            break
        hidden.add(name)
    return hidden


def withheld_counts(counts: Mapping[str, int], whole: int, least: int, some_are_hidden: bool = False) -> set[str]:
    """Return the groups to withhold if only sizes are known.

    So that it is enough whoever is in which.

    Args:
        counts: patients of each group.
        whole: patients behind the mean.
        least: smallest number of patients to report on.
        some_are_hidden: further groups, of unknown size, are in the mean and were withheld before.
    """
    small = {name for name, count in counts.items() if count < least or 0 < whole - count < least}
    hidden = set(small)
    for name in sorted(counts, key=lambda name: (counts[name], name)):
        if not (small or some_are_hidden) or max((counts[name] for name in hidden), default=0) >= least:
            break
        hidden.add(name)
    return hidden


def are_told_beside(counts: Mapping[str, int], whole: int, least: int) -> bool:
    """Return whether a mean and its groups' figures tell of enough patients, whoever is in which.

    Two groups that some lack may have any number in common: then nobody knows how many a difference is of.

    Args:
        counts: patients of each group, none of which is left out.
        whole: patients behind the mean, each of whom is in some group.
        least: smallest number of patients to report on.
    """
    return not withheld_counts(counts, whole, least) and sum(count < whole for count in counts.values()) <= 1


def told_count(patients: int) -> str:
    """Return a count in words; of one to four only that."""
    return f"fewer than {LEAST_PATIENTS}" if 0 < patients < LEAST_PATIENTS else str(patients)
