"""The order of DICOM studies in time is known, and no date is written down."""

from __future__ import annotations

from pathlib import Path

import pytest

from dicoms import make_series
from oncofed.data.dicom.header_types import ImageHeader
from oncofed.data.dicom.headers import read_header
from oncofed.data.manifest import Manifest
from oncofed.data.register import RegisterOptions, register
from oncofed.data.target_columns import parse_targets


def studies(folder: Path, *dates: str) -> Path:
    """Write a patient's series for each date."""
    for number, day in enumerate(dates):
        make_series(
            folder / str(number),
            patient=f"MRN-{number}",
            change=lambda _, dataset, day=day: setattr(dataset, "StudyDate", day),
        )
    return folder


def days(manifest: Manifest) -> list[str | None]:
    entries = sorted(manifest.entries, key=lambda entry: entry.source or "")
    return [entry.tags.get("days_since_first") for entry in entries]


def test_days_since_the_first_study_are_kept_without_the_dates(tmp_path: Path) -> None:
    source = studies(tmp_path / "in", "20210310", "20210301", "")
    for _ in range(2):  # the second time from the index
        manifest = register(RegisterOptions(source, "ct", tmp_path / "set"))
        assert days(manifest) == ["9", "0", None]
    assert "2021" not in (tmp_path / "set" / "dataset.json").read_text()
    # An earlier study counts from then on, for all.
    studies(tmp_path / "in" / "more", "20210228")
    assert days(register(RegisterOptions(source, "ct", tmp_path / "set"))) == ["10", "1", None, "0"]


def test_a_table_has_the_last_word(tmp_path: Path) -> None:
    source = studies(tmp_path / "in", "20210310", "20210301")
    table = tmp_path / "table.csv"
    table.write_text("patient,date,big\nMRN-0,2021-03-10,yes\nMRN-1,2021-05-10,no\n")
    told = parse_targets(["big=class:big"])
    assert days(register(RegisterOptions(source, "ct", tmp_path / "set", table=table, targets=told))) == ["0", "61"]


def test_one_date_for_all_tells_no_order(tmp_path: Path) -> None:
    source = studies(tmp_path / "in", "19000101", "19000101")
    assert days(register(RegisterOptions(source, "ct", tmp_path / "set"))) == [None, None]


def test_a_placeholder_is_no_date_and_is_said(tmp_path: Path) -> None:
    source = studies(tmp_path / "in", "20200105", "19000101", "20200101", "18000101", "19700101")
    manifest = register(RegisterOptions(source, "ct", tmp_path / "set"))
    assert days(manifest) == ["18266", None, "18262", None, "0"]
    assert any("2 studies are dated before 1970" in remark for remark in manifest.remarks)


@pytest.mark.parametrize(("written", "kept"), [("2021.03.10", "2021.03.10"), ("Canary^Name", ""), ("", "")])
def test_a_damaged_date_is_none(tmp_path: Path, written: str, kept: str) -> None:
    (file, *_) = make_series(tmp_path, change=lambda _, dataset: setattr(dataset, "StudyDate", written))
    header = read_header(file)
    assert isinstance(header, ImageHeader)
    assert header.study_date == kept
