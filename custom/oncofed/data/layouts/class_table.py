"""A table of classes and targets of patients, studies, series."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from oncofed.data.dicom.header_types import ObjectHeader
from oncofed.data.layouts.base import SPLIT_NAMES, Item
from oncofed.data.layouts.tables import WANTED, Row, Table, expected_columns
from oncofed.data.layouts.targets import dates_left_out, differing_targets, read_renamed, read_with_targets
from oncofed.data.layouts.written import without_zeros
from oncofed.data.manifest import Quarantined, Split
from oncofed.data.target_columns import TableTargets
from oncofed.data.targets import TargetValue
from oncofed.errors import DataError

_KEYS = ("series", "study", "patient")


def lists_images(table: Path | None, targets: TableTargets | None = None) -> bool:
    """Return whether a table lists images.

    A table of patients or series belongs to DICOM, or gives targets of images by patient.

    Raises:
        DataError: it cannot be read.
    """
    return table is not None and "image" in read_renamed(table, targets).columns


@dataclass(frozen=True)
class Stated:
    """What rows say of an image beside its class and list.

    Attributes:
        targets: name -> value.
        tags: other columns.
        looked_for: names of the mask's classes that were looked for; None: not said.
    """

    targets: Mapping[str, TargetValue] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    looked_for: tuple[str, ...] | None = None


class ClassTable:
    """A table of classes, read once.

    A row belongs to the patient, study or series with exactly its name. A name that differs only in case or leading
    zeros counts if it fits no other row and no other image.

    Args:
        path: of the table; None or a table of images gives an empty one.
        headers: of all DICOM images.
        targets: definitions of the table's targets.
        items: cases of other files, whose patients the table may name.

    Attributes:
        classes: class -> number, in alphabetical order.
        faults: unusable rows and why, by line, without patients' names.
        targets: name -> declaration.
        remarks: observations on the table, for people.

    Raises:
        DataError: it cannot be read, or lacks the columns.
    """

    def __init__(
        self,
        path: Path | None,
        headers: Iterable[ObjectHeader] = (),
        targets: TableTargets | None = None,
        items: Iterable[Item] = (),
    ) -> None:
        table = Table([], []) if path is None else read_with_targets(path, targets)
        columns = set(table.columns)
        states = "label" in columns or targets is not None
        if path and "image" not in columns and not (set(_KEYS) & columns and states):
            raise DataError(
                f"{path}: {expected_columns(table.columns)}; for DICOM label (or --targets), and one of patient, "
                "study, series. Where they are called otherwise, say so in --targets FILE: columns: {patient: MRN}"
            )
        own = "image" not in columns
        self.targets = table.targets if own else {}
        self.remarks = dates_left_out(table) if own else []
        self.faults: list[Quarantined] = []
        rows = [] if "image" in columns else [row for row in table.rows if self._is_sound(row)]
        self.classes = {
            label: n for n, label in enumerate(sorted({r.cells["label"] for r in rows if r.cells.get("label")}))
        }
        self._rows: dict[tuple[str, str], Row] = {}
        self._alike: dict[tuple[str, str], set[str]] = defaultdict(set)
        for row in rows:
            for key in _KEYS:
                if text := row.cells.get(key):
                    self._add(key, text, row)
                    break  # a row belongs to the narrowest object that it names
        self._matched: set[int] = set()
        self._there: dict[tuple[str, str], set[str]] = defaultdict(set)
        for header in headers if rows else ():
            for key, text in _identities(header):
                self._there[key, without_zeros(text)].add(text)
        for item in items if rows else ():
            self._there["patient", without_zeros(item.patient)].add(item.patient)

    def find(self, header: ObjectHeader) -> tuple[int | None, Split | None]:
        """Return an image's class number and split; None: not stated."""
        rows = [row for key, text in _identities(header) if (row := self._row(key, text))]
        self._matched |= {row.line for row in rows}
        cells = rows[0].cells if rows else {}
        return self.classes.get(cells.get("label", "")), SPLIT_NAMES.get(cells.get("split", "").lower())

    def stated(self, header: ObjectHeader) -> Stated:
        """Return what the rows of an image say beside its class and list."""
        return _merged([row for key, text in _identities(header) if (row := self._row(key, text))])

    def knows(self, item: Item) -> bool:
        """Return whether a row is of a case's patient."""
        return self._row("patient", item.patient) is not None

    def with_patient(self, item: Item) -> Item:
        """Return a case of other files with what its patient's row says."""
        row = self._row("patient", item.patient)
        if row is None:
            return item
        self._matched.add(row.line)
        found = _merged([row])
        return replace(
            item,
            split=item.split or SPLIT_NAMES.get(row.cells.get("split", "").lower()),
            targets={**item.targets, **found.targets},
            tags={**item.tags, **found.tags},
            looked_for=found.looked_for or item.looked_for,
        )

    def doubt(self, header: ObjectHeader) -> str:
        """Return why a likely row gives no class, if so."""
        for key, text in _identities(header):
            alike = self._alike.get((key, without_zeros(text)), set())
            if alike and self._row(key, text) is None:
                lines = " and ".join(str(line) for line in sorted(self._rows[key, other].line for other in alike))
                return (
                    f"line{'s' * (len(alike) > 1)} {lines} of the table may mean its {key} or another one, for case or "
                    f"leading zeros differ. Write the {key} as the image's header has it"
                )
        return ""

    def unmatched(self) -> list[str]:
        """Return the lines of rows that match no image.

        Such as "line 3", without identities.
        """
        return [f"line {row.line}" for row in self._rows.values() if row.line not in self._matched]

    def _row(self, key: str, text: str) -> Row | None:
        if row := self._rows.get((key, text)):
            return row
        form = (key, without_zeros(text))
        alike = self._alike.get(form, set())
        sure = len(alike) == 1 and self._there.get(form, set()) <= {text}
        return self._rows[key, next(iter(alike))] if sure else None

    def _add(self, key: str, text: str, row: Row) -> None:
        before = self._rows.setdefault((key, text), row)
        # Of what rows say otherwise nothing is believed, neither of the other columns.
        same = {k: v for k, v in before.cells.items() if k in {*WANTED, *_KEYS} or row.cells.get(k) == v}
        before = replace(before, cells=same)
        self._alike[key, without_zeros(text)].add(text)
        for what in ("label", "split"):
            if before.cells.get(what) != row.cells.get(what):
                reason = f"lines {before.line} and {row.line} of the table name one {key} and say another {what} each"
                self.faults.append(Quarantined(name=f"line {row.line}", reason=f"{reason}. Keep one row a {key}"))
                # Contradicting values are both dropped.
                before = replace(before, cells={k: v for k, v in before.cells.items() if k != what})
        if what := differing_targets(before, row):
            reason = f"lines {before.line} and {row.line} of the table name one {key} and say another {what} each"
            self.faults.append(Quarantined(name=f"line {row.line}", reason=f"{reason}. Keep one row a {key}"))
            disputed = set(what.split(" and "))
            before = replace(before, targets={k: v for k, v in before.targets.items() if k not in disputed})
        self._rows[key, text] = before

    def _is_sound(self, row: Row) -> bool:
        reason = row.fault
        split = row.cells.get("split", "")
        if not reason and split and split.lower() not in SPLIT_NAMES:
            reason = f"line {row.line} says split {split!r}, expected one of {', '.join(sorted(set(SPLIT_NAMES)))}"
        if not reason and not any(row.cells.get(key) for key in _KEYS):
            reason = f"line {row.line} has no patient, study or series"
        if reason:
            self.faults.append(Quarantined(name=f"line {row.line}", reason=reason))
        return not reason


def _merged(rows: list[Row]) -> Stated:
    """Return what rows say together, the narrowest first."""
    targets: dict[str, TargetValue] = {}
    tags: dict[str, str] = {}
    for row in reversed(rows):
        targets |= row.targets
        tags |= {column: text for column, text in row.cells.items() if text and column not in {*WANTED, *_KEYS}}
    return Stated(targets, tags, next((row.looked_for for row in rows if row.looked_for), None))


def _identities(header: ObjectHeader) -> tuple[tuple[str, str], ...]:
    """Return the identities of an image, the narrowest first."""
    patient = header.patient.split("|", 1)[-1]
    return ("series", header.series.strip()), ("study", header.study.strip()), ("patient", patient.strip())
