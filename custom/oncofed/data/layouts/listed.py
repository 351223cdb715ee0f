"""A table of images, with labels, patients and splits."""

from __future__ import annotations

import contextlib
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from oncofed.data.images import image_format
from oncofed.data.layouts.base import SPLIT_NAMES, FolderLayout, Item, name_of, patient_of, unique
from oncofed.data.layouts.content import on_one_grid
from oncofed.data.layouts.kinds import TABLE
from oncofed.data.layouts.names import IMAGE_FOLDERS, LABEL_FOLDERS, Named
from oncofed.data.layouts.pairing import Candidate, pair
from oncofed.data.layouts.slides import SLIDES_ALONE
from oncofed.data.layouts.tables import WANTED, Row, Table, expected_columns
from oncofed.data.layouts.targets import contradiction_problem, dates_left_out, merged_targets, read_with_targets
from oncofed.data.layouts.written import Files
from oncofed.data.manifest import Quarantined
from oncofed.data.target_columns import TableTargets
from oncofed.errors import DataError

_ONE_HOT = re.compile(r"[01](\.0+)?")


def listed(
    root: Path, path: Path, files: Sequence[str], targets: TableTargets | None = None, table: Table | None = None
) -> FolderLayout:
    """Return the cases that a table lists.

    Args:
        root: the folder.
        path: of the table.
        files: all of the folder.
        targets: what the user says of the table's targets.
        table: its contents, where they were read before.

    Raises:
        DataError: it has no column ``image``, or a target's column cannot be read.
    """
    table = table or read_with_targets(path, targets)
    if "image" not in table.columns:
        raise DataError(f"{path}: {expected_columns(table.columns)}.")
    layout = FolderLayout(TABLE, tables=[name for name in files if root / name == path], targets=table.targets)
    layout.remarks += dates_left_out(table)
    table = _with_classes(table)
    rows = _Rows(root, files, table)
    layout.labels = {number: name for name, number in rows.classes.items() if name != str(number)}
    if rows.classes:
        layout.task = "classification"
    by_image: dict[str, list[tuple[Row, Item]]] = defaultdict(list)
    for row in table.rows:
        item, bad = rows.read(row)
        if item:
            by_image[item.images[0]].append((row, item))
        elif bad:
            layout.bad.append(bad)
    for image, found in by_image.items():
        several, others = rows.meant(image, found)
        layout.bad += others
        reason = _contradiction(several)
        if reason:
            layout.bad.append(Quarantined(name=several[0][1].name, reason=reason, source=image))
        else:
            layout.items.append(_once(several))
    layout.items = unique(layout.items)
    if table.targets and not any(item.masks for item in layout.items):
        layout.task = "classification"
    if layout.items and all(item.images[0].lower().endswith(SLIDES_ALONE) for item in layout.items):
        layout.task = "slides"
    used = {i for item in layout.items for i in (*item.images, *item.masks)}
    # What a row says of an image may be wrong, and yet the table names it.
    used |= {bad.source for bad in layout.bad if bad.source}
    for name in files:
        if image_format(Path(name)) and name not in used:
            kind = "mask" if Named(name).role == "mask" else "image"
            layout.left_out[name] = f"{kind} that the table does not name"
    return layout


class _Rows:
    """The rows of a table as cases.

    Attributes:
        classes: text in the column ``label`` -> number, where the labels are classes.
    """

    def __init__(self, root: Path, files: Sequence[str], table: Table) -> None:
        self._table = table
        masks = [f for f in files if image_format(Path(f)) and Named(f).role == "mask"]
        seen = set(masks)
        self._images = Files(root, [f for f in files if f not in seen], IMAGE_FOLDERS)
        self._labels = Files(root, files, LABEL_FOLDERS)
        self._masks = Files(root, masks, LABEL_FOLDERS)
        self.classes = self._classes(files) if "label" in table.columns else {}
        self._by_name = {} if "label" in table.columns else self._found(root, masks)

    def read(self, row: Row) -> tuple[Item | None, Quarantined | None]:
        """Return a row's case, or why it has none."""
        image = None
        try:
            # The table decides: a file named like a mask may be an image.
            if row.fault:
                with contextlib.suppress(DataError):
                    image = self._file(row, "image", self._images, self._labels)
                raise DataError(row.fault)
            image = self._file(row, "image", self._images, self._labels)
            return self._item(row, image), None
        except DataError as error:
            name = row.cells.get("image") or f"line {row.line}"
            return None, Quarantined(name=name, reason=_without(str(error), name), source=image)

    def meant(
        self, image: str, found: Sequence[tuple[Row, Item]]
    ) -> tuple[Sequence[tuple[Row, Item]], list[Quarantined]]:
        """Return the rows of an image, and the others.

        If one row names it exactly, the others do not count.
        """
        exact = [pair for pair in found if self._images.is_exact(pair[0].cells["image"], image)]
        if not exact:
            return found, []
        others = [row for row, _ in found if all(row is not one for one, _ in exact)]
        reason = "its image file is missing (a file differs in case or leading zeros alone, which another line names)"
        return exact, [
            Quarantined(name=row.cells["image"], reason=f"line {row.line}: {reason}. Copy it, or correct the table")
            for row in others
        ]

    def _item(self, row: Row, image: str) -> Item:
        """Return a row's case.

        Raises:
            DataError: it cannot be used.
        """
        label: str | int | None = self._by_name.get(image)
        text = row.cells.get("label", "")
        notes: tuple[str, ...] = ()
        if text:
            label = self.classes[text] if text in self.classes else self._file(row, "label", self._masks, self._labels)
        elif "label" not in self._table.columns and label is None and not self._table.targets:
            others = [column for column in self._table.columns if column not in WANTED]
            found = f" (but {', '.join(others[:6])})" if others else ""
            notes = (f"the table has no column label{found}",)
        elif "label" in self._table.columns:
            notes = (f"line {row.line} of the table says no label",)
        split = SPLIT_NAMES.get(row.cells.get("split", "").lower())
        if row.cells.get("split") and split is None:
            expected = ", ".join(sorted(set(SPLIT_NAMES)))
            raise DataError(f"line {row.line} says split {row.cells['split']!r}, expected one of {expected}")
        tags = {k: v for k, v in row.cells.items() if k not in WANTED and v}
        name = name_of(image)
        patient = row.cells.get("patient") or patient_of(image)
        return Item(
            name=name,
            patient=patient,
            images=(image,),
            label=label,
            split=split,
            modality=row.cells.get("modality") or None,
            tags=tags,
            notes=notes,
            targets=row.targets,
            looked_for=row.looked_for,
            unread=row.unread,
        )

    def _file(self, row: Row, column: str, *places: Files) -> str:
        text = row.cells.get(column, "")
        if not text:
            raise DataError(f"line {row.line} has no {column}. Add it, or remove the line")
        first = ""
        for place in places:
            found, reason = place.look(text)
            if found:
                return found
            first = first or reason
        raise DataError(f"line {row.line}: its {column} {first}")

    def _classes(self, files: Sequence[str]) -> dict[str, int]:
        """Return text -> class number, where labels are no files."""
        texts = [row.cells.get("label", "") for row in self._table.rows]
        single = sorted(set(texts) - {""})
        known = set(files)
        if any(image_format(Path(t)) or t in known or "/" in t or "\\" in t for t in single):
            return {}
        if len(single) > 2 and len(single) == len([t for t in texts if t]) and all(map(self._is_mask, single)):
            return {}  # each is different: they are masks, written without suffix
        if all(re.fullmatch(r"\d+", t) for t in single):
            return {t: int(t) for t in single}
        return {t: number for number, t in enumerate(single)}

    def _is_mask(self, text: str) -> bool:
        return self._masks.look(text)[0] is not None

    def _found(self, root: Path, masks: Sequence[str]) -> dict[str, str]:
        """Return image -> mask by their names."""
        found = [self._images.look(row.cells.get("image", ""))[0] for row in self._table.rows if not row.fault]
        cases = [Candidate([Named(path)]) for path in dict.fromkeys(found) if path]
        pair(cases, map(Named, masks), lambda case, mask: on_one_grid(root, [case.first.path, mask.path]))
        return {case.first.path: case.fitting[0][0].path for case in cases if len(case.fitting) == 1}


def _with_classes(table: Table) -> Table:
    """Merge a table's class columns into one column ``label``."""
    columns = [column for column in table.columns if column not in WANTED]
    used = [row for row in table.rows if not row.fault]
    if "label" in table.columns or len(columns) < 2 or not used:
        return table
    for row in used:
        marks = [row.cells.get(column, "") for column in columns]
        if not all(map(_ONE_HOT.fullmatch, marks)) or sum(mark.startswith("1") for mark in marks) != 1:
            return table
    rows = []
    for row in table.rows:
        kept = {column: text for column, text in row.cells.items() if column in WANTED}
        marked = next((column for column in columns if row.cells.get(column, "").startswith("1")), "")
        rows.append(replace(row, cells={**kept, "label": marked}))
    columns = [*(column for column in table.columns if column in WANTED), "label"]
    return replace(table, columns=columns, rows=rows)


def _without(reason: str, name: str) -> str:
    """Return a reason that does not begin with the name of what it is about."""
    return reason.removeprefix(f"{name}: ").removeprefix(f"{name} ")


def _contradiction(rows: Sequence[tuple[Row, Item]]) -> str:
    """Return why several rows of an image contradict each other."""
    for what in ("label", "patient", "split"):
        said = Counter(row.cells.get(what, "") for row, _ in rows)
        if len(said) > 1:
            values = f" ({' and '.join(sorted(said)[:3])})" if what == "label" else ""
            return contradiction_problem([row.line for row, _ in rows], "image", what, values)
    return ""


def _once(rows: Sequence[tuple[Row, Item]]) -> Item:
    row, item = rows[0]
    if len(rows) == 1:
        return item
    for other, _ in rows[1:]:
        row = merged_targets(row, other, "image")
    item = replace(item, targets=row.targets, unread=row.unread)
    note = f"lines {' and '.join(str(row.line) for row, _ in rows[:3])} of the table name it alike; it is used once"
    return replace(item, notes=(*item.notes, note))
