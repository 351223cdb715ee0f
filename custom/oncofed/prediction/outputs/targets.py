"""Writes the answers to named targets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from oncofed.prediction.case_prediction import CasePrediction
from oncofed.prediction.model import TrainedModel
from oncofed.prediction.outputs.records import json_text
from oncofed.tasks.inferred import TargetScores
from oncofed.tasks.targets import TargetsTask

# Key of a row whose cells have headings of their own.
COLUMNS = "columns"


def target_rows(prediction: CasePrediction, model: TrainedModel) -> list[dict[str, Any]]:
    """Return one row per number of each target.

    ``answer`` is what the target says in words, ``stated`` what the case does; both are empty where there is nothing.
    """
    task, found = model.task, prediction.found
    assert isinstance(task, TargetsTask)
    assert isinstance(found, TargetScores)
    rows = []
    for name, answer in task.answers(found).items():
        head = task.heads[name]
        stated = prediction.source.case.targets.get(name)
        words = {"answer": head.said(answer), "stated": head.described_truth(stated) if stated else ""}
        numbers = head.described(answer)
        rows += [
            {
                "target": name,
                "kind": head.settings.kind,
                "name": told.name,
                "title": told.title,
                "number": numbers[told.name],
                "unit": told.unit,
                "detail": told.detail,
                **words,
            }
            for told in head.told
        ]
    return rows


def target_records(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return one case's answers by target.

    Args:
        rows: as ``target_rows`` returns them.
    """
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        one = found.setdefault(
            row["target"], {"kind": row["kind"], "answer": row["answer"], "stated": row["stated"], "numbers": {}}
        )
        one["numbers"][row["name"]] = {"title": row["title"], "value": row["number"], "unit": row["unit"]}
    return found


def target_table(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return one row per case with targets.

    Args:
        records: contents of ``case.json``.
    """
    rows = []
    for record in records:
        cells: dict[str, Any] = {}
        for name, one in target_records([row for row in record["figures"] if "target" in row]).items():
            cells |= {f"{name}.{words}": one[words] for words in ("answer", "stated") if one[words]}
            for number, told in one["numbers"].items():
                cells[f"{name}.{number}"] = told["value"]
        if cells:
            rows.append({"case": record["name"], **cells})
    return rows


def columns_of_targets(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, dict[str, str]]]:
    """Return one case's answers in columns: under ``COLUMNS``, heading -> cell; the n-th row has the n-th numbers.

    A heading is a target's name, with the unit of its numbers.

    Args:
        rows: as ``target_rows`` returns them.
    """
    columns: dict[str, list[str]] = {}
    for name, one in target_records(list(rows)).items():
        columns |= _columns(name, one)
    longest = max(map(len, columns.values()), default=0)
    return [
        {COLUMNS: {heading: cells[number] for heading, cells in columns.items() if number < len(cells)}}
        for number in range(longest)
    ]


def _columns(name: str, one: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return heading -> cells of one target: its answer in words, its numbers, and what the case states."""
    numbers = list(one["numbers"].values())
    units = {told["unit"] for told in numbers}
    unit = units.pop() if len(units) == 1 else ""
    if len(numbers) == 1:
        what = "" if numbers[0]["title"] == "value" and not one["answer"] else numbers[0]["title"]
    else:
        what = "numbers" if one["answer"] else ""
    heading = with_unit(f"{name}, {what}" if what else name, unit)
    words = {name: [one["answer"]]} if one["answer"] else {}
    cells = [_number(told, len(numbers) > 1, told["unit"] != unit) for told in numbers]
    stated = {f"{name}, stated": [one["stated"]]} if one["stated"] else {}
    return {**words, **({heading: cells} if cells else {}), **stated}


def _number(told: Mapping[str, Any], titled: bool, with_its_unit: bool) -> str:
    words = (told["title"] * titled, f"{told['value']:.3g}", told["unit"] * with_its_unit)
    return " ".join(word for word in words if word)


def write_targets(prediction: CasePrediction, model: TrainedModel, folder: Path) -> list[Path]:
    """Write ``NAME_targets.json``."""
    rows = target_rows(prediction, model) if prediction.figures is None else prediction.figures
    rows = [row for row in rows if "target" in row]
    path = folder / f"{prediction.source.name}_targets.json"
    record = {"case": prediction.source.name, "model": model.digest, "targets": target_records(rows)}
    path.write_text(json_text(record), encoding="utf-8")
    return [path]


def with_unit(name: str, unit: str) -> str:
    """Return a number's name with its unit, where it has one."""
    return f"{name} ({unit})" if unit else name


def in_short(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return one case's answers in a line.

    Args:
        rows: as ``target_rows`` returns them.
    """
    parts = []
    for name, one in target_records([row for row in rows if not row["detail"]]).items():
        numbers = ", ".join(
            f"{told['title']} {told['value']:.3g} {told['unit']}".strip() for told in one["numbers"].values()
        )
        parts.append(f"{name}: {one['answer'] or numbers}")
    return "; ".join(parts)
