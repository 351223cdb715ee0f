"""Columns of a table that tell the outcome, such as a date of death turned into a stage.

A model that gets such a column learns nothing else, and no new patient has it.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise

import numpy as np

from oncofed.data.decisions import name_of
from oncofed.data.label_names import name_key
from oncofed.data.manifest import Entry, Manifest
from oncofed.data.quality import Finding
from oncofed.data.target_columns.cells import is_unknown
from oncofed.data.targets import DatasetTarget, FollowUp, Target, declared_target, stated_value

# Kind of finding.
TELLS_OUTCOME = "column that tells the outcome"
# Fewest patients of whom a column tells the outcome; of fewer it does so by chance.
_FEWEST = 10
_FEWEST_A_SIDE = 3
# Numbers separate the values by chance less often than this.
_LEAST_CHANCE = 1e-3
_CORRELATED = 0.9999
# A column of more texts than this share of the patients names patients, not outcomes.
_MOST_TEXTS = 0.34
Outcome = dict[str, str | float]


def outcome_columns(manifest: Manifest, targets: Iterable[Target], used: Collection[str] = ()) -> Iterator[Finding]:
    """Yield each column that tells a target of all patients.

    Numbers that correlate by one with it, or lie apart for each value; texts each of which stands with one value alone;
    and columns that the patients of one value alone have, or lack.

    Args:
        manifest: the dataset; other columns of its table are its cases' tags.
        targets: of the job.
        used: columns that the job learns from; of these the finding is severe.
    """
    learned = {name_key(column) for column in used}
    columns: dict[str, dict[str, str]] = defaultdict(dict)
    for entry in manifest.entries:
        for column, text in entry.tags.items():
            columns[column].setdefault(entry.patient or name_of(entry), text)
    for target in targets:
        declared = declared_target(manifest.targets, manifest.labels, target)
        outcomes = outcomes_of(manifest, target, declared) if declared else {}
        for column, texts in sorted(columns.items()):
            for part, outcome in outcomes.items():
                how = _told(texts, outcome)
                if how:
                    of = f"{target.name} ({part})" if part else target.name
                    what = f"column {column} {how} {of}. Is it known before the outcome is?"
                    advice = (
                        "Leave it out of the job's covariates"
                        if name_key(column) in learned
                        else "The job does not use it"
                    )
                    yield Finding(TELLS_OUTCOME, None, f"{what} {advice}", severe=name_key(column) in learned)
                    break


def outcomes_of(manifest: Manifest, target: Target, declared: DatasetTarget) -> dict[str, Outcome]:
    """Return part of the target -> patient -> value."""
    found: dict[str, Outcome] = defaultdict(dict)
    for entry in manifest.entries:
        for part, value in _parts(manifest, entry, target, declared):
            found[part].setdefault(entry.patient or name_of(entry), value)
    return found


def _parts(
    manifest: Manifest, entry: Entry, target: Target, declared: DatasetTarget
) -> Iterator[tuple[str, str | float]]:
    value = stated_value(declared, entry.targets, entry.label, manifest.labels, target)
    if isinstance(value, FollowUp):
        yield "event", str(value.event)
        yield "time", float(value.time)
    elif isinstance(value, dict):
        yield from ((name, str(holds)) for name, holds in value.items())
    elif isinstance(value, str):
        yield "", name_key(value)
        keys = [name_key(name) for name in declared.names]
        if declared.kind == "grade" and name_key(value) in keys:
            yield "order", float(keys.index(name_key(value)))
    elif value is not None:
        yield "", float(value)


def _told(texts: Mapping[str, str], outcome: Outcome) -> str:
    """Return in words how a column tells an outcome; empty: it does not."""
    both = [(texts[patient], value) for patient, value in outcome.items() if patient in texts]
    if all(isinstance(value, float) for value in outcome.values()):
        return _correlates([_number(text) for text, _ in both], [float(value) for _, value in both])
    return _texts_tell(both) or _numbers_tell(both) or _absence_tells(texts, outcome)


def _texts_tell(both: Sequence[tuple[str, str | float]]) -> str:
    by_text: dict[str, set[str | float]] = defaultdict(set)
    for text, value in both:
        by_text[name_key(text)].add(value)
    few = len(by_text) <= _MOST_TEXTS * len(both)
    if not few or not _enough([value for _, value in both]) or any(len(found) > 1 for found in by_text.values()):
        return ""
    return f"({len(by_text)} texts) tells in all {len(both)} patients the value of"


def _numbers_tell(both: Sequence[tuple[str, str | float]]) -> str:
    """Tell of numbers that lie apart for each value: too many for chance, each may be of one patient alone."""
    known = sorted((number, str(value)) for text, value in both if (number := _number(text)) is not None)
    values = [value for _, value in known]
    if not _enough(values):
        return ""
    kinds = set(values)
    if sum(one != other for one, other in pairwise(values)) >= len(kinds):
        return ""
    # A number at a border that two values share does not tell them apart.
    if any(one[0] == other[0] and one[1] != other[1] for one, other in pairwise(known)):
        return ""
    orders = math.factorial(len(values)) // math.prod(math.factorial(values.count(kind)) for kind in kinds)
    by_chance = math.factorial(len(kinds)) / orders
    return f"(numbers) separates in all {len(known)} patients the values of" if by_chance < _LEAST_CHANCE else ""


def _absence_tells(texts: Mapping[str, str], outcome: Outcome) -> str:
    """Tell of a column that one value's patients alone have, or lack: a network sees what is missing, too."""
    there = {patient for patient in outcome if not is_unknown(texts.get(patient, ""))}
    absent = set(outcome) - there
    if len(outcome) < _FEWEST or min(len(there), len(absent)) < _FEWEST_A_SIDE:
        return ""
    for value in sorted(set(map(str, outcome.values()))):
        if {patient for patient, own in outcome.items() if str(own) == value} in (there, absent):
            return f"tells, by where it is absent, in all {len(outcome)} patients a value of"
    return ""


def _enough(values: Sequence[str | float]) -> bool:
    """Return whether patients are enough, and two values have some each, so that no chance tells them."""
    sides = sorted(Counter(values).values())
    return len(values) >= _FEWEST and len(sides) > 1 and sides[-2] >= _FEWEST_A_SIDE


def _correlates(column: list[float | None], outcome: list[float]) -> str:
    known = [(one, other) for one, other in zip(column, outcome, strict=True) if one is not None]
    if len(known) < _FEWEST:
        return ""
    one, other = np.array(known).T
    if one.std() == 0 or other.std() == 0:
        return ""
    correlation = float(np.corrcoef(one, other)[0, 1])
    return f"correlates by {correlation:.4f} with" if abs(correlation) > _CORRELATED else ""


def _number(text: str) -> float | None:
    try:
        number = float(text.replace(",", ".")) if text.count(",") <= 1 else None
    except ValueError:
        return None
    return number if number is not None and np.isfinite(number) else None
