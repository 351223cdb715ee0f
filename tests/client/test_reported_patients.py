"""Sums of nearly the same patients do not leave twice."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from oncofed.client.reported_patients import FOLDER, refuse_overlap
from oncofed.errors import StateError

PATIENTS = [f"MRN-{n:04}" for n in range(40)]


@pytest.mark.attack(
    "a patient's score from the sums of two jobs, whose test patients differ by one",
    by="the site: it keeps of whom sums left, and sends none of a group that differs from one of those by one to four",
    logged="the site's own log",
)
@pytest.mark.parametrize(
    ("second", "stays"),
    [
        (PATIENTS[:30], False),  # the same again reveals nothing new
        (PATIENTS[:29], True),
        (PATIENTS[:31], True),
        (PATIENTS[1:31], True),
        (PATIENTS[:34], True),
        (PATIENTS[:35], False),
        (PATIENTS[30:], False),
    ],
)
def test_sums_that_differ_by_few_patients_are_refused(tmp_path: Path, second: list[str], stays: bool) -> None:
    assert refuse_overlap(tmp_path, "brains", [PATIENTS[:30]]) == ""
    said = refuse_overlap(tmp_path, "brains", [second])
    assert bool(said) == stays
    assert "MRN" not in said
    assert refuse_overlap(tmp_path, "brains", [PATIENTS[:30]]) == "", "what stayed is not noted as told"
    assert refuse_overlap(tmp_path, "others", [second]) == "", "each dataset has its own"


def test_each_group_of_a_message_is_checked(tmp_path: Path) -> None:
    assert refuse_overlap(tmp_path, "brains", [PATIENTS[:30], PATIENTS[:12], PATIENTS[12:30]]) == ""
    # Six other patients, of whom one has the class.
    assert "would tell of 1" in refuse_overlap(tmp_path, "brains", [PATIENTS[:24], PATIENTS[:11]])


def test_the_record_is_private_and_names_nobody(tmp_path: Path) -> None:
    refuse_overlap(tmp_path, "brains", [PATIENTS[:30]])
    path = tmp_path / FOLDER / "brains.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert "MRN" not in path.read_text()
    refuse_overlap(tmp_path, "others", [PATIENTS[:30]])
    assert path.read_text() != (path.parent / "others.json").read_text(), "each has a salt of its own"


def test_with_a_broken_record_nothing_leaves(tmp_path: Path) -> None:
    refuse_overlap(tmp_path, "brains", [PATIENTS[:30]])
    (tmp_path / FOLDER / "brains.json").write_text("{")
    with pytest.raises(StateError, match=r"brains\.json: of whom sums left before cannot be read"):
        refuse_overlap(tmp_path, "brains", [PATIENTS[:30]])
