"""What the dates of examination tell: of the lists, and of the outcomes.

Registering a table counts the days since its first date of examination; the dates themselves stay in the table. A
finding needs a test at the level of ``LEVEL``, shared among a job's outcomes (Bonferroni), and an effect that is at
least of medium size (Cohen, 1988): of many patients, any difference is beyond chance.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import numpy as np
from scipy import stats

from oncofed.data.case import Case
from oncofed.data.cases import Cases
from oncofed.data.decisions import name_of
from oncofed.data.leaks import Outcome, outcomes_of
from oncofed.data.manifest import Entry, Manifest
from oncofed.data.quality import Finding
from oncofed.data.target_columns.dates import DAYS
from oncofed.data.targets import Target, declared_target

KIND, OF_OUTCOME = "tested on earlier patients", "date that tells the outcome"
LEVEL = 0.01
# Of pairs, in which the one of the test list is earlier; and of the outcome's variance, that goes with the date.
_MEDIUM_PAIRS, _MEDIUM_SHARE = 0.64, 0.06
# Of fewer patients no test reaches the level.
_FEWEST, _FEWEST_A_SIDE = 20, 5
_ADVICE = "Deal the lists by date (--targets FILE: split: {column: ..., test_from: ...}), unless dates were shifted"


def earlier_tests(cases: Cases) -> Iterator[Finding]:
    """Yield a warning where test patients come before training ones more often than chance deals them.

    A patient counts by the latest day; those of whom none is known are left out.
    """
    share = share_earlier(list(_latest(cases.test).values()), list(_latest(cases.train).values()))
    if share is not None:
        what = (
            f"of a test patient and a training patient the former was examined first in {share:.0%} of pairs "
            f"(Mann-Whitney, p < {LEVEL}): how a model does on later patients, as it will be used, stays unknown. "
            f"{_ADVICE}"
        )
        yield Finding(KIND, None, what, severe=False)


def share_earlier(test: Sequence[int], train: Sequence[int]) -> float | None:
    """Return in how many pairs a test patient's day is before a training one's; None where chance may have dealt so.

    Mann and Whitney (1947), one-sided; ties count half.

    Args:
        test: days of test patients.
        train: days of training patients.
    """
    if min(len(test), len(train)) < _FEWEST_A_SIDE:
        return None
    found = stats.mannwhitneyu(test, train, alternative="less")
    share = 1 - float(found.statistic) / (len(test) * len(train))
    return share if found.pvalue < LEVEL and share >= _MEDIUM_PAIRS else None


def outcomes_by_date(manifest: Manifest, targets: Iterable[Target]) -> Iterator[Finding]:
    """Yield each target that goes with the date of examination, so that a model may learn scanners of a time instead.

    Args:
        manifest: the dataset.
        targets: of the job.
    """
    days = _days_of_patients(manifest.entries)
    known = {}
    for target in targets:
        declared = declared_target(manifest.targets, manifest.labels, target)
        for part, outcome in (outcomes_of(manifest, target, declared) if declared else {}).items():
            known[f"{target.name} ({part})" if part else target.name] = outcome
    tests = dict(_tests(days, known))
    for name, (chance, share) in tests.items():
        if chance < LEVEL / len(tests) and share >= _MEDIUM_SHARE:
            what = (
                f"the date of examination goes with {name} (p < {LEVEL} over {len(tests)} outcomes, {share:.0%} of its "
                f"variance): a model may learn what scanners and protocols of a time look like. {_ADVICE}"
            )
            yield Finding(OF_OUTCOME, None, what, severe=False)


def _tests(days: Mapping[str, int], known: Mapping[str, Outcome]) -> Iterator[tuple[str, tuple[float, float]]]:
    """Yield each outcome's p value, and the share of its variance; follow-up is tested as a whole."""
    times = {name.removesuffix(" (time)"): outcome for name, outcome in known.items() if name.endswith(" (time)")}
    events = {name: known.get(f"{name} (event)", {}) for name in times}
    of_follow_up = {f"{name} ({part})" for name in times for part in ("time", "event")}
    found = {name: goes_with(days, outcome) for name, outcome in known.items() if name not in of_follow_up}
    found |= {name: _hazard_goes_with(days, times[name], events[name]) for name in times}
    yield from ((name, one) for name, one in found.items() if one)


def goes_with(days: Mapping[str, int], outcome: Outcome) -> tuple[float, float] | None:
    """Return the p value and the share of variance by which an outcome goes with days; None of too few patients.

    Of numbers by Spearman's correlation (1904), of names by the test of Kruskal and Wallis (1952).

    Args:
        days: of patients.
        outcome: of patients.
    """
    both = [(days[patient], value) for patient, value in outcome.items() if patient in days]
    if len(both) < _FEWEST or len({day for day, _ in both}) < 2 or len({value for _, value in both}) < 2:
        return None
    if all(isinstance(value, float) for _, value in both):
        found = stats.spearmanr([day for day, _ in both], [value for _, value in both])
        return float(found.pvalue), float(found.statistic) ** 2
    groups: dict[str | float, list[int]] = defaultdict(list)
    for day, value in both:
        groups[value].append(day)
    enough = [group for group in groups.values() if len(group) >= _FEWEST_A_SIDE]
    if len(enough) < 2 or len({day for group in enough for day in group}) < 2:
        return None
    tested = stats.kruskal(*enough)
    return float(tested.pvalue), float(tested.statistic) / (sum(map(len, enough)) - 1)


def _hazard_goes_with(days: Mapping[str, int], times: Outcome, events: Outcome) -> tuple[float, float] | None:
    """Return the same of the hazard: later patients are followed for less time, which tells nothing.

    The score test of Cox's model (1972) with the days' ranks; the share is that of a correlation with as many events.

    Args:
        days: of patients.
        times: of follow-up.
        events: whether it ended with the event, "True" or "False".
    """
    patients = [patient for patient in times if patient in days and patient in events]
    died = np.array([events[patient] == "True" for patient in patients], bool)
    if died.sum() < _FEWEST:
        return None
    until = np.array([times[patient] for patient in patients], np.float64)
    ranks = stats.rankdata([days[patient] for patient in patients])
    score = variance = 0.0
    for one in np.flatnonzero(died):
        at_risk = ranks[until >= until[one]]
        score += float(ranks[one] - at_risk.mean())
        variance += float(at_risk.var())
    if variance == 0:
        return None
    square = score**2 / variance
    return float(stats.chi2.sf(square, 1)), min(square / int(died.sum()), 1.0)


def _days_of_patients(entries: Iterable[Entry]) -> dict[str, int]:
    found: dict[str, int] = {}
    for entry in entries:
        patient = entry.patient or name_of(entry)
        for day in _days([entry]):
            found[patient] = max(day, found.get(patient, day))
    return found


def _latest(cases: Sequence[Case]) -> dict[str, int]:
    """Return patient -> day of the latest examination."""
    found: dict[str, int] = {}
    for case in cases:
        for day in _days([part.entry for part in case.parts or (case,) if part.entry]):
            found[case.patient] = max(day, found.get(case.patient, day))
    return found


def _days(entries: Collection[Entry]) -> Iterator[int]:
    for entry in entries:
        text = entry.tags.get(DAYS, "")
        if text.isdigit():
            yield int(text)
