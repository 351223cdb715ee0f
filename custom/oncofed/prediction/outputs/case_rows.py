"""Measurements of a case as table rows, and their display."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from oncofed.prediction.case_prediction import CasePrediction
from oncofed.prediction.model import TrainedModel
from oncofed.prediction.outputs.boxes import LIKELY
from oncofed.prediction.outputs.measurements import measure
from oncofed.prediction.outputs.objects import measure as measure_objects
from oncofed.prediction.outputs.slide_boxes import slide_box_rows
from oncofed.prediction.outputs.slide_maps import object_rows, region_rows
from oncofed.prediction.outputs.targets import COLUMNS, columns_of_targets, target_rows
from oncofed.tasks.inferred import (
    ClassScores,
    FoundBoxes,
    Inferred,
    LabelMap,
    LabelMapWithScores,
    ObjectMap,
    ObjectMapWithScores,
    SlideBoxes,
    TargetScores,
)
from oncofed.tasks.slide_strips import SlideObjectMap, SlideRegions

# Key -> heading and number format.
_SHOWN = {
    "name": ("class", ""),
    "probability": ("probability", ".3f"),
    "objects": ("objects", "d"),
    "per_mm2": ("per mm²", ".1f"),
    "per_mm3": ("per mm³", ".1f"),
    "per_megapixel": ("per megapixel", ".1f"),
    "volume_ml": ("volume ml", ".2f"),
    "area_mm2": ("area mm²", ".2f"),
    "share_of_tissue": ("share of tissue", ".3f"),
    "area_px": ("area px", ".0f"),
    "longest_mm": ("longest mm", ".1f"),
    "longest_px": ("longest px", ".1f"),
    "short_mm": ("short axis mm", ".1f"),
    "short_px": ("short axis px", ".1f"),
    "longest_3d_mm": ("longest 3D mm", ".1f"),
    "pieces": ("pieces", "d"),
}


def case_rows(prediction: CasePrediction, model: TrainedModel) -> list[dict[str, Any]]:
    """Return one row per class, as ``measurements.csv`` has it."""
    if prediction.figures is not None:
        return prediction.figures
    figures = next(figures for kind, figures in _FIGURES.items() if isinstance(prediction.found, kind))
    return figures(prediction, model)


def short_rows(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the rows of a ``case.json`` that short tables show; targets lie side by side, in columns of their own."""
    rows = [row for row in record["figures"] if not row.get("detail")]
    return [*(row for row in rows if "target" not in row), *columns_of_targets(row for row in rows if "target" in row)]


def display_table(rows: Iterable[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Return headings and formatted cells; the class comes first, targets last.

    Args:
        rows: as ``short_rows`` returns them.
    """
    rows = list(rows)
    names = [name for name in _SHOWN if any(row.get(name) not in (None, "") for row in rows)]
    targets = list(dict.fromkeys(heading for row in rows for heading in row.get(COLUMNS, ())))
    return [*(_SHOWN[name][0] for name in names), *targets], [
        [
            *("" if name not in row else _cell(row[name], _SHOWN[name][1]) for name in names),
            *(row.get(COLUMNS, {}).get(heading, "") for heading in targets),
        ]
        for row in rows
    ]


def _cell(value: Any, form: str) -> str:
    if value is None:
        return "–"
    if form == _SHOWN["probability"][1]:
        # Three digits would round to 0 or 1, but no network is ever certain.
        return "> 0.999" if value >= 0.9995 else "< 0.001" if value < 0.0005 else format(value, form)
    return format(value, form)


def _sizes(prediction: CasePrediction, model: TrainedModel) -> list[dict[str, Any]]:
    found, case = prediction.found, prediction.source.case
    assert isinstance(found, LabelMap)
    calibrated = prediction.source.entry.spacing is not None or case.spacing is not None or found.values.ndim == 3
    sizes = measure(found.values.cpu().numpy(), found.affine, model.task.classes, calibrated)
    return [size.figures() for size in sizes]


def _sizes_and_targets(prediction: CasePrediction, model: TrainedModel) -> list[dict[str, Any]]:
    return [*_sizes(prediction, model), *target_rows(prediction, model)]


def _count(prediction: CasePrediction, model: TrainedModel) -> list[dict[str, Any]]:
    assert isinstance(prediction.found, ObjectMap)
    table = measure_objects(prediction.found.numbers, prediction.source.entry.spacing)
    return [table.summary(model.task.classes[1])]


def _count_and_targets(prediction: CasePrediction, model: TrainedModel) -> list[dict[str, Any]]:
    return [*_count(prediction, model), *target_rows(prediction, model)]


def _boxes(prediction: CasePrediction, model: TrainedModel) -> list[dict[str, Any]]:
    found = prediction.found
    assert isinstance(found, FoundBoxes)
    likely = found.classes[found.scores >= LIKELY].tolist()
    return [
        {"value": value, "name": name, "objects": likely.count(value)} for value, name in model.task.classes.items()
    ]


def _probabilities(prediction: CasePrediction, model: TrainedModel) -> list[dict[str, Any]]:
    assert prediction.probabilities is not None
    shares = zip(model.task.classes.items(), prediction.probabilities.tolist(), strict=True)
    calibrated = prediction.temperature is not None
    return [
        {"value": value, "name": name, "probability": share, "calibrated": calibrated}
        for (value, name), share in shares
    ]


_FIGURES: dict[type[Inferred], Callable[[CasePrediction, TrainedModel], list[dict[str, Any]]]] = {
    LabelMapWithScores: _sizes_and_targets,
    LabelMap: _sizes,
    ObjectMapWithScores: _count_and_targets,
    ObjectMap: _count,
    SlideRegions: region_rows,
    SlideObjectMap: object_rows,
    SlideBoxes: slide_box_rows,
    FoundBoxes: _boxes,
    ClassScores: _probabilities,
    TargetScores: target_rows,
}
