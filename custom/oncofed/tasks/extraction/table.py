"""A table of extracted slides, by which they are registered elsewhere.

``slides.csv`` has a row a slide: patient, label, split, targets and the other columns of the table that it was
registered with. ``targets.yaml`` says what the columns of targets state, as ``--targets`` reads it.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from oncofed.atomic import write_whole
from oncofed.data.features.kept import OWNERS, TABLE_FILE, Kept
from oncofed.data.manifest import Entry, Manifest
from oncofed.data.targets import DatasetTarget, FollowUp, TargetValue

TARGETS_FILE = "targets.yaml"
_COLUMNS = ("image", "patient", "label", "split")


def write_table(out: Path, manifest: Manifest, kept: Kept) -> None:
    """Write what registering the folder as features asks for.

    Args:
        out: folder of the features.
        manifest: of the dataset that they were extracted from.
        kept: the slides that have features.
    """
    slides = [entry for entry in manifest.entries if entry.name in kept.slides]
    columns = {name: _columns(name, target) for name, target in manifest.targets.items()}
    of_targets = [column for own in columns.values() for column in own]
    tags = sorted({tag for entry in slides for tag in entry.tags} - {*_COLUMNS, *of_targets})
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow([*_COLUMNS, *of_targets, *tags])
    for entry in slides:
        cells: dict[str, str] = {}
        for name, value in entry.targets.items():
            if name in columns:
                cells |= dict(zip(columns[name], _cells(value, manifest.targets[name]), strict=True))
        label = manifest.labels.get(str(entry.label), "") if isinstance(entry.label, int) else ""
        stated = [kept.slides[str(entry.name)].file, entry.patient or "", label, entry.split or ""]
        rows.writerow(
            [*stated, *(cells.get(column, "") for column in of_targets), *(entry.tags.get(tag, "") for tag in tags)]
        )
    write_whole(out / TABLE_FILE, text.getvalue(), OWNERS)
    if manifest.targets:
        targets = {name: _described(name, target, slides) for name, target in manifest.targets.items()}
        described = yaml.safe_dump({"targets": targets}, sort_keys=False, allow_unicode=True)
        write_whole(out / TARGETS_FILE, described, OWNERS)
    else:
        (out / TARGETS_FILE).unlink(missing_ok=True)


def _columns(name: str, target: DatasetTarget) -> list[str]:
    """Return the columns that state a target; names of columns are lower case."""
    if target.kind == "survival":
        return [f"{name} time", f"{name} event"]
    if target.kind == "labels":
        return [f"{name} {number}" for number, _ in enumerate(target.names, start=1)]
    return [f"{name} value"]


def _cells(value: TargetValue, target: DatasetTarget) -> list[str]:
    """Return the cells of these columns."""
    if isinstance(value, FollowUp):
        return [_number(value.time), str(int(value.event))]
    if isinstance(value, dict):
        return ["" if (holds := value.get(finding)) is None else str(int(holds)) for finding in target.names]
    return [value if isinstance(value, str) else _number(value)]


def _described(name: str, target: DatasetTarget, slides: list[Entry]) -> dict[str, Any]:
    """Return what ``--targets`` is told of a target: what was settled once is not asked again."""
    columns = _columns(name, target)
    found: dict[str, Any] = {"kind": target.kind}
    if target.kind == "survival":
        # What a patient's rows must agree on, they did.
        followed = {"time": columns[0], "event": columns[1], "unit": target.unit, "decimal": ".", "one_unit": True}
        return {**found, **followed, "per": "case"}
    if target.kind == "labels":
        return {**found, "findings": dict(zip(target.names, columns, strict=True))}
    found["column"] = columns[0]
    if target.kind == "value":
        numbers = [value for entry in slides if isinstance(value := entry.targets.get(name), int | float)]
        spread = {"range": [min(numbers), max(numbers)]} if len(set(numbers)) > 1 else {}
        return {**found, "unit": target.unit, "decimal": ".", **spread}
    return {**found, "classes" if target.kind == "class" else "grades": list(target.names)}


def _number(value: float) -> str:
    return np.format_float_positional(value, trim="-")
