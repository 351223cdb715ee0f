"""A check tells how many patients have a target, how they are distributed, and what is odd; no count is of few."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from oncofed.data.contract import check_dataset
from oncofed.data.copies import copy_groups
from oncofed.data.label_mapping import Supervision
from oncofed.data.leaks import outcome_columns
from oncofed.data.manifest import Entry, Manifest
from oncofed.data.spec import DataSpec
from oncofed.data.target_report import TargetReport, report_target
from oncofed.data.targets import DatasetTarget, FollowUp, Target, TargetValue

UNUSED = "Is it known before the outcome is? The job does not use it"


class Wanted:
    """A job's target, as far as the data side knows it."""

    width = 1
    meaning = ""
    meanings: ClassVar[dict[str, str]] = {}

    def __init__(self, name: str, kind: str, names: Sequence[str] = ()) -> None:
        self.name, self.kind, self.names = name, kind, tuple(names)

    def encode(self, stated: TargetValue, declared: DatasetTarget) -> tuple[float, ...]:
        return (1.0,)


def report(
    kind: str, values: Sequence[TargetValue | None], wanted: Sequence[str] | None = None, **declared: Any
) -> TargetReport:
    """Return the report of a job's target that names what the dataset does, or what is ``wanted``."""
    entries = [
        Entry(image=f"{n}.png", name=str(n), targets={} if value is None else {"t": value})
        for n, value in enumerate(values)
    ]
    found = DatasetTarget(kind=kind, **declared)  # type: ignore[arg-type]
    wanted_target = Wanted("t", kind, found.names if wanted is None else wanted)
    return report_target(Manifest(training=entries, targets={"t": found}), wanted_target, found, entries)


def follow_ups(*pairs: tuple[float, bool]) -> list[TargetValue | None]:
    return [FollowUp(time=time, event=event) for time, event in pairs]


def test_classes_and_grades_in_their_order() -> None:
    found = report("grade", ["III"] * 7 + ["I"] * 6 + [None] * 3, names=["I", "II", "III"])
    assert (found.patients, found.of) == (13, 16)
    assert found.cells == {"": {"I": None, "II": None, "III": 7}}, "with nobody of II, I and III tell of all"
    assert "13 of 16 patients have it" in str(found)
    assert report("class", ["a"] * 9, names=["a", "b"]).warnings == [
        "all its patients are of one class, a: figures that compare need two"
    ]


def test_findings_positive_negative_and_unknown() -> None:
    values: list[TargetValue | None] = [{"edema": True, "mass": False}] * 8 + [{"edema": False, "mass": False}] * 9
    found = report("labels", [*values, None, None, None, None, None, {"edema": True}], names=["edema", "mass", "gas"])
    assert found.cells["edema"] == {"positive": 9, "negative": 9, "unknown": 5}
    assert found.cells["mass"] == {"positive": None, "negative": 17, "unknown": None}
    assert found.warnings == [
        "mass: no patient is positive: figures that compare need both",
        "gas: nobody was looked at; the dataset has edema, mass",
    ]


def test_what_only_the_job_names_is_told_with_what_the_dataset_has() -> None:
    both: list[TargetValue | None] = [{"edema": True, "Effusion": False}] * 8 + [{"edema": False, "Effusion": True}] * 9
    found = report("labels", both, wanted=["oedema", "effusion"], names=["edema", "Effusion"])
    assert list(found.cells) == ["oedema", "effusion"]
    assert found.cells["effusion"]["positive"] == 9
    assert found.warnings == ["oedema: nobody was looked at; the dataset has Effusion, edema"]
    for kind in ("class", "grade"):
        found = report(kind, ["Edema"] * 8 + ["none"] * 9, wanted=["none", "edema", "oedema"], names=["none", "Edema"])
        assert found.cells == {"": {"none": 9, "Edema": 8}}
        assert found.warnings == ["oedema: nobody was looked at; the dataset has none, Edema"]


def test_events_and_follow_up() -> None:
    pairs = [(float(time), event) for time, event in zip(range(10, 400, 10), [True, False, False] * 13, strict=True)]
    found = report("survival", follow_ups(*pairs), unit="days")
    assert found.cells[""] == {"events": 13, "censored": 26}
    assert sum(n or 0 for n in found.cells["times"].values()) == 39
    assert found.median_follow_up in found.cells["times"]
    assert found.warnings == []
    censored = report("survival", follow_ups(*((time, False) for time, _ in pairs)), unit="days")
    assert censored.warnings == ["all its patients are censored: no event tells the order of their risks"]
    # Of censored patients alone, the median follow-up is the median time.
    assert censored.median_follow_up == next(name for name in censored.cells["times"] if _holds(name, 200))


def _holds(name: str, value: float) -> bool:
    numbers = [float(word) for word in name.split() if word[-1].isdigit()]
    if name.startswith("below"):
        return value < numbers[0]
    return numbers[0] <= value and (len(numbers) == 1 or value < numbers[1])


@given(st.lists(st.floats(-1e6, 1e6).map(lambda value: round(value, 3)), min_size=1, max_size=60))
def test_no_cell_of_values_is_of_few_patients(numbers: list[float]) -> None:
    found = report("value", list(numbers), unit="ml")
    cells = found.cells[""]
    assert all(count is None or count >= 5 for count in cells.values())
    if len(numbers) >= 5:
        assert sum(count or 0 for count in cells.values()) == len(numbers)
    for name, count in cells.items():
        if count is not None and name != "all values":
            assert count == sum(_holds(name, number) for number in numbers)


@given(st.integers(0, 30), st.integers(0, 30))
def test_no_number_tells_of_few_events(events: int, censored: int) -> None:
    if events + censored == 0:
        return
    pairs = [(10.0 + n, True) for n in range(events)] + [(20.0 + n, False) for n in range(censored)]
    cells = report("survival", follow_ups(*pairs), unit="days").cells[""]
    if min(events, censored) < 5:
        assert cells == {"events": None, "censored": None}
    else:
        assert cells == {"events": events, "censored": censored}


def test_a_patient_counts_once() -> None:
    entries = [Entry(image=f"{n}.png", name=str(n), patient="P", targets={"t": float(n)}) for n in range(9)]
    found = report_target(Manifest(training=entries), Wanted("t", "value"), DatasetTarget(kind="value"), entries)
    assert (found.patients, found.of) == (1, 1)
    assert found.cells == {"": {"all values": None}}


@pytest.mark.parametrize(
    ("stated", "told"),
    [(0, "0"), (1, "fewer than 5"), (4, "fewer than 5"), (5, "5"), (30, "30")],
)
def test_few_who_have_a_target_are_not_counted(stated: int, told: str) -> None:
    assert str(TargetReport("t", "value", "", stated, 30)) == f"{told} of 30 patients have it"


# --- columns that tell the outcome


def told(
    columns: dict[str, Sequence[str]], values: Sequence[TargetValue], kind: str, used: tuple[str, ...] = ()
) -> dict[str, str]:
    entries = [
        Entry(image=f"{n}.png", name=str(n), targets={"t": value}, tags={c: texts[n] for c, texts in columns.items()})
        for n, value in enumerate(values)
    ]
    declared = DatasetTarget(kind=kind, unit="days", names=["I", "II", "III"])  # type: ignore[arg-type]
    manifest = Manifest(training=entries, targets={"t": declared})
    return {f.what.split()[1]: f.what for f in outcome_columns(manifest, [Wanted("t", kind)], used)}


def test_a_column_that_tells_the_event_or_the_time_is_named() -> None:
    values = [FollowUp(time=int(n * 37 % 101), event=n % 3 == 0) for n in range(30)]
    columns = {
        "vital": ["gone" if value.event else "here" for value in values],
        "months": [f"{value.time / 30.4:.6f}".replace(".", ",") for value in values],
        "sex": [("f", "m")[n % 2] for n in range(30)],
        "id": [f"case {n}" for n in range(30)],
        "age": [str(40 + n * 7 % 41) for n in range(30)],
        "same": ["1"] * 30,
    }
    found = told(columns, list(values), "survival")
    assert found == {
        "vital": f"column vital (2 texts) tells in all 30 patients the value of t (event). {UNUSED}",
        "months": f"column months correlates by 1.0000 with t (time). {UNUSED}",
    }
    assert told(columns, list(values), "survival", used=("Vital",))["vital"].endswith(
        "Leave it out of the job's covariates"
    )


def test_a_column_that_is_the_grade_in_other_words() -> None:
    names = ["I", "II", "III"]
    values = [names[n % 3] for n in range(30)]
    columns = {
        "points": [str(2 + names.index(value)) for value in values],
        "stage": [("a", "b")[n % 2] for n in range(30)],
    }
    assert list(told(columns, list(values), "grade")) == ["points"]


def test_a_column_that_only_one_outcome_has_is_named() -> None:
    """The commonest leak: a network is told what is missing, and so who died."""
    values = [FollowUp(time=int(n * 37 % 101), event=n % 3 == 0) for n in range(30)]
    columns = {
        "cause": [f"cause {n}" if value.event else "" for n, value in enumerate(values)],
        "last_visit": ["NA" if value.event else "clinic" for value in values],
        "biopsy": [("done", "")[n % 2] for n in range(30)],
    }
    told_by = f"tells, by where it is absent, in all 30 patients a value of t (event). {UNUSED}"
    assert told(columns, list(values), "survival") == {
        "cause": f"column cause {told_by}",
        # Of texts that stand with one value each, the unknown one is one.
        "last_visit": f"column last_visit (2 texts) tells in all 30 patients the value of t (event). {UNUSED}",
    }
    grades = [["I", "II", "III"][n % 3] for n in range(30)]
    only_highest = {"reoperation": ["yes" if grade == "III" else "" for grade in grades]}
    assert list(told(only_highest, grades, "grade")) == ["reoperation"]


def test_a_number_that_separates_the_classes_is_named() -> None:
    values = [("benign", "malignant")[n % 2] for n in range(30)]
    apart = [str(n + 100 * (value == "malignant")) for n, value in enumerate(values)]
    columns = {"score": apart, "shared": [*apart[:-2], "50", "50"], "age": [str(40 + n * 7 % 41) for n in range(30)]}
    assert told(columns, values, "class") == {
        "score": f"column score (numbers) separates in all 30 patients the values of t. {UNUSED}"
    }
    grades = [["I", "II", "III"][n % 3] for n in range(30)]
    points = [f"{100 - n - 30 * (n % 3):.1f}".replace(".", ",") for n in range(30)]
    assert list(told({"points": points}, grades, "grade")) == ["points"]
    few = [("a", "b")[n >= 7] for n in range(10)]
    assert told({"score": [str(n) for n in range(10)]}, few, "class") == {}, "of so few it happens by chance"


def test_few_patients_tell_nothing() -> None:
    values = [FollowUp(time=n, event=n % 2 == 0) for n in range(1, 9)]
    assert told({"vital": [str(v.event) for v in values]}, list(values), "survival") == {}


# --- a dataset


def dataset(folder: Path, count: int = 30, **more: Any) -> Path:
    entries = []
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 255, (16, 16), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
        targets = {"os": {"time": 10.0 + 3 * number, "event": number % 3 == 0}}
        tags = {"alive": str(number % 3 != 0)}
        entries.append({"image": f"{number:02}.png", "name": f"{number:02}", "targets": targets, "tags": tags})
    declared = {"os": {"kind": "survival", "unit": "days"}, **more}
    (folder / "dataset.json").write_text(json.dumps({"targets": declared, "training": entries}))
    return folder


DATA = DataSpec(dataset="d", modality="xray", channels=("grey",), patch=(16, 16))


def check(folder: Path, *targets: Target) -> Any:
    return check_dataset(folder, DATA, Supervision("targets", targets=targets), 1)


def test_a_check_has_a_row_a_target(tmp_path: Path) -> None:
    found = check(dataset(tmp_path), Wanted("os", "survival"), Wanted("grade", "grade"))
    rows = {row.aspect: row for row in found.rows}
    assert rows["os"].found.startswith("30 of 30 patients have it; events 10, censored 20; times: below ")
    assert rows["os"].verdict == "fits"
    assert rows["grade"].found == "0 of 30 patients have it"
    assert rows["grade"].verdict == "fits"
    assert {warning.what for warning in found.warnings if warning.kind == "target"} == {
        "grade: no patient has it: nothing is learned of it here"
    }
    assert [w.what for w in found.warnings if w.kind == "column that tells the outcome"] == [
        f"column alive (2 texts) tells in all 30 patients the value of os (event). {UNUSED}"
    ]
    assert found.unlabelled == []
    assert found.may_train


def test_a_site_without_any_of_the_targets_does_not_fit(tmp_path: Path) -> None:
    found = check(dataset(tmp_path), Wanted("grade", "grade"), Wanted("size", "value"))
    assert not found.may_train
    assert [row.verdict for row in found.rows if row.aspect in {"grade", "size"}] == ["does not fit"] * 2
    other = check(tmp_path, Wanted("os", "value"))
    assert "os is of kind survival in the dataset, expected value" in other.why_not[0]


def test_copies_with_other_targets_contradict_each_other(tmp_path: Path) -> None:
    same = {"checksum": "c" * 64, "patient": "P"}
    entries = [Entry(image=f"{n}.png", name=str(n), targets={"t": value}, **same) for n, value in enumerate(("a", "b"))]  # type: ignore[arg-type]
    (group,) = copy_groups(Manifest(training=entries))
    assert group.contradiction() == (entries[0], entries[1])
    alike = [entry.model_copy(update={"targets": {"t": "a"}}) for entry in entries]
    (group,) = copy_groups(Manifest(training=alike))
    assert group.contradiction() is None


@pytest.mark.parametrize("split", ["training", "test"])
def test_a_patient_in_two_lists_is_found_with_targets_too(tmp_path: Path, split: str) -> None:
    dataset(tmp_path)
    values = json.loads((tmp_path / "dataset.json").read_text())
    values["training"][0]["patient"] = values["training"][1]["patient"] = "P"
    if split == "test":
        values["test"] = [values["training"].pop(0)]
    (tmp_path / "dataset.json").write_text(json.dumps(values))
    found = check(tmp_path, Wanted("os", "survival"))
    assert any(f.kind == "same patient in two splits" for f in found.findings) == (split == "test")
