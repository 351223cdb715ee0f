"""A cohort: whose images are pulled.

A table names patients, accession numbers or studies, a row each. A query in YAML says which studies are wanted, and
may restrict a table to some of their series.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from oncofed.errors import SpecError
from oncofed.settings import SettingError, StrictModel, read_yaml, validated

# Columns of a table, as people write them, without spaces, dashes and underscores -> DICOM's keyword.
_COLUMNS = {
    **dict.fromkeys(("patientid", "patient", "mrn"), "PatientID"),
    **dict.fromkeys(("accessionnumber", "accession"), "AccessionNumber"),
    **dict.fromkeys(("studyinstanceuid", "studyuid", "study"), "StudyInstanceUID"),
}
_UID = re.compile(r"[0-9.]{1,64}")
# Wildcards of a query and the separator of values (PS3.4, C.2.2.2; PS3.5, 6.4): one row would match other patients.
_WILD = re.compile(r"[*?\\\x00-\x1f]")
_LONGEST = {"PatientID": 64, "AccessionNumber": 16, "StudyInstanceUID": 64}
Modality = Annotated[str, Field(pattern=r"^[A-Z0-9_]{2,16}$")]


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        line: in the file, from 1.
        keys: DICOM keyword -> value; all of them have to match.
    """

    line: int
    keys: tuple[tuple[str, str], ...]


class Query(StrictModel):
    """A cohort in YAML."""

    table: Path | None = Field(None, description="CSV with patients, accession numbers or studies; null: any")
    modality: Modality | tuple[Modality, ...] | None = Field(None, description="such as CT, or [CT, SEG]; null: any")
    dates: str | None = Field(
        None,
        pattern=r"^(\d{4}-\d\d-\d\d)?\.\.(\d{4}-\d\d-\d\d)?$",
        description="FROM..TO, such as 2019-01-01..2023-12-31",
    )
    description: str | None = Field(None, max_length=64, description="of the study; * stands for any text")
    series_description: str | None = Field(None, max_length=64, description="of the series; * stands for any text")

    @model_validator(mode="after")
    def _asks_something(self) -> Query:
        try:
            _ = [date.fromisoformat(text) for text in (self.dates or "").split("..") if text]
        except ValueError as error:
            raise SettingError(f"found {self.dates}: {error}, expected days such as 2019-01-31", "dates") from None
        if self.table is None and not (self.modality or self.dates or self.description):
            raise ValueError("expected table, modality, dates or description: without them it asks for all images")
        return self

    @property
    def modalities(self) -> tuple[str, ...]:
        """Wanted modalities; empty: any."""
        return (self.modality,) if isinstance(self.modality, str) else self.modality or ()

    @property
    def study_keys(self) -> dict[str, str]:
        """What an archive is asked for (PS3.4, C.2.2.2), DICOM keyword -> value."""
        keys = {}
        if self.dates:
            begin, _, end = self.dates.replace("-", "").partition("..")
            keys["StudyDate"] = f"{begin}-{end}"
        if self.description:
            keys["StudyDescription"] = self.description
        return keys


@dataclass(frozen=True)
class Cohort:
    """Whose images are pulled.

    Attributes:
        rows: of its table; None: studies are found by the query alone.
        query: which studies and series are wanted.
        digest: SHA-256 of its files.
    """

    rows: tuple[Row, ...] | None
    query: Query
    digest: str

    def searches(self) -> Iterator[tuple[Row | None, dict[str, str]]]:
        """Yield what to ask an archive for: a row of the table, and DICOM keywords with their values."""
        keys = self.query.study_keys
        for row in self.rows if self.rows is not None else (None,):
            for modality in self.query.modalities or ("",):
                asked = {"ModalitiesInStudy": modality} if modality else {}
                yield row, {**keys, **asked, **dict(row.keys if row else ())}


def read_cohort(file: Path) -> Cohort:
    """Read a table (CSV), or a query (YAML).

    Raises:
        SpecError: it cannot be used; the message shows no value of a table.
    """
    if file.suffix.lower() in {".yaml", ".yml"}:
        values, lines = read_yaml(file, "modality: CT")
        query = validated(Query, values, str(file), lines, "cohort")
        content = _content(file)
        if query.table is None:
            return Cohort(None, query, hashlib.sha256(content).hexdigest())
        table = file.parent / query.table
        rows = _rows(table)
        return Cohort(rows, query, hashlib.sha256(content + b"\0" + _content(table)).hexdigest())
    rows = _rows(file)
    # A table alone wants all series of its studies, which a query has to say in other words.
    return Cohort(rows, Query.model_construct(table=file), hashlib.sha256(_content(file)).hexdigest())


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise SpecError(f"{file}: {error.strerror}. Expected a table (CSV), or a query (YAML)") from None


def _rows(file: Path) -> tuple[Row, ...]:
    try:
        text = _content(file).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise SpecError(f"{file}: it is not UTF-8. Save it as CSV in UTF-8") from None
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text), delimiter=delimiter)
    columns = [_COLUMNS.get(re.sub(r"[\s_-]", "", name).lower()) for name in next(reader, [])]
    known = [column for column in columns if column]
    if not known or len(set(known)) < len(known):
        raise SpecError(f"{file}:1: expected a column patient_id, accession_number or study_uid, each once")
    rows: dict[tuple[tuple[str, str], ...], Row] = {}
    for cells in reader:
        keys = tuple(
            (column, cell.strip()) for column, cell in zip(columns, cells, strict=False) if column and cell.strip()
        )
        for column, cell in keys:
            _require_plain(file, reader.line_num, column, cell)
        if keys:
            rows.setdefault(keys, Row(reader.line_num, keys))
    if not rows:
        raise SpecError(f"{file}: it has no row with a value. Expected a patient, accession number or study in each")
    return tuple(rows.values())


def _require_plain(file: Path, line: int, column: str, cell: str) -> None:
    fits = len(cell) <= _LONGEST[column] and not _WILD.search(cell)
    if column == "StudyInstanceUID":
        fits = bool(_UID.fullmatch(cell))
    if not fits:
        raise SpecError(
            f"{file}:{line}: its {column} is none: expected at most {_LONGEST[column]} characters, without * ? and \\"
        )
