"""Columns of a table become typed targets; what may be read in two ways is refused by line and column."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oncofed.data.target_columns import parse_targets
from oncofed.data.target_columns.base import ReadTarget
from oncofed.data.target_columns.cells import Notation, is_unknown
from oncofed.data.target_columns.dates import hold_dates, is_date, read_dates
from oncofed.data.target_columns.section import TableTargets
from oncofed.data.targets import FollowUp
from oncofed.errors import DataError, SpecError


def read(settings: dict[str, Any], *rows: Sequence[str]) -> ReadTarget:
    """Read a target from rows whose cells are those of its columns, in order; the first is line 2."""
    target = TableTargets(targets={"t": settings}).targets["t"]  # type: ignore[dict-item]
    cells = [dict(zip(target.columns, row, strict=True)) for row in rows]
    return target.read(list(enumerate(cells, start=2)))


def values(settings: dict[str, Any], *texts: str) -> list[Any]:
    """Return what a target of one column states line by line; None: nothing, "!": a fault."""
    found = read(settings, *((text,) for text in texts))
    return ["!" if n in found.faults else found.values.get(n) for n in range(2, len(texts) + 2)]


# --- numbers


@pytest.mark.parametrize(
    ("texts", "numbers"),
    [
        (["3,5", "1,234"], [3.5, 1.234]),
        (["3.5", "1,234"], [3.5, 1234]),
        (["1.234,5", "3"], [1234.5, 3]),
        (["1,234,567", "2"], [1234567, 2]),
        (["1 234", "1\u00a0234,5", "1'234"], [1234, 1234.5, 1234]),
        (["-3", "−3", "+3", "1.5e-3"], [-3, -3, 3, 0.0015]),
        (["0,123", "0.123"], [0.123, 0.123]),
        (["1.234e3", "1.234", ".5"], [1234, 1.234, 0.5]),
        (["<5", "5-7", "5 of 7", "about 5", "3 5"], ["!", "!", "!", "!", "!"]),
        (["1,2,3", "5..6", "1.2.3", "12,34.5", "1,23,456"], ["!", "!", "!", "!", "!"]),
    ],
)
def test_numbers_as_people_write_them(texts: list[str], numbers: list[Any]) -> None:
    assert values({"kind": "value"}, *texts) == numbers


@pytest.mark.parametrize(
    ("unit", "cell", "number"),
    [
        ("g/l", "2 g/dl", 20),
        ("mm", "500 \u03bcm", 0.5),
        ("mm", "500 \u00b5m", 0.5),
        ("days", "12 hours", 0.5),
        ("cm²", "3 cm2", 3),
    ],
)
def test_a_table_knows_the_units_of_jobs(unit: str, cell: str, number: float) -> None:
    assert values({"kind": "value", "unit": unit}, cell) == [number]


def test_a_number_that_may_be_two_is_asked_about() -> None:
    with pytest.raises(DataError, match=r"line 3: column t .* may be thousands or a fraction.*decimal: \",\""):
        values({"kind": "value"}, "12", "1,234")
    assert values({"kind": "value", "decimal": ","}, "12", "1,234") == [12, 1.234]
    assert values({"kind": "value", "decimal": "."}, "12", "1,234") == [12, 1234]
    with pytest.raises(DataError, match=r"line 2: column t .* may be thousands or a fraction"):
        values({"kind": "value"}, "1.234", "2.500", "12.345", "850")
    assert values({"kind": "value", "decimal": ","}, "1.234", "850") == [1234, 850]
    with pytest.raises(DataError, match="line 4"):
        values({"kind": "value"}, "3,5", "3.5", "1.234")


@given(st.lists(st.floats(-1e6, 1e6).map(lambda x: round(x, 2)), min_size=1, max_size=20), st.sampled_from((",", ".")))
def test_numbers_of_one_notation_are_read_back(numbers: list[float], mark: str) -> None:
    other = "," if mark == "." else "."
    texts = [f"{n:,.2f}".replace(",", "|").replace(".", mark).replace("|", other) for n in numbers]
    notation = Notation(list(enumerate(texts)), "t")
    assert [notation.read(text) for text in texts] == [(n, "") for n in numbers]


@pytest.mark.parametrize("text", ["", "NA", "N.A.", "n/a", "unknown", "-", "'--", "[Not Available]", "?", "#N/A"])
def test_what_says_that_nothing_is_known(text: str) -> None:
    assert is_unknown(text)
    assert values({"kind": "value"}, text, "1") == [None, 1]
    assert values({"kind": "class"}, text, "a") == [None, "a"]


def test_a_value_has_one_unit_and_a_range() -> None:
    volume = {"kind": "value", "unit": "ml", "range": [0, 100]}
    assert values(volume, "3.5", "3.5 ml", "0.0035 l", "12 kg", "200", "200 mm3") == [3.5, 3.5, 3.5, "!", "!", 0.2]
    found = read(volume, ("12 kg",), ("200",))
    assert found.faults == {2: "column t has another unit, expected ml", 3: "column t is outside 0 to 100 ml"}
    assert read({"kind": "value"}, ("3 cm",), ("12 mm",)).declared.unit == "cm"
    with pytest.raises(DataError, match=r"with a unit \(line 2\) and without \(line 3\). Say the unit"):
        values({"kind": "value"}, "3 cm", "12")


def test_numbers_of_two_units_are_named_where_no_range_says_what_is_plausible() -> None:
    milligrams, grams = [f"{1500 + 40 * n}" for n in range(8)], [f"{1.5 + 0.04 * n:.2f}" for n in range(4)]
    with pytest.raises(DataError, match=r"column t: its numbers jump \(from line 13 to line 2 .* range: \[LOW, HIGH\]"):
        values({"kind": "value"}, *milligrams, *grams)
    assert None not in values({"kind": "value", "range": [0, 5000]}, *milligrams, *grams)
    spread = [f"{2.0**n}" for n in range(14)]
    assert values({"kind": "value"}, *spread) == [2.0**n for n in range(14)], "a wide spread is no jump"


# --- names


def test_a_class_is_one_however_it_is_written() -> None:
    found = read({"kind": "class"}, ("Benign",), ("benign ",), ("Benign",), ("malignant_tumour",), ("1.0",), ("1",))
    assert found.declared.names == ["1", "Benign", "malignant_tumour"]
    assert list(found.values.values()) == ["Benign", "Benign", "Benign", "malignant_tumour", "1", "1"]


def test_codes_become_names() -> None:
    settings = {"kind": "class", "values": {"0": "benign", "1": "malignant"}}
    assert values(settings, "0", "1.0", "2", "benign") == ["benign", "malignant", "!", "benign"]
    assert values({"kind": "class", "classes": ["unknown", "known"]}, "unknown", "known") == ["unknown", "known"]


def test_numbers_of_yaml_are_texts_of_cells() -> None:
    assert values({"kind": "class", "values": {0: "benign", 8140: "malignant"}}, "0", "8140.0") == [
        "benign",
        "malignant",
    ]
    assert read({"kind": "grade", "grades": [1, 2.5]}, ("2.5",)).values == {2: "2.5"}


def test_a_grade_outside_its_scale_is_a_fault() -> None:
    found = read({"kind": "grade", "grades": ["I", "II", "III"]}, ("ii",), ("IV",), ("?",))
    assert found.values == {2: "II"}
    assert found.faults == {3: "column t says 'IV', expected I < II < III"}
    assert found.declared.names == ["I", "II", "III"]
    assert read({"kind": "grade"}, ("10",), ("9.0",), ("3",)).declared.names == ["3", "9", "10"]
    with pytest.raises(DataError, match=r"line 3: column t has grades that are no whole numbers. Say their order"):
        values({"kind": "grade"}, "1", "2b")


# --- findings


def test_findings_as_chexpert_has_them() -> None:
    settings: dict[str, Any] = {"kind": "labels", "findings": ["edema", "effusion"]}
    rows = [("1.0", "0"), ("-1", "1"), ("", "0.0"), ("", ""), ("7", "1"), ("Positive", "absent")]
    found = read(settings, *rows)
    assert found.values == {
        2: {"edema": True, "effusion": False},
        3: {"effusion": True},
        4: {"effusion": False},
        7: {"edema": True, "effusion": False},
    }
    assert list(found.faults) == [6]
    negative = read({**settings, "absent": "negative"}, *rows)
    assert negative.values[3] == {"effusion": True}, "uncertain stays unknown"
    assert negative.values[5] == {"edema": False, "effusion": False}


def test_findings_as_chestxray14_has_them() -> None:
    settings = {"kind": "labels", "column": "finding labels"}
    rows = [("Edema|Mass",), ("No Finding",), ("mass",), ("",), ("No Finding|Mass",)]
    found = read(settings, *rows)
    assert found.declared.names == ["Edema", "Mass"]
    mass = "Mass"
    assert found.values == {2: {"Edema": True, mass: True}, 3: {"Edema": False, mass: False}, 4: {mass: True}}
    assert found.faults == {6: "column finding labels says findings and that there is none"}
    assert read({**settings, "absent": "negative"}, *rows).values[4] == {"Edema": False, mass: True}
    assert list(read({**settings, "names": ["Mass"]}, *rows).faults) == [2, 6]


# --- survival

TIMES = {"kind": "survival", "time": "os_days", "event": "status"}
DATES = {"kind": "survival", "start": "start", "end": "end", "event": "status"}


def test_a_day_that_is_still_to_come_is_no_end_of_follow_up() -> None:
    tomorrow, today = (f"{date.today() + timedelta(days=days)}" for days in (1, 0))
    found = read(DATES, ("2020-01-01", tomorrow, "0"), ("2020-01-01", today, "0"), ("2020-01-01", "2999-12-31", "1"))
    assert list(found.values) == [3]
    assert found.faults[2] == "column end has a day that is still to come, expected one up to today"
    assert 4 in found.faults


def test_events_in_the_words_of_tables() -> None:
    came = ["1", "dead", "Deceased", "yes", "TRUE", "1:DECEASED", "1.0"]
    not_come = ["0", "alive", "LIVING", "no", "False", "0:LIVING", "censored"]
    found = read(TIMES, *(("10", text) for text in (*came, *not_come)))
    assert [value.event for value in found.values.values()] == [True] * 7 + [False] * 7  # type: ignore[union-attr]
    with pytest.raises(DataError, match=r"line 3: column status has other numbers than 1 and 0"):
        read(TIMES, ("10", "1"), ("10", "2"))
    coded = {**TIMES, "events": ["2"], "censored": ["1"]}
    assert read(coded, ("10", "1"), ("10", "2")).values == {
        2: FollowUp(time=10, event=False),
        3: FollowUp(time=10, event=True),
    }


def test_faults_of_follow_up_name_the_columns_and_no_time() -> None:
    found = read(
        TIMES, ("", "dead"), ("12", ""), ("-345", "1"), ("", "unknown"), ("99999", "0"), ("soon", "1"), ("3", "lost")
    )
    assert found.values == {}
    assert found.faults == {
        2: "has event without time (columns os_days, status)",
        3: "has time without event (columns os_days, status)",
        4: "has a negative time (columns os_days, status)",
        6: "has a time above 120 years (columns os_days, status)",
        7: "column os_days has no single number with a unit of time",
        8: "column status says 'lost', expected 1 or 0, dead or alive, yes or no",
    }


@pytest.mark.parametrize(
    ("column", "unit", "texts", "expected", "times"),
    [
        ("os_months", "", ["12", "6.5"], "months", [12, 6.5]),
        ("survival (days)", "", ["12", "2 years"], "days", [12, 730.5]),
        ("time", "weeks", ["2", "14 d"], "weeks", [2, 2]),
        ("überlebenszeit (monate)", "", ["12", "1 Jahr"], "months", [12, 12]),
        ("time", "", ["12 months", "365.25 days", "1y"], "months", [12, 12, 12]),
    ],
)
def test_times_have_a_unit(column: str, unit: str, texts: list[str], expected: str, times: list[float]) -> None:
    found = read({**TIMES, "time": column, "unit": unit}, *((text, "1") for text in texts))
    assert found.declared.unit == expected
    assert [value.time for value in found.values.values()] == pytest.approx(times)  # type: ignore[union-attr]


def test_times_without_a_unit_or_with_two_are_asked_about() -> None:
    plain = {**TIMES, "time": "time"}
    said = r"time does not say in what its times are. Say it: unit: days .*behind the columns: survival:time,.*:days"
    with pytest.raises(DataError, match=said):
        read(plain, ("12", "1"))
    with pytest.raises(DataError, match=r"with a unit \(line 2\) and without \(line 3\)"):
        read(plain, ("12 months", "1"), ("13", "1"))


def test_days_among_months_are_found() -> None:
    months = ["10", "14", "22", "31", "25", "18", "12"]
    days = [str(30 * int(month)) for month in months]
    with pytest.raises(DataError, match=r"its times jump .* as days and months in one column do"):
        read(TIMES, *((text, "1") for text in (*months, *days)))
    found = read({**TIMES, "one_unit": True}, *((text, "1") for text in (*months, *days)))
    assert len(found.values) == 14
    with pytest.raises(DataError, match="days and years"):
        read(TIMES, *((text, "1") for text in ("1", "2", "1.5", "2.5", "400", "700", "600", "900")))


@given(st.lists(st.floats(0.01, 10), min_size=20, max_size=60), st.integers(0, 1000))
def test_times_of_one_unit_are_no_jump(draws: list[float], seed: int) -> None:
    times = sorted({round(200 * (1 + n / 8 + draw / 10), 1) for n, draw in enumerate(draws)})
    read(TIMES, *((str(time), "1") for time in times))


def test_dates_become_times_and_stay() -> None:
    rows = [("2020-01-01", "2020-12-31", "dead"), ("2020-01-01", "2019-12-31", "dead"), ("2020-01", "2020-12-31", "0")]
    found = read(DATES, *rows)
    assert found.values == {2: FollowUp(time=365, event=True)}
    assert found.faults == {
        3: "ends before it starts (columns start, end, status)",
        4: "column start is no date, expected a whole date",
    }
    assert read({**DATES, "unit": "years"}, rows[0]).values[2] == FollowUp(time=0.9993, event=True)


def test_the_date_of_death_says_the_event() -> None:
    settings = {"kind": "survival", "start": "start", "end": "contact", "event_date": "death"}
    found = read(
        settings, ("2020-01-01", "2020-02-01", ""), ("2020-01-01", "2020-01-20", "2020-01-31"), ("2020-01-01", "", "")
    )
    assert found.values == {2: FollowUp(time=31, event=False), 3: FollowUp(time=30, event=True)}
    assert found.faults == {}


def test_the_first_column_that_has_a_time_counts() -> None:
    settings = {"kind": "survival", "time": ["days_to_death", "days_to_last_follow_up"], "event": "vital_status"}
    found = read(settings, ("'--", "410", "Alive"), ("120", "'--", "Dead"))
    assert found.values == {2: FollowUp(time=410, event=False), 3: FollowUp(time=120, event=True)}


# --- dates


@pytest.mark.parametrize(
    "texts",
    [
        ["2021-04-03", "2021-04-03T12:30:00Z"],
        ["20210403"],
        ["03.04.2021"],
        ["3 Apr 2021", "03 APRIL 2021"],
        ["Apr 3, 2021"],
        ["03/04/2021", "25/04/2021"],
        ["04/03/2021", "04/25/2021"],
        ["44289", "44289.5"],
    ],
)
def test_dates_of_one_format(texts: list[str]) -> None:
    found = read_dates(list(enumerate(texts)), "t")
    assert str(found[0]) == "2021-04-03"
    assert all(found.values())


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["03/04/2021", "05/06/2021"], r"may be DD/MM/YYYY or MM/DD/YYYY, and no cell tells"),
        (["03/25/2021", "25/04/2021"], r"two formats: DD/MM/YYYY \(line 3\) and MM/DD/YYYY \(line 2\)"),
        (["2021-04-03", "03.04.2021"], r"two formats: YYYY-MM-DD \(line 2\) and DD.MM.YYYY \(line 3\)"),
        (["44289", "13/04/2021"], r"Excel's numbers of days \(line 2\) beside dates in letters \(line 3\)"),
    ],
)
def test_dates_of_two_formats_are_asked_about(texts: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        read_dates(list(enumerate(texts, start=2)), "t")
    assert not any(text in str(error.value) for text in texts), "no date leaves the table"


def test_a_format_that_the_user_says() -> None:
    assert str(read_dates([(2, "03/04/2021")], "t", "DD/MM/YYYY")[2]) == "2021-04-03"
    assert str(read_dates([(2, "03/04/2021")], "t", "MM/DD/YYYY")[2]) == "2021-03-04"
    assert read_dates([(2, "31/31/2021")], "t", "MM/DD/YYYY") == {2: None}


@given(st.dates(min_value=date(1900, 1, 1)), st.sampled_from(("%Y-%m-%d", "%d.%m.%Y", "%d %b %Y")))
def test_any_date_is_known_as_one(day: Any, form: str) -> None:
    text = day.strftime(form)
    assert is_date(text)
    assert read_dates([(2, text)], "t") == {2: day}


@pytest.mark.parametrize(
    ("texts", "dates"),
    [
        (["20210403", "", "19991231", "alive"], True),
        (["44289", "NA", "39814.5"], True),
        (["alive", "03.04.21"], True),
        (["3-Apr-21"], True),
        (["21-04-03"], True),
        (["20210403", "20219999"], False),
        (["44289", "12"], False),
        (["44289 /µl"], False),
        (["31.32.33", "1.2.84.0", "63", "I"], False),
        ([], False),
    ],
)
def test_columns_that_hold_dates(texts: list[str], dates: bool) -> None:
    assert hold_dates(texts) is dates


@pytest.mark.parametrize("text", ["12.5", "1-2-3", "T1-2", "45123", "1.2.840.10008", "2021"])
def test_no_date(text: str) -> None:
    assert not is_date(text)


# --- what the user says


def test_the_short_form_says_the_same_as_a_file(tmp_path: Path) -> None:
    file = tmp_path / "targets.yaml"
    file.write_text("""\
columns: {patient: MRN}
targets:
  survival: {kind: survival, time: Time_Days, event: dead}
  findings: {kind: labels, findings: {edema: Edema, effusion: effusion}}
  grade: {kind: grade, grades: [I, II]}
  volume: {kind: value, unit: ml}
  kind: {kind: class, column: histology}
""")
    short = ["survival=survival:Time_days,dead", "findings=labels:edema,effusion", "grade=grade::I<II"]
    short += ["volume=value:volume:ml", "kind=class:histology"]
    of_file, in_short = parse_targets([str(file)]), parse_targets(short)
    assert of_file is not None
    assert in_short is not None
    assert of_file.targets == in_short.targets
    assert of_file.columns == {"patient": "mrn"}
    assert parse_targets([]) is None
    with pytest.raises(SpecError, match="grade is given twice"):
        parse_targets([str(file), "grade=grade"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("survival", "expected NAME=KIND:COLUMN"),
        ("a=colour:x", "expected NAME=KIND:COLUMN"),
        ("A=value:x", "expected NAME=KIND:COLUMN"),
        ("a=survival:x", "survival needs two columns, time and event, or three"),
        ("a=survival:x,y:hours", "expected days, weeks, months or years"),
        ("a=value:x,y", "found 2 columns, expected one"),
        ("a=labels:x,y:perhaps", "absent"),
    ],
)
def test_mistakes_in_short_forms(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse_targets([text])


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("{kind: survival, event: x}", "give time .a column of times., or start and end"),
        ("{kind: survival, start: x, event: y}", "start needs end"),
        ("{kind: survival, time: x, event: y, events: [a]}", "events and censored go together"),
        ("{kind: survival, start: x, end: z, event: y, dates: '%d'}", "such as DD/MM/YYYY"),
        ("{kind: value, range: [3, 1]}", "expected the smaller number first"),
        ("{kind: labels, column: x, findings: [y]}", "not both"),
        ("{kind: grade, gardes: [I]}", "gardes"),
        ("{kind: colour}", "kind"),
        ("{kind: class, values: {yes: present}}", "put the text in quotes"),
    ],
)
def test_mistakes_in_a_file_have_their_line(tmp_path: Path, section: str, message: str) -> None:
    file = tmp_path / "targets.yaml"
    file.write_text(f"targets:\n  t: {section}\n")
    with pytest.raises(SpecError, match=message) as error:
        parse_targets([str(file)])
    assert "targets.yaml:2" in str(error.value)


def test_a_large_table_is_read_in_time_that_grows_with_its_rows() -> None:
    rows = [(f"2020-01-{n % 28 + 1:02}", f"2021-02-{n % 28 + 1:02}", str(n % 2)) for n in range(20_000)]
    begin = time.process_time()
    assert len(read(DATES, *rows).values) == len(rows)
    assert time.process_time() - begin < 20, "comparing each line with all others takes minutes"
