"""``pacs.yaml`` and cohorts: what is read, and what is refused without naming a patient."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from threading import Event

import pytest

from oncofed.errors import SpecError
from oncofed.hospital.archive import ArchiveAwayError, HoursOverError, Stopped
from oncofed.hospital.cohort import read_cohort
from oncofed.hospital.pace import Pace
from oncofed.hospital.settings import read_pacs


def written(file: Path, text: str) -> Path:
    file.write_text(text, encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("dicomweb: {url: https://a.org/x}\ndimse: {host: a, port: 104, called: A}", "one of dicomweb and dimse"),
        ("connections: 2", "one of dicomweb and dimse"),
        ("dicomweb: {url: 'ftp://a.org'}", "expected http://HOST"),
        ("dicomweb: {url: 'https://me:secret@a.org'}", "without user and password"),
        ("dicomweb: {url: 'http://a.org/x', token_file: token}", "would travel unencrypted"),
        ("dicomweb: {url: 'https://a.org/x', token_file: absent}", "absent: no such file"),
        ("dicomweb: {url: 'https://a.org/x', token_file: open}", "chmod 600"),
        ("dimse: {host: a, port: 104, called: 'A TITLE THAT IS TOO LONG'}", "called"),
        ("dimse: {host: a, port: 104, called: A}\nbetween: '19-6'", "between"),
    ],
)
def test_settings_that_do_not_fit_are_told(tmp_path: Path, text: str, why: str) -> None:
    written(tmp_path / "token", "t").chmod(0o600)
    written(tmp_path / "open", "t").chmod(0o644)
    with pytest.raises(SpecError) as error:
        read_pacs(written(tmp_path / "pacs.yaml", text))
    assert why in str(error.value)


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    written(tmp_path / "token", "t").chmod(0o600)
    pacs = written(
        tmp_path / "pacs.yaml", "dicomweb: {url: 'https://a.org/x/', token_file: token}\nbetween: 19:00-06:00"
    )
    settings = read_pacs(pacs)
    assert settings.dicomweb is not None
    assert settings.dicomweb.token_file == tmp_path / "token"
    assert settings.dicomweb.url == "https://a.org/x"
    assert settings.windows == ("19:00-06:00",)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_table_is_read_as_spreadsheets_write_it(tmp_path: Path, delimiter: str, mark: str) -> None:
    lines = [
        ["Patient ID", "note", "Accession-Number"],
        ["P1", "x", "A1"],
        ["P2", "", ""],
        ["", "", ""],
        ["P1", "y", "A1"],
    ]
    text = mark + "\r\n".join(delimiter.join(cells) for cells in lines)
    cohort = read_cohort(written(tmp_path / "cohort.csv", text))
    assert [row.keys for row in cohort.rows or ()] == [
        (("PatientID", "P1"), ("AccessionNumber", "A1")),
        (("PatientID", "P2"),),
    ]
    assert [row.line for row in cohort.rows or ()] == [2, 3]


@pytest.mark.parametrize("cell", ["CANARY*", "CANARY?", "CANARY\\CANARY", "CANARY" * 20])
def test_a_row_that_would_match_others_is_refused_by_its_line(tmp_path: Path, cell: str) -> None:
    with pytest.raises(SpecError) as error:
        read_cohort(written(tmp_path / "cohort.csv", f"patient_id\nP1\n{cell}\n"))
    assert "cohort.csv:3: its PatientID" in str(error.value)
    assert "CANARY" not in str(error.value)


@pytest.mark.parametrize("text", ["name\nx\n", "", "patient_id\n\n", "patient_id,patient\nx,y\n"])
def test_a_table_without_patients_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(SpecError):
        read_cohort(written(tmp_path / "cohort.csv", text))


def test_a_query_may_restrict_a_table(tmp_path: Path) -> None:
    written(tmp_path / "cohort.csv", "study_uid\n1.2.3\n")
    query = written(tmp_path / "q.yaml", "table: cohort.csv\nmodality: [CT, SEG]\ndates: ..2020-12-31\n")
    asked = [keys for _, keys in read_cohort(query).searches()]
    assert asked == [
        {"StudyDate": "-20201231", "ModalitiesInStudy": modality, "StudyInstanceUID": "1.2.3"}
        for modality in ("CT", "SEG")
    ]
    for text in ("series_description: x", "dates: 2020-13-01..", "modality: ct"):
        with pytest.raises(SpecError):
            read_cohort(written(tmp_path / "q.yaml", text))


def test_hours_stop_what_arrives_and_are_waited_for() -> None:
    now, told, stop = [datetime(2026, 1, 1, 12, 0)], [], Event()
    pace = Pace(None, ["19:00-06:00"], told.append, stop, lambda: now[0])
    with pytest.raises(HoursOverError):
        pace.require_hours()
    assert issubclass(HoursOverError, ArchiveAwayError)
    stop.set()
    with pytest.raises(Stopped):
        pace.wait_for_hours()
    assert told == ["waits for the hours of pacs.yaml (19:00-06:00); it is 12:00"]
    now[0] = datetime(2026, 1, 1, 23, 0)
    pace.require_hours()
    assert pace.wait_for_hours() is False
