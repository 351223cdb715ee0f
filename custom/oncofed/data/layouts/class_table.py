"""A table of classes and targets of patients, studies, series."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from oncofed.data.dicom.header_types import ObjectHeader
from oncofed.data.layouts.base import SPLIT_NAMES, Item
from oncofed.data.layouts.tables import WANTED, Row, Table, expected_columns
from oncofed.data.layouts.targets import (
    contradiction_problem,
    dates_left_out,
    merged_targets,
    read_renamed,
    read_with_targets,
)
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
        unread: target -> why what a row says of it is not used; "": the same of the row.
        looked_for: names of the mask's classes that were looked for; None: not said.
    """

    targets: Mapping[str, TargetValue] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    unread: Mapping[str, str] = field(default_factory=dict)
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
        faults: rows without a key, by line; other unusable ones are known to the image that they are of.
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
        rows = [] if "image" in columns else [self._checked(row) for row in table.rows if self._has_key(row)]
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
        cells = next((row.cells for row in rows if not row.fault), {})
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
            unread={**item.unread, **found.unread},
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

    def nothing_stated(self, item: Item) -> str:
        """Return why a case of other files has nothing from the table; empty where there is no table."""
        row = self._row("patient", item.patient)
        if row:
            return f"line {row.line} of the table, of its patient, states nothing that is learned"
        return "no row of the table is of its patient" if self._rows else ""

    def _row(self, key: str, text: str) -> Row | None:
        if row := self._rows.get((key, text)):
            return row
        form = (key, without_zeros(text))
        alike = self._alike.get(form, set())
        sure = len(alike) == 1 and self._there.get(form, set()) <= {text}
        return self._rows[key, next(iter(alike))] if sure else None

    def _add(self, key: str, text: str, row: Row) -> None:
        before = self._rows.get((key, text))
        self._alike[key, without_zeros(text)].add(text)
        self._rows[key, text] = _agreed(before, row, key) if before else row

    def _has_key(self, row: Row) -> bool:
        has = any(row.cells.get(key) for key in _KEYS)
        if not has:
            name = f"line {row.line}"
            reason = row.fault.removeprefix(f"{name}: ").removeprefix(f"{name} ")
            self.faults.append(Quarantined(name=name, reason=reason or "has no patient, study or series"))
        return has

    def _checked(self, row: Row) -> Row:
        """Return a row; one that cannot be used has its keys alone, and why."""
        split = row.cells.get("split", "")
        reason = row.fault
        if not reason and split and split.lower() not in SPLIT_NAMES:
            reason = f"line {row.line} says split {split!r}, expected one of {', '.join(sorted(set(SPLIT_NAMES)))}"
        if not reason:
            return row
        return Row(row.line, {k: v for k, v in row.cells.items() if k in _KEYS}, reason, unread={"": reason})


def _agreed(before: Row, row: Row, key: str) -> Row:
    """Return what two rows of one patient, study or series say alike.

    Of what they say otherwise nothing is believed, neither of the other columns.
    """
    if before.fault or row.fault:
        sound = row if before.fault else before
        return replace(sound, line=before.line, unread={**row.unread, **before.unread})
    same = {k: v for k, v in before.cells.items() if k in {*WANTED, *_KEYS} or row.cells.get(k) == v}
    differing = [what for what in ("label", "split") if before.cells.get(what) != row.cells.get(what)]
    agreed = merged_targets(before, row, key)
    unread = dict(agreed.unread)
    if differing:
        unread[""] = contradiction_problem([before.line, row.line], key, " and ".join(differing))
    return replace(agreed, cells={k: v for k, v in same.items() if k not in differing}, unread=unread)


def _merged(rows: list[Row]) -> Stated:
    """Return what rows say together, the narrowest first."""
    targets: dict[str, TargetValue] = {}
    tags: dict[str, str] = {}
    unread: dict[str, str] = {}
    for row in reversed(rows):
        # A narrower row decides, whether it can be read or not.
        targets = {name: value for name, value in targets.items() if name not in row.unread} | dict(row.targets)
        unread = {name: why for name, why in unread.items() if name not in row.targets} | dict(row.unread)
        tags |= {column: text for column, text in row.cells.items() if text and column not in {*WANTED, *_KEYS}}
    return Stated(targets, tags, unread, next((row.looked_for for row in rows if row.looked_for), None))


def _identities(header: ObjectHeader) -> tuple[tuple[str, str], ...]:
    """Return the identities of an image, the narrowest first."""
    patient = header.patient.split("|", 1)[-1]
    return ("series", header.series.strip()), ("study", header.study.strip()), ("patient", patient.strip())
