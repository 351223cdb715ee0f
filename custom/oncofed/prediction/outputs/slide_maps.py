"""Writes what was found all over a slide: regions and single objects.

Coordinates are pixels of the slide's finest level, x to the right and y down.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oncofed.data.slides.canvas import SlideCanvas
from oncofed.prediction.case_prediction import CasePrediction
from oncofed.prediction.model import TrainedModel
from oncofed.prediction.outputs import geojson
from oncofed.prediction.outputs.records import json_text
from oncofed.prediction.outputs.slide_density import CELL_MM, over, write_density
from oncofed.prediction.outputs.slide_outlines import on_slide, pieces, simplified
from oncofed.prediction.outputs.slide_pictures import write_classes_picture, write_heat_picture
from oncofed.tasks.slide_strips import SlideObjectMap, SlideRegions
from oncofed.tasks.whole_slide.scoring import on_overview

_MICRON2_PER_MM2 = 1e6
# Of outlines, where a job of tiles does not say: microns, and square microns, less than any nucleus has.
_TOLERANCE, _LEAST_AREA = 2.0, 10.0


def region_rows(prediction: CasePrediction, model: TrainedModel) -> list[dict[str, Any]]:
    """Return each class's area on a slide, as ``measurements.csv`` has it."""
    found = prediction.found
    assert isinstance(found, SlideRegions)
    counts = found.pixels(max(model.task.classes) + 1)
    return [
        {
            "value": value,
            "name": name,
            "area_mm2": float(counts[value] * found.pixel_mm2),
            "share_of_tissue": share(float(counts[value] * found.pixel_mm2), found.tissue_mm2),
            "tissue_mm2": found.tissue_mm2,
        }
        for value, name in model.task.classes.items()
    ]


def object_rows(prediction: CasePrediction, model: TrainedModel) -> list[dict[str, Any]]:
    """Return each kind's objects on a slide, counted and by area of tissue."""
    found = prediction.found
    assert isinstance(found, SlideObjectMap)
    sizes = object_sizes(found)
    rows = []
    for value, name in model.task.classes.items():
        of_kind = sizes[(found.classes == value) & (sizes > 0)]
        area = float(of_kind.sum() * found.pixel_mm2)
        row = {
            "value": value,
            "name": name,
            "objects": len(of_kind),
            "per_mm2": share(len(of_kind), found.tissue_mm2),
            "area_mm2": area,
            "tissue_mm2": found.tissue_mm2,
        }
        rows.append(row | ({"mean_area_um2": area / len(of_kind) * _MICRON2_PER_MM2} if len(of_kind) else {}))
    return rows


def object_sizes(found: SlideObjectMap) -> NDArray[np.int64]:
    """Return the pixels of each object, (object + 1,)."""
    sizes = np.zeros(len(found.classes), np.int64)
    for strip in found.strips:
        sizes += np.bincount(strip.values.ravel(), minlength=len(sizes))
    sizes[0] = 0
    return sizes


def write_slide_regions(prediction: CasePrediction, model: TrainedModel, folder: Path) -> list[Path]:
    """Write a slide's regions.

    ``NAME_regions.geojson``, ``NAME_regions.json``, ``NAME_classes.png`` and ``NAME_likelihood.png``.

    Raises:
        DataError: the slide cannot be read.
    """
    found, source = prediction.found, prediction.source
    assert isinstance(found, SlideRegions)
    task = model.job.task
    tolerance, least = getattr(task, "tolerance", _TOLERANCE), getattr(task, "least_area", _LEAST_AREA)
    paths = prediction.files(folder, "regions.geojson", "regions.json", "classes.png", "likelihood.png")
    counts: dict[int, int] = dict.fromkeys(model.task.classes, 0)
    too_small = counts.copy()
    key = prediction.key(model)

    def features() -> Iterator[dict[str, Any]]:
        mpp = found.pixel_mm2**0.5 * 1000
        for number, piece in enumerate(pieces(found)):
            simple = simplified(piece, tolerance / mpp, least / mpp**2)
            polygons = on_slide(simple, found.pixel, found.finest) if simple else []
            if not polygons:
                too_small[piece.value] += 1
                continue
            counts[piece.value] += 1
            area = {"Area mm^2": float(f"{piece.area * found.pixel_mm2:.6g}")}
            yield geojson.feature(polygons, "annotation", f"{key}/{number}", _class(model, piece.value), area)

    geojson.write(features(), paths[0])
    rows = [
        {**row, "pieces": counts[row["value"]], "pieces_not_outlined": too_small[row["value"]]}
        for row in prediction.figures or region_rows(prediction, model)
    ]
    outlines = {"tolerance_um": tolerance, "least_area_um2": least}
    record = {"case": source.name, "model": model.digest, **outlines, "classes": rows}
    paths[1].write_text(json_text(record), encoding="utf-8")
    with SlideCanvas(source.case.image, model.job.data, model.job.data.patch[0]) as canvas:
        pixels, scale = canvas.overview
        mpp = canvas.mpp * scale
        write_classes_picture(pixels, on_overview(found, canvas), model.task.classes, mpp, paths[2])
        heat = over((found.heat / 255).astype(np.float32), pixels.shape[:2], found.shrink / scale)
        write_heat_picture(pixels, heat, 1.0, f"probability of {_likeliest(model)}", mpp, paths[3])
    return paths


def write_slide_objects(prediction: CasePrediction, model: TrainedModel, folder: Path) -> list[Path]:
    """Write a slide's single objects.

    ``NAME_objects.geojson``, ``NAME_objects.csv``, ``NAME_objects.json`` and ``NAME_density.png``.

    Raises:
        DataError: the slide cannot be read.
    """
    found, source = prediction.found, prediction.source
    assert isinstance(found, SlideObjectMap)
    paths = prediction.files(folder, "objects.geojson", "objects.csv", "objects.json", "density.png")
    key = prediction.key(model)
    cell = CELL_MM / found.pixel_mm2**0.5  # in working pixels
    density = np.zeros([int(side // cell) + 1 for side in found.size[::-1]], np.int64)
    with paths[1].open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["number", "centre_x_px", "centre_y_px", "area_um2", "class"])

        def features() -> Iterator[dict[str, Any]]:
            for piece in pieces(found, whole=True):
                polygons = on_slide(piece, found.pixel, found.finest)
                if not polygons:
                    continue
                value = int(found.classes[piece.value])
                area = float(f"{piece.area * found.pixel_mm2 * _MICRON2_PER_MM2:.6g}")
                x, y = piece.outline.centroid.coords[0]
                density[int(y / cell), int(x / cell)] += 1
                table.writerow(
                    [piece.value, round(x * found.pixel, 2), round(y * found.pixel, 2), area, model.task.classes[value]]
                )
                numbers = {"Number": piece.value, "Area µm^2": area}
                yield geojson.feature(polygons, "detection", f"{key}/{piece.value}", _class(model, value), numbers)

        geojson.write(features(), paths[0])
    rows = prediction.figures or object_rows(prediction, model)
    record = {"case": source.name, "model": model.digest, "kinds": rows}
    paths[2].write_text(json_text(record), encoding="utf-8")
    write_density(density, source, model, paths[3])
    return paths


def _likeliest(model: TrainedModel) -> str:
    """Return what a map of likelihood is of; of several tissues, any one of them tells little."""
    names = list(model.task.classes.values())
    return names[0] if len(names) == 1 else "the likeliest class"


def _class(model: TrainedModel, value: int) -> tuple[int, str]:
    return value, model.task.classes[value]


def share(part: float, whole: float) -> float:
    """Return a part of a whole; 0 of nothing."""
    return part / whole if whole else 0.0
