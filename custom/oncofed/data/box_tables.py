"""Boxes of a table, written into a dataset's list.

A row is one object: the corners of its box, or the centre and the diameter of a ball, as LUNA16's ``annotations.csv``
has them (Setio et al., Medical Image Analysis 2017).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
from nibabel.affines import apply_affine, voxel_sizes
from numpy.typing import NDArray

from oncofed.data import boxes
from oncofed.data.boxes import Box, Corners
from oncofed.data.formats.common import LPS_TO_RAS
from oncofed.data.label_names import name_key
from oncofed.data.layouts.tables import Row, Table, read_table
from oncofed.data.manifest import SPLITS, Entry, Manifest, read_manifest, write_manifest
from oncofed.errors import DataError

# What the numbers of a table are: mm of the patient as DICOM and ITK (left, posterior, superior) or NIfTI (right,
# anterior, superior) have them, or voxels of the stored image.
Coordinates = Literal["lps", "ras", "voxels"]

_CASES = ("seriesuid", "image", "case", "name")
_CLASSES = ("class", "label")
_AXES = "xyz"
_TO_RAS = {"lps": LPS_TO_RAS, "ras": np.eye(4)}


@dataclass(frozen=True)
class StatedBoxes:
    """What became of a table.

    Attributes:
        cases: those that have a box now.
        none: those that are known to have none.
        boxes: written in all.
        unknown: rows of images that the dataset does not have.
    """

    cases: int
    none: int
    boxes: int
    unknown: int


def state_boxes(
    folder: Path, table: Path, coordinates: Coordinates, name: str = "", rest_has_none: bool = False
) -> StatedBoxes:
    """Write a table's boxes into a registered dataset.

    Boxes that its cases had are replaced.

    Args:
        folder: of the dataset.
        table: CSV or TSV with the case (``seriesuid``, ``image``, ``case`` or ``name``), and ``coordX``, ``coordY``,
            ``coordZ`` and ``diameter_mm``, or ``low_x`` … ``high_z``; optionally ``class``.
        coordinates: what its numbers are.
        name: class of the boxes where the table has no column for it; empty: label 1, whatever that is called.
        rest_has_none: cases without a row were looked at too, and have no object.

    Raises:
        DataError: the table cannot be used; the message names the line.
    """
    manifest, read = read_manifest(folder), read_table(table)
    columns = _Columns.of(read, table)
    if coordinates == "voxels" and columns.diameter == "diameter_mm":
        raise DataError(
            f"{table}: found the column diameter_mm, expected numbers in voxels (--coordinates voxels). Give lps or "
            "ras with centres in mm; or call the column diameter, with numbers in voxels"
        )
    entries: dict[str, list[Entry]] = defaultdict(list)
    for entry in manifest.entries:
        for key in _keys(entry):
            entries[key].append(entry)
    labels = dict(manifest.labels)
    found: dict[str, list[Box]] = defaultdict(list)
    unknown = 0
    for row in read.rows:
        where = f"{table}: line {row.line}"
        if row.fault:
            raise DataError(f"{where} {row.fault}")
        called = entries.get(row.cells.get(columns.case, ""), [])
        if not called:
            unknown += 1
            continue
        if len(called) > 1:
            names = [_only(entry, entries) for entry in called[:3]]
            raise DataError(
                f"{where}: {len(called)} cases are called {row.cells[columns.case]!r}, expected one. Write in the "
                f"column {columns.case} which it is: {', '.join(names)}{', …' if len(called) > 3 else ''}"
            )
        (entry,) = called
        label = _label(row.cells.get(columns.label, "") or name, labels)
        try:
            corners = _corners(row, columns, entry, coordinates)
        except DataError as error:
            raise DataError(f"{where}: {error}") from None
        box = boxes.rounded(corners)[0].model_copy(update={"label": label})
        if fault := boxes.fault([box], entry.shape or [], [label]):
            raise DataError(f"{where}: {fault.replace('its box 1', 'the box')} (--coordinates {coordinates})")
        own = found[_identity(entry)]
        if any((box.low, box.high) == (other.low, other.high) for other in own):
            raise DataError(f"{where}: the box is that of an earlier row, expected one for each object: leave one out")
        own.append(box)
    if not found:
        cases = sorted(_identity(entry) for entry in manifest.entries)
        raise DataError(
            f"{table}: none of its {len(read.rows)} rows is of a case of {folder.name}. Expected in the column "
            f"{columns.case} what its cases are called: {', '.join(cases[:3])}{', …' if len(cases) > 3 else ''}"
        )
    changed = _with(manifest, found, rest_has_none).model_copy(update={"labels": labels})
    write_manifest(folder, changed)
    none = sum(entry.boxes == [] for entry in changed.entries)
    return StatedBoxes(len(found), none, sum(map(len, found.values())), unknown)


@dataclass(frozen=True)
class _Columns:
    """Columns of a table.

    Attributes:
        case: names the case.
        label: names the class; empty: there is none.
        low: of the low corner, or of the centre where there is a diameter.
        high: of the high corner.
        diameter: of a ball.
    """

    case: str
    label: str
    low: tuple[str, ...]
    high: tuple[str, ...] = ()
    diameter: str = ""

    @classmethod
    def of(cls, table: Table, path: Path) -> _Columns:
        there = set(table.columns)
        case = next((name for name in _CASES if name in there), "")
        label = next((name for name in _CLASSES if name in there), "")
        centre = tuple(f"coord{axis}" for axis in _AXES if f"coord{axis}" in there)
        diameter = next((name for name in ("diameter_mm", "diameter") if name in there), "")
        low, high = (tuple(f"{end}_{axis}" for axis in _AXES if f"{end}_{axis}" in there) for end in ("low", "high"))
        if case and len(centre) > 1 and diameter:
            return cls(case, label, centre, diameter=diameter)
        if case and len(low) > 1 and len(low) == len(high):
            return cls(case, label, low, high)
        raise DataError(
            f"{path}: found the columns {', '.join(table.columns[:12])}; expected one of {', '.join(_CASES)}, and "
            "coordX, coordY, coordZ, diameter_mm or low_x, low_y, low_z, high_x, high_y, high_z"
        )


def _keys(entry: Entry) -> set[str]:
    """Return the names by which a table may call a case."""
    path = PurePosixPath(entry.source or entry.images[0])
    stem = path.name
    for ending in (".gz", ".nii", path.suffix):
        stem = stem.removesuffix(ending)
    return {entry.name or stem, path.name, str(path), stem}


def _only(entry: Entry, entries: Mapping[str, Sequence[Entry]]) -> str:
    """Return the shortest name by which a table may call this case alone."""
    return min((key for key in _keys(entry) if len(entries[key]) == 1), key=len, default=_identity(entry))


def _identity(entry: Entry) -> str:
    return entry.name or entry.images[0]


def _label(name: str, labels: dict[str, str]) -> int:
    """Return the label value of a class's name, which is added where it is new."""
    if not name:
        return 1
    known = {name_key(own): int(float(value)) for value, own in labels.items() if float(value)}
    label = known.get(name_key(name))
    if label is None:
        label = max(known.values(), default=0) + 1
        labels[str(label)] = name
    return label


def _corners(row: Row, columns: _Columns, entry: Entry, coordinates: Coordinates) -> Corners:
    """Return a row's box in voxels of the stored image, (1, 2 * axes).

    Raises:
        DataError: the row or its image does not say where the box is.
    """
    axes = len(entry.shape or ())
    if len(columns.low) != axes:
        raise DataError(
            f"has {len(columns.low)} coordinates, and the image {axes or 'no registered'} axes: expected a coordinate "
            "for each axis"
        )
    low = _numbers(row, columns.low)
    high = _numbers(row, columns.high) if columns.high else low
    if coordinates == "voxels":
        radius = _radius(row, columns)
        return np.array([[*(low - radius), *(high + radius)]])
    if entry.affine is None:
        raise DataError("its image does not say where it lies, so that mm lead nowhere: give --coordinates voxels")
    to_ras, affine = _TO_RAS[coordinates], np.array(entry.affine, np.float64)
    try:
        to_voxels = np.asarray(np.linalg.inv(affine), np.float64)
    except np.linalg.LinAlgError:
        raise DataError(
            "its image's affine in dataset.json is none of a volume: register the folder again, or give --coordinates "
            "voxels"
        ) from None
    ends = apply_affine(to_ras, np.stack([low, high]))
    enclosing = np.array([[*ends.min(axis=0), *ends.max(axis=0)]], np.float64)
    radius = _radius(row, columns) / voxel_sizes(affine)
    # Boxes count from a voxel's edge, mm from its centre.
    found: Corners = boxes.moved(enclosing + 0.5, to_voxels) + np.concatenate([-radius, radius])
    return found


def _radius(row: Row, columns: _Columns) -> float:
    return float(_numbers(row, (columns.diameter,))[0]) / 2 if columns.diameter else 0.0


def _numbers(row: Row, columns: Sequence[str]) -> NDArray[np.float64]:
    found = []
    for column in columns:
        text = row.cells.get(column, "")
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise DataError(f"{column} is {text!r}, expected a number")
        found.append(value)
    return np.array(found)


def _with(manifest: Manifest, found: Mapping[str, list[Box]], rest_has_none: bool) -> Manifest:
    def known(entry: Entry | str) -> Entry | str:
        if isinstance(entry, str):
            return entry
        own = found.get(_identity(entry), [] if rest_has_none else None)
        return entry if own is None else entry.model_copy(update={"boxes": own})

    return manifest.model_copy(update={split: [known(entry) for entry in getattr(manifest, split)] for split in SPLITS})
