"""All slides of a patient as one case."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from oncofed.data.case import Case
from oncofed.data.covariates import Covariate, row_of
from oncofed.data.manifest import Entry
from oncofed.data.patients import whole_patients

AGE = Covariate(name="age", range=(0, 120))


def slide(name: str, patient: str = "P1", label: int = 0, age: str = "", **more: object) -> Case:
    entry = Entry(image=name, tags={"age": age}, checksum=name)
    return replace(Case(name, patient, Path(name), label, entry=entry), **more)  # type: ignore[arg-type]


def test_a_patient_with_several_slides_is_one_case_and_one_with_one_stays_as_it_is() -> None:
    slides = [slide("b"), slide("alone", "P2"), slide("a"), slide("c")]
    (joined, alone), problems = whole_patients(slides)
    assert not problems
    assert joined.name == "a_and_2_more"
    registered, *_ = whole_patients([replace(one, patient="0123456789abcdef") for one in slides])[0]
    assert registered.name == "patient_0123456789ab", "by the pseudonym that registration gives"
    assert [part.name for part in joined.slides] == ["a", "b", "c"]
    assert alone is slides[1]
    assert alone.slides == (alone,)


def test_what_one_slide_states_and_another_leaves_open_holds_for_both() -> None:
    first = slide("a", targets={"survival": (math.nan, math.nan), "findings": (1.0, math.nan)})
    second = slide("b", age="70", targets={"survival": (12.0, 1.0), "findings": (math.nan, 0.0)})
    (joined,), _ = whole_patients([first, second], [AGE])
    assert joined.targets == {"survival": (12.0, 1.0), "findings": (1.0, 0.0)}
    assert row_of(joined.entry, [AGE]) == (70.0,)


@pytest.mark.parametrize(
    ("first", "second", "what"),
    [
        (slide("a"), slide("b", label=1), r"classes \(normal, tumour\)"),
        (slide("a", targets={"months": (3.0,)}), slide("b", targets={"months": (4.0,)}), "values of months"),
        (slide("a", age="70"), slide("b", age="71"), "values in the column age"),
    ],
)
def test_slides_that_contradict_one_another_are_named_and_the_others_go_on(
    first: Case, second: Case, what: str
) -> None:
    joined, problems = whole_patients([first, second, slide("c", "P2")], [AGE], {0: "normal", 1: "tumour"})
    assert [case.name for case in joined] == ["c"]
    assert [problem.case for problem in problems] == ["a", "b"]
    for problem in problems:
        assert __import__("re").match(
            f"2 slides of its patient state different {what}. Correct the table", problem.what
        )
