"""Mean and spread of a table's numbers over sites, from sums that tell of no few patients."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from oncofed.data.case import Case
from oncofed.data.covariates import Covariate
from oncofed.data.manifest import Entry
from oncofed.data.moments import known_patients, moments_of, own_moments, site_sums
from oncofed.data.patients import join
from oncofed.data.stain.sketch import sketch
from oncofed.data.stain.spec import StainSpec
from oncofed.privacy.covariates import are_sums
from stained_made import OTHER, USUAL, field

AGE = Covariate(name="age", unit="years", range=(0, 120))
PSA = Covariate(name="psa", unit="ng/ml", range=(0, 500))
STAGE = Covariate(name="stage", categories=("I", "II"))


def cases_of(ages: list[float | str], psa: list[float | str] | None = None, images: int = 1) -> list[Case]:
    found = []
    for number, age in enumerate(ages):
        tags = {"age": str(age), "psa": str(psa[number] if psa else "NA"), "stage": "I"}
        patient = f"p{number}"
        for image in range(images):
            name = f"{patient}.{image}"
            found.append(Case(name, patient, Path(name), 0, entry=Entry(image=name, patient=patient, tags=tags)))
    return found


def test_moments_over_sites_are_numpys() -> None:
    rng = np.random.default_rng(1)
    sites = [rng.normal(mean, 9, count).clip(0, 120).round(1) for mean, count in ((50, 40), (66, 12), (71, 25))]
    told = [site_sums(cases_of([float(age) for age in ages]), [AGE, STAGE])[0] for ages in sites]
    (mean, spread) = moments_of(told, [AGE, STAGE])["age"]
    every = np.concatenate(sites)
    assert mean == pytest.approx(every.mean(), abs=0.001)
    assert spread == pytest.approx(every.std(), abs=0.01)
    assert own_moments(cases_of([float(age) for age in every]), [AGE])["age"] == pytest.approx(
        (every.mean(), every.std())
    )


def test_a_patients_images_count_as_one() -> None:
    ages: list[float | str] = [50.0, 60.0, 70.0, 52.0, 61.0, 73.0]
    (once, patients), (twice, _) = (site_sums(cases_of(ages, images=count), [AGE]) for count in (1, 3))
    assert once == twice
    assert once["age"][0] == 6
    assert patients == [[f"p{number}" for number in range(6)]]


def test_every_slide_of_a_patient_tells_of_its_stain() -> None:
    """Whether a patient's slides are one case or several."""
    columns = StainSpec(normalise="macenko").columns
    entries = [
        Entry(image=name, colours=sketch(field(seed, stain)), tags={"age": "50"})
        for seed, (name, stain) in enumerate({"a": USUAL, "b": OTHER}.items())
    ]
    slides = [Case(entry.image, "p", Path(entry.image), 0, entry=entry) for entry in entries]
    apart, joined = known_patients(slides, [AGE, *columns]), known_patients([join(slides)], [AGE, *columns])
    assert joined == apart
    assert joined != known_patients(slides[:1], [AGE, *columns])
    assert len(joined) == 1 + len(columns)


@pytest.mark.parametrize(
    ("ages", "why"),
    [
        ([50.0, 60.0, 70.0, 52.0], "four patients"),
        (
            [50.0, 60.0, 70.0, 52.0, 61.0, 73.0, 44.0, "NA", "", "NA"],
            "three lack it, and few are left without two more",
        ),
        ([60.0] * 20, "the same in all"),
        ([0.0] * 16 + [1.0] * 4, "a value that four have"),
    ],
)
def test_sums_that_tell_of_few_stay(ages: list[float | str], why: str) -> None:
    assert site_sums(cases_of(ages), [AGE]) == ({}, []), why


def test_others_are_left_out_with_the_few_who_lack_a_value() -> None:
    ages: list[float | str] = [float(40 + number) for number in range(20)]
    (told, (patients,)) = site_sums(cases_of([*ages, "NA", "NA"]), [AGE])
    assert told["age"][0] == 17
    assert len(patients) == 17
    assert site_sums(cases_of([*ages, *["NA"] * 6]), [AGE])[0]["age"][0] == 20


def test_a_column_of_which_no_site_told_keeps_its_plausible_range() -> None:
    assert moments_of([{}, {}], [AGE, PSA]) == {}
    assert AGE.usual == (60.0, 30.0)
    hardly_varies = moments_of([{"age": [9, 0.9, 0.09]}], [AGE])["age"]
    assert hardly_varies == pytest.approx((72.0, AGE.usual[1]))


def test_what_a_site_tells_passes_its_own_check() -> None:
    rng = np.random.default_rng(2)
    for low, high in ((0, 120), (0, 3), (100, 120)):
        ages: list[float | str] = [float(age) for age in rng.uniform(low, high, 30)]
        sums, _ = site_sums(cases_of(ages, [*ages[:20], *["NA"] * 10]), [AGE, PSA])
        assert set(sums) == {"age", "psa"}
        assert are_sums(sums, ["age", "psa"], 30)


SUMS = [9, 0.25, 0.5]


@pytest.mark.attack("reads a value of a few patients from sums of the table", "outbound filter", "audit log")
@pytest.mark.parametrize(
    "told",
    [
        {"age": [4, 0.25, 0.5]},
        {"MRN-0001": SUMS},
        {"stage": SUMS},
        {"age": [9, 5.0, 2.25]},
        {"age": [9, 0.25, 2.5]},
        {"age": [9, 0.25, -0.1]},
        {"age": [9, 4.0, 0.5]},
        {"age": [9, 0.25001, 0.5]},
        {"age": [9, 0.25, 0.123456]},
        {"age": [9, float("nan"), 0.5]},
        {"age": [9, 0.25, float("inf")]},
        {"age": [9.0, 0.25, 0.5]},
        {"age": [True, 0.25, 0.5]},
        {"age": ["9", 0.25, 0.5]},
        {"age": [9, 0.25, 0.5, 1]},
        {"age": [40, 0.25, 0.5]},
        {"age": (9, 0.25, 0.5)},
        {"age": "MRN-0001"},
        {"age": SUMS, "psa": [11, 0.25, 0.5]},
        "MRN-0001",
    ],
)
def test_other_sums_do_not_leave(told: object) -> None:
    assert are_sums({"age": SUMS, "psa": SUMS}, ["age", "psa"], 30)
    assert not are_sums(told, ["age", "psa"], 30)
