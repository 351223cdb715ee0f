"""Columns that split cases into subgroups.

From registration, and from a table of the hospital.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from oncofed.data import case_facts
from oncofed.data.case import Case
from oncofed.data.case_checks import known_facts
from oncofed.data.composition import hashed_key
from oncofed.data.grouping import counted
from oncofed.data.label_names import IGNORED, name_key
from oncofed.data.layouts.tables import Row, Table, read_table
from oncofed.data.layouts.written import Files, without_zeros
from oncofed.data.manifest import SALT_FILE, Entry
from oncofed.errors import DataError, SpecError

_CASE_KEYS = ("case", "image", "file")
# Columns that name cases, the narrowest first.
KEYS = (*_CASE_KEYS, "series", "study", "patient")
_MISSING_VALUES = frozenset({"", "-", "?", "na", "n/a", "nan", "none", "null", "unknown", "unbekannt"})
# Thickest slices that count as thin: thin-section CT (MacMahon et al., Radiology 2017: 1.5 mm).
_THIN_MM = 1.5
# Fewer distinct numbers than this count as codes, such as stages.
_CODES = 6
# Size columns of the labelled region: volumes, flat images with and without pixel size.
SIZES = ("volume_ml", "area_mm2", "area_px")
# Registration names a DICOM image by patient and series.
_DICOM_NAME = re.compile(r"[0-9a-f]{8}-(?P<series>[0-9a-f]{8})(-.*)?")
_OF_NAME = 8  # letters of it in a name
_RANGE = re.compile(r"(\d+(?:\.\d+)?)?-(\d+(?:\.\d+)?)?")

Values = dict[str, str]  # case -> text; cases without a value are missing
Bins = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class ColumnChoice:
    """A column to analyse, with ranges for its numbers.

    Without ranges, numbers are split at quantiles.
    """

    name: str
    bins: Bins = ()


@dataclass(frozen=True)
class Column:
    """A column's groups of cases.

    Attributes:
        name: of the column.
        groups: group name -> its cases, in display order.
    """

    name: str
    groups: dict[str, tuple[str, ...]]


def parse_column_choices(texts: Sequence[str]) -> list[ColumnChoice]:
    """Parse ``--by sex,age:0-40,40-60,60-``.

    A range belongs to the column before it.

    Raises:
        SpecError: a range is invalid, or has no column.
    """
    found: dict[str, list[tuple[float, float]]] = {}
    name = ""
    for part in (part.strip() for text in texts for part in text.split(",")):
        named, colon, last = part.rpartition(":")
        if name and not colon and part != "-" and _RANGE.fullmatch(part):
            found[name].append(_range(part))
            continue
        name = (named if colon else part).strip().lower()
        if not name:
            raise SpecError(
                f"--by {','.join(texts)}: found no name of a column, expected such as --by sex,age:0-40,40-"
            )
        found[name] = [_range(last.strip())] if colon else []
    return [ColumnChoice(name, tuple(bins)) for name, bins in found.items()]


def _range(text: str) -> tuple[float, float]:
    match = _RANGE.fullmatch(text)
    low, high = (float(match[1] or "-inf"), float(match[2] or "inf")) if match else (0.0, 0.0)
    if text == "-" or low >= high:
        raise SpecError(
            f"--by: {text!r} is no range, expected such as 0-40, 40-60 or 60- (the upper end is the next's)"
        )
    return low, high


# --- facts of cases


def known_columns(cases: Sequence[Case], classes: Mapping[int, str]) -> dict[str, Values]:
    """Return cases' known values, without a table.

    Scanner, image and reference.

    Args:
        cases: with labels in the job's values.
        classes: the job's label values and names.

    Returns:
        Column -> value of each case, including columns of the registered table.
    """
    entries = {case.name: _entry(case) for case in cases}
    makers: dict[str, Callable[[Case, Entry], str | None]] = {
        "vendor": lambda _, entry: entry.vendor,
        "modality": lambda _, entry: entry.modality,
        "slices": lambda _, entry: _slices(entry),
        "colour": lambda _, entry: _colour(entry),
        "size": lambda _, entry: "x".join(map(str, entry.shape or [])),
    }
    found: dict[str, Values] = {name: {} for name in makers}
    for case in cases:
        entry = entries[case.name]
        for name, maker in makers.items():
            if text := maker(case, entry):
                found[name][case.name] = text
        if labelled := _labelled(case, entry, classes):
            found.setdefault(labelled[0], {})[case.name] = labelled[1]
        for name, text in entry.tags.items():
            found.setdefault(name.lower(), {})[case.name] = text
    return {name: values for name, values in found.items() if values}


def _entry(case: Case) -> Entry:
    return case.entry if case.entry and case.entry.shape else known_facts(case)


def _slices(entry: Entry) -> str | None:
    if not entry.spacing or len(entry.shape or ()) != 3:
        return None
    return f"thin (to {_THIN_MM:g} mm)" if max(entry.spacing) <= _THIN_MM + 1e-3 else f"thick (over {_THIN_MM:g} mm)"


def _colour(entry: Entry) -> str | None:
    if len(entry.shape or ()) != 2 or not entry.channels:
        return None
    return "grey" if entry.channels == 1 else "colour"


def _labelled(case: Case, entry: Entry, classes: Mapping[int, str]) -> tuple[str, str] | None:
    """Return column and size of the labelled region, if known."""
    if not isinstance(case.label, Path) or not entry.label_values or entry.tiles:
        return None  # of a slide the values count tiles
    become = dict(case.label_values) if case.label_values is not None else {value: value for value in classes}
    sought = {value for value, name in classes.items() if name != IGNORED}
    voxels = sum(
        n for value, n in case_facts.label_counts(entry.label_values).items() if value and become.get(value) in sought
    )
    size = voxels * math.prod(entry.spacing or ())
    if len(entry.shape or ()) == 3:
        return "volume_ml", f"{size / 1000:.6g}"
    return "area_mm2" if entry.spacing else "area_px", f"{size:.6g}"


# --- what a table says


def table_columns(path: Path, cases: Sequence[Case], folder: Path) -> tuple[dict[str, Values], int]:
    """Return a table's columns, and its number of unmatched rows.

    Args:
        path: CSV or TSV in any common encoding, with a column case (or image, file), series, study or patient.
        cases: to find in the table.
        folder: of their dataset, whose salt hashes patients.

    Raises:
        DataError: it is no table, lacks a key column, contradicts itself, or names none of the cases.
    """
    table = read_table(path)
    for row in table.rows:
        if row.fault:
            raise DataError(f"{path}: {row.fault}.")
    rows, unmatched = rows_of_cases(path, table, cases, folder)
    columns: dict[str, Values] = {}
    for column in table.columns:
        if column and column not in KEYS:
            columns[column] = {case: text for case, own in rows.items() if (text := agreed(own, column, path))}
    return columns, unmatched


def rows_of_cases(
    path: Path, table: Table, cases: Sequence[Case], folder: Path, least: int = 1
) -> tuple[dict[str, list[Row]], int]:
    """Return the rows of each case that a table names, and how many rows name none.

    Args:
        path: of the table, for messages.
        table: with a column case (or image, file), series, study or patient; a row belongs to the narrowest that it
            names.
        cases: to find in the table.
        folder: of their dataset, whose salt hashes patients.
        least: rows that have to name a case.

    Raises:
        DataError: it lacks a key column, or fewer rows name a case.
    """
    keys = [key for key in KEYS if key in table.columns]
    if not keys:
        seen = ", ".join(column or "(no name)" for column in table.columns[:12]) or "(none)"
        raise DataError(f"{path}: found the columns {seen}; expected one of case, image, series, study or patient.")
    names = _Names(cases, folder)
    found: dict[str, list[Row]] = defaultdict(list)
    unmatched = 0
    for row in table.rows:
        named = names.of(row, keys)
        unmatched += not named
        for case in named:
            found[case].append(row)
    if table.rows and len(table.rows) - unmatched < least:
        raise DataError(
            f"{path}: none of its {counted(unmatched, 'row')} names a case of {folder}. Its column {keys[0]} says such "
            f"as {next((row.cells.get(keys[0]) for row in table.rows), '')!r}; the cases are called such as "
            f"{cases[0].name!r}"
        )
    return dict(found), unmatched


def agreed(rows: Sequence[Row], column: str, path: Path) -> str:
    """Return what the rows of one case say in a column; empty where nothing.

    Raises:
        DataError: they say different things.
    """
    said = [(row.line, text) for row in rows if (text := row.cells.get(column, ""))]
    for line, text in said[1:]:
        if text != said[0][1]:
            raise DataError(
                f"{path}: lines {said[0][0]} and {line} say another {column} each of one case. Correct the table"
            )
    return said[0][1] if said else ""


class _Names:
    """Finds cases by name, file, series, study or patient."""

    def __init__(self, cases: Sequence[Case], folder: Path) -> None:
        self._salt = (folder / SALT_FILE).read_bytes() if (folder / SALT_FILE).is_file() else b""
        self._by_file: dict[str, str] = {}
        self._by_key: dict[tuple[str, str], list[str]] = defaultdict(list)
        for case in cases:
            entry = case.entry
            # The slides of a patient may be one case.
            for part in (case, *case.parts):
                own = part.entry
                for path in filter(None, [own.source if own else None, *(own.images if own else []), part.name]):
                    self._by_file.setdefault(path, case.name)
            self._by_key["patient", case.patient].append(case.name)
            if entry and entry.study:
                self._by_key["study", entry.study].append(case.name)
            if entry and (of_dicom := _DICOM_NAME.fullmatch(entry.name or "")):
                self._by_key["series", of_dicom["series"]].append(case.name)
        self._files = Files(folder, list(self._by_file))

    def of(self, row: Row, keys: Sequence[str]) -> list[str]:
        """Return a row's cases, by its most specific key."""
        for key in keys:
            if text := row.cells.get(key, ""):
                return self._case(text) if key in _CASE_KEYS else self._of_key(key, text)
        return []

    def _case(self, text: str) -> list[str]:
        path, _ = self._files.look(text)
        return [self._by_file[path]] if path else []

    def _of_key(self, key: str, text: str) -> list[str]:
        # As written, hashed as in registration, and hashed as a DICOM patient without issuer.
        hashes = [hashed_key(self._salt, form) for form in (text, f"|{text}")] if self._salt else []
        if key == "series":
            hashes = [one[:_OF_NAME] for one in hashes]
        for form in (text, *hashes):
            if found := self._by_key.get((key, form)):
                return found
        alike = {k: v for k, v in self._by_key.items() if k[0] == key and without_zeros(k[1]) == without_zeros(text)}
        return next(iter(alike.values())) if len(alike) == 1 else []


# --- groups


def group_cases(wanted: ColumnChoice, values: Values, cases: Sequence[str], parts: int = 4) -> Column:
    """Split cases into a column's groups.

    Numbers are split into the given ranges, or into quantiles with equal counts; few distinct numbers count as codes.
    Cases without a value form the group "not said".

    Args:
        wanted: the column.
        values: value of each case.
        cases: all cases.
        parts: number of quantile groups.
    """
    texts = {case: text for case in cases if (text := values.get(case, "")).strip().lower() not in _MISSING_VALUES}
    numbers = {case: number for case, text in texts.items() if (number := _number(text)) is not None}
    if wanted.bins:
        groups = _in_ranges(wanted.bins, texts, numbers)
    elif len(numbers) == len(texts) and len(set(numbers.values())) >= _CODES:
        groups = _in_parts(numbers, parts)
    else:
        groups = _by_text(texts, numbers)
    missing = tuple(case for case in cases if case not in texts)
    return Column(wanted.name, {**groups, **({"not said": missing} if missing else {})})


def _number(text: str) -> float | None:
    try:
        number = float(text.strip().replace(",", ".", 1) if text.count(",") == 1 and "." not in text else text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _in_ranges(bins: Bins, texts: Values, numbers: Mapping[str, float]) -> dict[str, tuple[str, ...]]:
    groups = {_words(low, high): tuple(c for c, n in numbers.items() if low <= n < high) for low, high in bins}
    inside = {case for group in groups.values() for case in group}
    outside = tuple(case for case in texts if case not in inside)
    return {**groups, **({"in no range": outside} if outside else {})}


def _in_parts(numbers: Mapping[str, float], parts: int) -> dict[str, tuple[str, ...]]:
    cuts = np.quantile(list(numbers.values()), np.arange(1, parts) / parts)
    # Rounded, so that an edge reveals less of the case that it comes from.
    edges = [-math.inf, *sorted({float(f"{cut:.2g}") for cut in cuts}), math.inf]
    bins = tuple(pairwise(edges))
    return {name: cases for name, cases in _in_ranges(bins, {}, numbers).items() if cases}


def _words(low: float, high: float) -> str:
    if low == -math.inf:
        return f"below {high:g}"
    return f"{low:g} and above" if high == math.inf else f"{low:g} to below {high:g}"


def _by_text(texts: Values, numbers: Mapping[str, float]) -> dict[str, tuple[str, ...]]:
    """Group by text, ignoring case and spaces.

    Each group is named by its most frequent spelling.
    """
    by_key: dict[str, list[str]] = defaultdict(list)
    for case, text in texts.items():
        by_key[f"{numbers[case]:g}" if case in numbers else name_key(text)].append(case)
    groups = {}
    for cases in sorted(by_key.values(), key=lambda own: (numbers.get(own[0], math.inf), name_key(texts[own[0]]))):
        written = Counter(texts[case].strip() for case in cases)
        groups[max(sorted(written), key=lambda form: written[form])] = tuple(cases)
    return groups
