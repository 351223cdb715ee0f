"""What of a cohort the archive has: the series to fetch, and what a person should know."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from oncofed.hospital.archive import Archive, Series, Study
from oncofed.hospital.cohort import Cohort, Row

Progress = Callable[[str, int, int], None]
_Ask = Callable[[Callable[[Archive], list[Study]]], list[Study]]


@dataclass
class Plan:
    """What an archive has of a cohort.

    Attributes:
        studies: by UID.
        series: by UID, those that are wanted.
        not_found: lines of the table that no study matches.
        of_several: lines of the table whose accession number studies of several patients have; none is taken.
        one_person: groups of PatientIDs with the same name, birth date and sex.
        unasked: studies that the archive named and nobody asked for; none is taken.
    """

    studies: dict[str, Study] = field(default_factory=dict)
    series: dict[str, Series] = field(default_factory=dict)
    not_found: list[int] = field(default_factory=list)
    of_several: list[int] = field(default_factory=list)
    one_person: list[tuple[str, ...]] = field(default_factory=list)
    unasked: int = 0


class Planner:
    """Asks an archive for a cohort.

    Args:
        asked: calls a function with an archive, and tries again while that does not answer.
        progress: called with (step, number done, number in all).
    """

    def __init__(self, asked: Callable[[Callable[[Archive], object]], object], progress: Progress) -> None:
        self._asked, self._progress = asked, progress

    def plan(self, cohort: Cohort) -> Plan:
        """Return what the archive has."""
        plan = Plan()
        self._find_studies(cohort, plan)
        for number, study in enumerate(plan.studies.values(), start=1):
            # Every study has a series: one without was asked for in the moment in which it vanished, or for a moment.
            for series in self._series(study) or self._series(study):
                if _is_wanted(series, cohort):
                    plan.series[series.uid] = series
            self._progress("series", number, len(plan.studies))
        plan.one_person = _one_person(plan.studies)
        return plan

    def _find_studies(self, cohort: Cohort, plan: Plan) -> None:
        found: dict[Row | None, dict[str, Study]] = defaultdict(dict)
        searches = list(cohort.searches())
        for number, (row, keys) in enumerate(searches, start=1):
            for study in self._studies(keys):
                if row is None or _matches(study, row):
                    found[row][study.uid] = study
                else:
                    plan.unasked += 1
            self._progress("studies", number, len(searches))
        for row in cohort.rows or ():
            studies = found.pop(row, {})
            if not studies:
                plan.not_found.append(row.line)
            elif dict(row.keys).keys() == {"AccessionNumber"} and len({s.patient for s in studies.values()}) > 1:
                plan.of_several.append(row.line)
            else:
                plan.studies |= studies
        plan.studies |= found.pop(None, {})

    def _studies(self, keys: dict[str, str]) -> list[Study]:
        studies: list[Study] = self._asked(lambda archive: archive.studies(keys))  # type: ignore[assignment]
        return studies

    def _series(self, study: Study) -> list[Series]:
        series: list[Series] = self._asked(lambda archive: archive.series(study))  # type: ignore[assignment]
        return series


def _matches(study: Study, row: Row) -> bool:
    """Return whether a study is what a row asks for: an archive may not know a key, and answer with everything."""
    has = {"PatientID": study.patient, "AccessionNumber": study.accession, "StudyInstanceUID": study.uid}
    return all(has[keyword] == value for keyword, value in row.keys)


def _is_wanted(series: Series, cohort: Cohort) -> bool:
    query = cohort.query
    if query.modalities and series.modality not in query.modalities:
        return False
    pattern = query.series_description
    return pattern is None or fnmatchcase(series.description.lower(), pattern.lower().replace("[", "[[]"))


def _one_person(studies: dict[str, Study]) -> list[tuple[str, ...]]:
    """Return groups of PatientIDs that may be of one person."""
    patients: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for study in studies.values():
        if study.person:
            name = " ".join(study.person[0].replace("^", " ").upper().split())
            person = (name, *study.person[1:])
            patients[person].add(study.patient)
    return [tuple(sorted(group)) for group in patients.values() if len(group) > 1]
