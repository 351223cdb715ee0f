"""Days between a folder's studies, by their DICOM dates.

The dates themselves are not written down; see ``data.time_order``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import date, datetime

from oncofed.data.case_results import CaseFound, CaseResult
from oncofed.data.dicom.header_types import ImageHeader, SlideHeader
from oncofed.data.target_columns.dates import DAYS

# Of earlier studies there is hardly a DICOM file: their dates are placeholders, such as 19000101.
_FIRST_YEAR = 1970


def with_study_days(
    results: Sequence[CaseResult], headers: Iterable[ImageHeader | SlideHeader]
) -> Sequence[CaseResult]:
    """Return cases with the days since the folder's first study (StudyDate).

    A table that states days has the last word: one dataset counts from one day. One date alone, as anonymisers leave
    it, tells no order.

    Args:
        results: cases that were read, whose studies are those of the files.
        headers: of the folder's images.
    """
    if any(isinstance(result, CaseFound) and DAYS in result.entry.tags for result in results):
        return results
    days = {
        header.study: day
        for header in headers
        if header.study and (day := _day(header.study_date)) and day.year >= _FIRST_YEAR
    }
    if len(set(days.values())) < 2:
        return results
    first = min(days.values())
    return [
        _with_tag(result, str((days[result.entry.study] - first).days))
        if isinstance(result, CaseFound) and result.entry.study in days
        else result
        for result in results
    ]


def placeholder_remarks(headers: Iterable[ImageHeader | SlideHeader]) -> list[str]:
    """Return how many studies have a date that cannot be theirs, if any, for people."""
    days = {header.study: day for header in headers if header.study and (day := _day(header.study_date))}
    count = sum(day.year < _FIRST_YEAR for day in days.values())
    if not count:
        return []
    studies = "1 study is" if count == 1 else f"{count} studies are"
    what = f"{studies} dated before {_FIRST_YEAR}, as anonymisers write it: such a date counts as none"
    return [f"{what}. A table with a column of dates, or of days, tells the order (--table)"]


def _with_tag(result: CaseFound, day: str) -> CaseFound:
    return replace(result, entry=result.entry.model_copy(update={"tags": {**result.entry.tags, DAYS: day}}))


def _day(text: str) -> date | None:
    """Return a date of PS3.5 (DA), or None: 20210403, or 2021.04.03 of the standard's forerunner."""
    try:
        return datetime.strptime(text.replace(".", ""), "%Y%m%d").date()
    except ValueError:
        return None
