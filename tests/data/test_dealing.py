"""Splits by patient and by target: shares are kept, patients stay whole, and a new patient moves few others."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from oncofed.data.cases import deal_cases, usable_cases
from oncofed.data.dealing import Stratum, deal, deal_by_stratum, strata_of
from oncofed.data.label_mapping import Supervision
from oncofed.data.manifest import Entry, Manifest
from oncofed.data.spec import DataSpec, SplitSpec
from oncofed.data.targets import DatasetTarget, FollowUp, TargetValue

SHARE = st.floats(0.05, 0.6)
STRATA = st.lists(
    st.tuples(st.sampled_from(("event", "censored", "unknown")), st.sampled_from(("1", "2", "3"))),
    min_size=3,
    max_size=120,
)


def named(strata: list[tuple[str, str]]) -> dict[str, Stratum]:
    return {f"p{number}": stratum for number, stratum in enumerate(strata)}


@given(STRATA, SHARE, st.integers(0, 50))
def test_the_first_target_keeps_its_shares_to_the_patient(
    strata: list[tuple[str, str]], share: float, seed: int
) -> None:
    patients = named(strata)
    chosen = deal_by_stratum(patients, share, seed, "test")
    assert len(chosen) == len(deal(patients, share, seed, "test"))
    exact = len(chosen) / len(patients)
    sizes = Counter(stratum[0] for stratum in patients.values())
    found = Counter(patients[patient][0] for patient in chosen)
    assert all(abs(found[value] - exact * size) < 1 for value, size in sizes.items())


@given(STRATA, SHARE, st.integers(0, 50))
def test_within_it_the_second_one_does(strata: list[tuple[str, str]], share: float, seed: int) -> None:
    patients = named(strata)
    chosen = deal_by_stratum(patients, share, seed, "test")
    for first in {stratum[0] for stratum in strata}:
        group = {patient: stratum for patient, stratum in patients.items() if stratum[0] == first}
        exact = len(chosen & set(group)) / len(group)
        sizes = Counter(stratum[1] for stratum in group.values())
        found = Counter(group[patient][1] for patient in chosen & set(group))
        assert all(abs(found[value] - exact * size) < 1 for value, size in sizes.items())


@given(STRATA, SHARE, st.integers(0, 50), st.tuples(st.sampled_from(("event", "censored")), st.sampled_from("123")))
@settings(max_examples=300)
def test_a_new_patient_moves_few_others(
    strata: list[tuple[str, str]], share: float, seed: int, new: tuple[str, str]
) -> None:
    patients = named(strata)
    before = deal_by_stratum(patients, share, seed, "test")
    after = deal_by_stratum({**patients, "new": new}, share, seed, "test") - {"new"}
    # A seat may pass between the values of either target, and to the new patient; of many patients most stay.
    assert len(before ^ after) <= 12


def test_of_many_patients_a_new_one_moves_two_on_average() -> None:
    rng = np.random.default_rng(0)
    moved = []
    for seed in range(60):
        patients = {f"{seed}-{n}": (str(rng.integers(2)), str(rng.integers(4))) for n in range(100)}
        before = deal_by_stratum(patients, 0.2, seed, "test")
        moved.append(len(before ^ (deal_by_stratum({**patients, "new": ("0", "1")}, 0.2, seed, "test") - {"new"})))
    assert np.mean(moved) <= 2.5
    assert max(moved) <= 8


@given(st.sets(st.integers(0, 40), min_size=1), st.floats(0, 0.9), st.integers(0, 99))
def test_some_patients_are_always_left(numbers: set[int], share: float, seed: int) -> None:
    patients = {f"p{number}" for number in numbers}
    assert deal(patients, share, seed, "test") < patients
    assert deal_by_stratum(dict.fromkeys(patients, ("a",)), share, seed, "test") == deal(patients, share, seed, "test")


def test_a_patient_keeps_its_side_when_another_is_added() -> None:
    patients = {f"p{number}" for number in range(40)}
    assert len(deal(patients, 0.5, 1, "test") ^ deal(patients | {"new"}, 0.5, 1, "test")) <= 2


def test_without_targets_the_deal_is_as_it_was() -> None:
    """Datasets of masks and classes keep their splits: patients by the hash of seed, split and patient."""
    patients = [f"p{n}" for n in range(40)]
    by_hash = sorted(patients, key=lambda p: hashlib.sha256(f"7:test:{p}".encode()).digest())
    assert deal(patients, 0.2, 7, "test") == set(by_hash[:8])
    assert deal(patients[:2], 0.5, 7, "test") == set()
    assert len(deal(patients[:3], 0.01, 7, "test")) == 1


# --- what stratum a patient is in


def stratum(*cases: TargetValue | None, others: dict[str, list[TargetValue | None]] | None = None) -> str:
    stated = {"p": [[value] for value in cases]} | {k: [[v] for v in values] for k, values in (others or {}).items()}
    return strata_of(stated)["p"][0]


def test_the_rarest_of_a_patients_cases_is_the_patients() -> None:
    others: dict[str, list[TargetValue | None]] = {f"q{n}": ["common"] for n in range(5)}
    assert stratum("common", "Rare", others=others) == "rare"
    assert stratum("common", None, others=others) == "common"
    assert stratum(None, others=others) == "unknown"
    assert stratum(FollowUp(time=3, event=True)) == "event"
    findings: dict[str, list[TargetValue | None]] = {f"q{n}": [{"edema": True}] for n in range(5)}
    assert stratum({"edema": True, "mass": True}, others=findings) == "mass"
    assert stratum({"edema": False}, {"edema": True}, others=findings) == "edema"
    assert stratum({"edema": False}, others=findings) == "none of them"


def test_numbers_are_in_thirds() -> None:
    strata = strata_of({f"p{n}": [[float(n)]] for n in range(9)} | {"q": [[8.0], [0.0]], "r": [[None]]})
    assert Counter(strata.values()) == {("third 0",): 3, ("third 1",): 3, ("third 2",): 4, ("unknown",): 1}
    assert strata["q"] == strata["p4"]


# --- of a dataset


class Target:
    """What the data side needs to know of a target."""

    width = 1
    names: tuple[str, ...] = ()
    meaning = ""
    meanings: ClassVar[dict[str, str]] = {}

    def __init__(self, name: str, kind: str) -> None:
        self.name, self.kind = name, kind

    def encode(self, stated: TargetValue, declared: DatasetTarget) -> tuple[float, ...]:
        return (float(stated.event) if isinstance(stated, FollowUp) else float(len(str(stated))),)


WANTED = Supervision("targets", targets=(Target("os", "survival"), Target("grade", "grade")))


@given(
    st.lists(st.tuples(st.integers(0, 30), st.booleans(), st.sampled_from(("I", "II", None))), min_size=4, max_size=60),
    st.integers(0, 20),
)
@settings(max_examples=50, deadline=None)
def test_no_patient_is_on_two_sides(cases: list[tuple[int, bool, str | None]], seed: int) -> None:
    entries = []
    for number, (patient, event, grade) in enumerate(cases):
        targets: dict[str, TargetValue] = {"os": FollowUp(time=1.0, event=event)} | ({"grade": grade} if grade else {})
        entries.append(Entry(image=f"{number}.png", name=str(number), patient=f"p{patient}", targets=targets))
    declared = {
        "os": DatasetTarget(kind="survival", unit="days"),
        "grade": DatasetTarget(kind="grade", names=["I", "II"]),
    }
    found = deal_cases(Manifest(training=entries, targets=declared), Path("/nowhere"), SplitSpec(), seed, WANTED)
    sides = [{case.patient for case in part} for part in (found.train, found.validation, found.test)]
    assert sum(map(len, sides)) == len({patient for patient, _, _ in cases})
    assert sum(map(len, (found.train, found.validation, found.test))) == len(cases)


def test_events_are_dealt_in_proportion(tmp_path: Path) -> None:
    entries = []
    for number in range(60):
        Image.fromarray(np.random.default_rng(number).integers(0, 255, (16, 16), np.uint8)).save(
            tmp_path / f"{number}.png"
        )
        value = {"time": 10 + number, "event": number % 6 == 0}
        entries.append({"image": f"{number}.png", "name": f"{number:02}", "targets": {"os": value}})
    declared = {"os": {"kind": "survival", "unit": "days"}}
    (tmp_path / "dataset.json").write_text(json.dumps({"targets": declared, "training": entries}))
    data = DataSpec(dataset="d", modality="xray", channels=("grey",), patch=(16, 16))
    for seed in range(5):
        cases = usable_cases(tmp_path, data, WANTED, seed, "here").cases
        events = [sum(case.targets["os"][0] for case in part) for part in (cases.train, cases.validation, cases.test)]
        sizes = [len(part) for part in (cases.train, cases.validation, cases.test)]
        assert sizes == [39, 9, 12]
        assert events[2] == 2
        assert events[1] in {math.floor(8 * 9 / 48), math.ceil(8 * 9 / 48)}


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_share_of_nothing_is_nobody(share: float) -> None:
    assert bool(deal_by_stratum({"a": ("1",), "b": ("1",), "c": ("2",)}, share, 1, "test")) == bool(share)
    assert deal_by_stratum({}, share, 1, "test") == set()
