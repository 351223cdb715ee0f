"""Cells that spreadsheet programs would take for formulas."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from oncofed.prediction.outputs.tables import escape_formula, write_table


@pytest.mark.parametrize("text", ["=cmd|' calc'!A0", "+1+1", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "-liver"])
def test_text_that_begins_as_a_formula_has_an_apostrophe_first(text: str) -> None:
    assert escape_formula(text) == f"'{text}"


@pytest.mark.parametrize("cell", ["liver", "-0.5", "+3", "-1e-05", "-inf", -0.5, None, 3, "", "a=b"])
def test_numbers_and_other_text_stay(cell: object) -> None:
    assert escape_formula(cell) == cell


def test_names_of_cases_and_columns_in_a_table(tmp_path: Path) -> None:
    write_table(tmp_path / "t.csv", [{"case": "=1+1", "@x": -0.5, "ends": [1, 2], "none": None}], ("case",))
    with (tmp_path / "t.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["case", "'@x", "none"], ["'=1+1", "-0.5", ""]]
