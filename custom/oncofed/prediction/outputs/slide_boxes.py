"""Writes boxes that were found on a slide, as QuPath reads them.

Coordinates are pixels of the slide's finest level, x to the right and y down.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from oncofed.prediction.case_prediction import CasePrediction
from oncofed.prediction.model import TrainedModel
from oncofed.prediction.outputs import geojson
from oncofed.prediction.outputs.boxes import LIKELY, box_table
from oncofed.prediction.outputs.records import json_text
from oncofed.prediction.outputs.slide_density import CELL_MM, write_density
from oncofed.prediction.outputs.slide_maps import share
from oncofed.prediction.outputs.tables import write_rows
from oncofed.tasks.inferred import SlideBoxes


def slide_box_rows(prediction: CasePrediction, model: TrainedModel) -> list[dict[str, Any]]:
    """Return the likely boxes of each class on a slide, counted and by area of tissue."""
    found = prediction.found
    assert isinstance(found, SlideBoxes)
    likely = found.classes[found.scores >= LIKELY].tolist()
    return [
        {
            "value": value,
            "name": name,
            "objects": likely.count(value),
            "per_mm2": share(likely.count(value), found.tissue_mm2),
            "tissue_mm2": found.tissue_mm2,
        }
        for value, name in model.task.classes.items()
    ]


def write_slide_boxes(prediction: CasePrediction, model: TrainedModel, folder: Path) -> list[Path]:
    """Write a slide's boxes.

    The likely ones as ``NAME_boxes.geojson``, all of them as ``NAME_boxes.csv``, counts as ``NAME_boxes.json`` and
    ``NAME_density.png``.

    Raises:
        DataError: the slide cannot be read.
    """
    found, source, names = prediction.found, prediction.source, model.task.classes
    assert isinstance(found, SlideBoxes)
    paths = prediction.files(folder, "boxes.geojson", "boxes.csv", "boxes.json", "density.png")
    key = prediction.key(model)
    likely = np.flatnonzero(found.scores >= LIKELY).tolist()
    features = (
        geojson.feature(
            [geojson.rectangle(*found.corners[number].round(2).tolist())],
            "detection",
            f"{key}/{number + 1}",
            (int(found.classes[number]), names[int(found.classes[number])]),
            {"Number": number + 1, "Score": round(float(found.scores[number]), 4)},
        )
        for number in likely
    )
    geojson.write(features, paths[0])
    write_rows(paths[1], *box_table(found, names, (found.pixel_mm,) * 2))
    rows = prediction.figures or slide_box_rows(prediction, model)
    record = {"case": source.name, "model": model.digest, "least_score": LIKELY, "classes": rows}
    paths[2].write_text(json_text(record), encoding="utf-8")
    middles = (found.corners[likely, :2] + found.corners[likely, 2:]) / 2 * found.pixel_mm / CELL_MM
    counts = np.zeros([int(side * found.pixel_mm // CELL_MM) + 1 for side in found.shape[::-1]], np.int64)
    np.add.at(counts, tuple(middles.astype(int).T[::-1]), 1)
    write_density(counts, source, model, paths[3])
    return paths
