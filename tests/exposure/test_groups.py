"""Patients are dealt so that none is on two sides."""

from __future__ import annotations

from pathlib import Path

import pytest

from oncofed.data.case import Case
from oncofed.errors import DataError
from oncofed.exposure.groups import deal


def _cases(patients: int, each: int = 2) -> list[Case]:
    return [
        Case(name=f"{p}-{n}", patient=f"P{p}", image=Path("i"), label=Path("l"))
        for p in range(patients)
        for n in range(each)
    ]


def test_no_patient_is_in_two_groups_and_all_cases_stay_together() -> None:
    groups = deal({"east": _cases(80)}, parts=4, most=40, seed=1)
    every = [*groups.reference, *groups.outside, *(one for site in groups.inside for one in site)]
    assert len({cases[0].patient for cases in every}) == len(every) <= 80
    assert all(len(cases) == 2 and len({case.patient for case in cases}) == 1 for cases in every)
    assert [len(site) for site in groups.inside] == [len(groups.outside)] * 4
    assert groups.stand_ins


def test_other_sites_are_taken_as_they_are() -> None:
    groups = deal({"east": _cases(40), "west": _cases(12)}, parts=4, most=40, seed=1)
    assert [len(site) for site in groups.inside] == [16, 12]
    assert not groups.stand_ins


def test_too_few_patients_are_refused_with_how_many_are_needed() -> None:
    with pytest.raises(DataError, match=r"east: found 20 training patients, expected at least (\d+): 10 to") as refused:
        deal({"east": _cases(20)}, parts=4, most=40, seed=1)
    least = int(str(refused.value).split("at least ")[1].split(":")[0])
    assert len(deal({"east": _cases(least)}, parts=4, most=40, seed=1).outside) == 10
    with pytest.raises(DataError, match="east: found"):
        deal({"east": _cases(least - 1)}, parts=4, most=40, seed=1)
    with pytest.raises(DataError, match="west: found 4 training patients, expected at least 10"):
        deal({"east": _cases(40), "west": _cases(4)}, parts=4, most=40, seed=1)
