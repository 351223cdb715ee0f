"""Whether a model is tested on later patients than it learned from.

Registering a table counts the days since its first date of examination; the dates themselves stay in the table.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from oncofed.data.case import Case
from oncofed.data.cases import Cases
from oncofed.data.grouping import counted
from oncofed.data.quality import Finding
from oncofed.data.target_columns.dates import DAYS

KIND = "tested on earlier patients"


def earlier_tests(cases: Cases) -> Iterator[Finding]:
    """Yield a warning where test patients come before training ones.

    A patient counts by the latest day; those of whom none is known are left out.
    """
    train, test = _latest(cases.train), _latest(cases.test)
    if not train or not test:
        return
    last = max(train.values())
    before = sum(day < last for day in test.values())
    if before:
        what = (
            f"{before} of {counted(len(test), 'test patient')} with a known date were examined before the last "
            "training patient: how a model does on later patients, as it will be used, stays unknown. Deal "
            "the lists by date (--targets FILE: split: {column: ..., test_from: ...}), unless dates were shifted"
        )
        yield Finding(KIND, None, what, severe=False)


def _latest(cases: Sequence[Case]) -> dict[str, int]:
    """Return patient -> day of the latest examination."""
    found: dict[str, int] = {}
    for case in cases:
        for day in _days(case.parts or (case,)):
            found[case.patient] = max(day, found.get(case.patient, day))
    return found


def _days(parts: Iterable[Case]) -> Iterator[int]:
    for part in parts:
        text = part.entry.tags.get(DAYS, "") if part.entry else ""
        if text.isdigit():
            yield int(text)
