"""Columns for subgroups.

Tables as people write them, numbers in ranges, and values known without a table.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from oncofed.data.case import Case
from oncofed.data.composition import hashed_key
from oncofed.data.manifest import SALT_FILE, Entry
from oncofed.errors import DataError, SpecError
from oncofed.prediction.evaluation.subgroup_columns import (
    ColumnChoice,
    group_cases,
    known_columns,
    parse_column_choices,
    table_columns,
)

CASES = ("a", "b", "c", "d", "e", "f", "g", "h")


def _case(name: str, patient: str = "", **entry: object) -> Case:
    known = Entry(image=f"imagesTr/{name}.nii.gz", name=name, patient=patient or name, **entry)  # type: ignore[arg-type]
    return Case(name, patient or name, Path(known.images[0]), Path("label"), entry=known)


def _sizes(wanted: ColumnChoice, values: list[str], parts: int = 4) -> dict[str, int]:
    names = [str(n) for n in range(len(values))]
    column = group_cases(wanted, dict(zip(names, values, strict=True)), names, parts)
    assert sorted(case for group in column.groups.values() for case in group) == sorted(names)
    return {name: len(group) for name, group in column.groups.items()}


def test_columns_and_their_ranges_are_parsed() -> None:
    assert parse_column_choices(["Sex,age:0-40,40-60,60-", "stage"]) == [
        ColumnChoice("sex"),
        ColumnChoice("age", ((0, 40), (40, 60), (60, float("inf")))),
        ColumnChoice("stage"),
    ]
    assert parse_column_choices(["psa:-4,4-10.5"]) == [ColumnChoice("psa", ((float("-inf"), 4), (4, 10.5)))]
    assert parse_column_choices([]) == []


@pytest.mark.parametrize("text", ["age:40-30", "age:-", "age:old", ",", "sex,,age", "age:30-40,50-45"])
def test_an_invalid_range_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match="--by"):
        parse_column_choices([text])


def test_the_end_of_a_range_belongs_to_the_next_one() -> None:
    [wanted] = parse_column_choices(["age:0-40,40-60"])
    assert _sizes(wanted, ["39.9", "40", "59", "60", "n/a", "old"]) == {
        "0 to below 40": 1,
        "40 to below 60": 2,
        "in no range": 2,
        "not said": 1,
    }


def test_numbers_go_into_quarters_and_codes_do_not() -> None:
    ages = [str(n) for n in range(20, 60)]
    # Their ends are rounded, so that they tell of no single case.
    assert _sizes(ColumnChoice("age"), ages) == {
        "below 30": 10,
        "30 to below 40": 10,
        "40 to below 49": 9,
        "49 and above": 11,
    }
    assert len(_sizes(ColumnChoice("volume_ml"), ages, 3)) == 3
    assert _sizes(ColumnChoice("stage"), ["2", "1", "2", "3"]) == {"1": 1, "2": 2, "3": 1}
    with_comma = [f"{n},5" for n in range(8)]  # as German programs write it
    assert sum(_sizes(ColumnChoice("psa"), with_comma).values()) == 8
    assert all("below" in name or "above" in name for name in _sizes(ColumnChoice("psa"), with_comma))
    assert _sizes(ColumnChoice("age"), ["1", "2", "3", "4", "5", "6", "seven"])["seven"] == 1


def test_one_word_is_one_group_however_it_is_written() -> None:
    assert _sizes(ColumnChoice("sex"), ["F", "f", "F ", "m", "", "unknown"]) == {"F": 3, "m": 1, "not said": 2}
    assert _sizes(ColumnChoice("sex"), ["", "", ""]) == {"not said": 3}


def test_a_table_of_windows_with_semicolons_is_read(tmp_path: Path) -> None:
    table = tmp_path / "klinik.csv"
    table.write_bytes("case;Größe;Geschlecht\nA;1,5;weiblich\nb.nii.gz;2,5;männlich\nzz;9;x\n".encode("cp1252"))
    columns, unmatched = table_columns(table, [_case("a"), _case("b")], tmp_path)
    assert columns == {"größe": {"a": "1,5", "b": "2,5"}, "geschlecht": {"a": "weiblich", "b": "männlich"}}
    assert unmatched == 1


def test_a_patients_row_applies_to_all_their_cases(tmp_path: Path) -> None:
    (tmp_path / SALT_FILE).write_bytes(b"salt")
    hashed = hashed_key(b"salt", "|P1")  # as registering hashes a DICOM patient without issuer
    cases = [_case("a", hashed), _case("b", hashed), _case("c", "p-007"), _case("d")]
    table = tmp_path / "table.csv"
    table.write_text("patient,sex\nP1,f\nP-7,m\n")
    columns, unmatched = table_columns(table, cases, tmp_path)
    assert (columns, unmatched) == ({"sex": {"a": "f", "b": "f", "c": "m"}}, 0)


def test_a_series_row_applies_to_its_images_alone(tmp_path: Path) -> None:
    (tmp_path / SALT_FILE).write_bytes(b"salt")
    one, other = (hashed_key(b"salt", uid, 8) for uid in ("1.2.3", "1.2.4"))
    names = [f"0123abcd-{one}", f"0123abcd-{one}-2", f"0123abcd-{other}"]
    table = tmp_path / "table.csv"
    table.write_text("series,kernel\n1.2.3,soft\n1.2.4,sharp\n1.2.5,soft\n")
    columns, unmatched = table_columns(table, [_case(name, "0123abcd") for name in names], tmp_path)
    assert columns == {"kernel": {names[0]: "soft", names[1]: "soft", names[2]: "sharp"}}
    assert unmatched == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("case,sex\nx,f\ny,m\n", "none of its 2 rows names a case"),
        ("sex,age\nf,1\n", "expected one of case, image, series, study or patient"),
        ("case,sex\na,f\na,m\n", "lines 2 and 3 say another sex each of one case"),
        ("case,sex\na,f,x\n", "line 2 has 3 fields"),
    ],
)
def test_a_table_that_does_not_fit_is_refused_in_words(tmp_path: Path, text: str, words: str) -> None:
    table = tmp_path / "table.csv"
    table.write_text(text)
    with pytest.raises(DataError, match=words):
        table_columns(table, [_case("a"), _case("b")], tmp_path)


def test_scanner_slices_and_reference_are_known_without_a_table() -> None:
    counts = {"0": 900, "1": 60, "2": 40}
    thin = _case("a", vendor="Siemens", modality="CT", shape=[9, 9, 9], spacing=[1, 1, 1], label_values=counts)
    thick = _case("b", shape=[9, 9, 9], spacing=[0.5, 0.5, 5.0], label_values=counts, tags={"Stain": "H&E"})
    flat = _case("c", shape=[9, 9], spacing=[0.2, 0.2], channels=3, label_values={"1": 100, "255": 7})
    bare = _case("d", shape=[9, 9], channels=1, label_values={"1": 100})
    known = known_columns([thin, thick, flat, bare], {1: "organ", 2: "tumour", 255: "ignore"})
    assert known["vendor"] == {"a": "Siemens"}
    assert known["slices"] == {"a": "thin (to 1.5 mm)", "b": "thick (over 1.5 mm)"}
    assert known["colour"] == {"c": "colour", "d": "grey"}
    assert known["volume_ml"] == {"a": "0.1", "b": "0.125"}
    assert known["area_mm2"] == {"c": "4"}
    assert known["area_px"] == {"d": "100"}
    assert known["stain"] == {"b": "H&E"}


def test_counts_of_a_slides_tiles_are_no_area() -> None:
    facts = {"shape": [4096, 4096], "spacing": [0.00025, 0.00025], "label_values": {"0": 10, "1": 3}}
    slide = _case("s", tiles="tiles/s.npz", **facts)
    assert "area_mm2" not in known_columns([slide], {1: "tumour"})
