"""Writes boxes of objects: a table, markups for 3D Slicer, and a label image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nibabel.affines import apply_affine, voxel_sizes
from numpy.typing import NDArray

from oncofed.data.boxes import filled
from oncofed.data.formats.common import LPS_TO_RAS
from oncofed.prediction.case_prediction import CasePrediction
from oncofed.prediction.model import TrainedModel
from oncofed.prediction.outputs.labels import write_labels
from oncofed.prediction.outputs.records import json_text
from oncofed.prediction.outputs.tables import write_rows
from oncofed.tasks.inferred import FoundBoxes, LabelMap

# From this score on a box is drawn and counted.
LIKELY = 0.5
_AXES = "xyz"
_SCHEMA = (
    "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/Schema/"
    "markups-schema-v1.0.3.json#"
)


def write_boxes(prediction: CasePrediction, model: TrainedModel, folder: Path) -> list[Path]:
    """Write every box of one image: ``NAME_boxes.csv``, of a volume also ``NAME_boxes.mrk.json``.

    Corners are in voxels along the stored axes, the first voxel reaching from 0 to 1. Of a volume the centre is in mm
    (LPS, as in DICOM). The size is along the stored axes, in mm where the image says how large its pixels are.
    """
    found, source, names = prediction.found, prediction.source, model.task.classes
    assert isinstance(found, FoundBoxes)
    paths = [folder / f"{source.name}_boxes.csv"]
    columns, rows = box_table(found, names, source.entry.spacing)
    write_rows(paths[0], columns, rows)
    if len(found.shape) == 3:
        paths.append(folder / f"{source.name}_boxes.mrk.json")
        paths[1].write_text(json_text(markups(found, names)), encoding="utf-8")
    return paths


def write_box_labels(prediction: CasePrediction, model: TrainedModel, folder: Path) -> list[Path]:
    """Write the likely boxes of one image as a label image; see ``write_labels``."""
    found = prediction.found
    assert isinstance(found, FoundBoxes)
    likely = found.scores >= LIKELY
    values = torch.from_numpy(filled(found.corners[likely], found.classes[likely], found.shape))
    return write_labels(replace(prediction, found=LabelMap(values, found.affine)), model, folder)


def box_table(
    found: FoundBoxes, names: dict[int, str], spacing: Sequence[float] | None
) -> tuple[list[str], list[list[Any]]]:
    """Return columns, and a row for each box.

    Args:
        found: boxes of an image.
        names: label value -> name.
        spacing: pixel size along each stored axis in mm; None: not known.
    """
    axes = len(found.shape)
    pixel = "px" if axes == 2 else "voxel"
    columns = ["number", "class", "score"]
    columns += [f"{end}_{axis}_{pixel}" for end in ("low", "high") for axis in _AXES[:axes]]
    parts: list[NDArray[np.float64]] = [found.corners.round(3)]
    if axes == 3:
        columns += [f"centre_{axis}_mm_lps" for axis in _AXES]
        parts.append(_centres(found).round(3))
    sides = voxel_sizes(found.affine)[:3] if axes == 3 else spacing
    if sides is not None:
        columns += [f"size_{axis}_mm" for axis in _AXES[:axes]]
        parts.append(((found.corners[:, axes:] - found.corners[:, :axes]) * np.asarray(sides)).round(3))
    numbers = np.concatenate(parts, axis=1).tolist()
    rows = [
        [number, names[int(label)], round(float(score), 4), *row]
        for number, (label, score, row) in enumerate(zip(found.classes, found.scores, numbers, strict=True), start=1)
    ]
    return columns, rows


def markups(found: FoundBoxes, names: dict[int, str]) -> dict[str, Any]:
    """Return a volume's boxes as regions of interest, as 3D Slicer reads them.

    Args:
        found: boxes of a volume.
        names: label value -> name.
    """
    turn = LPS_TO_RAS[:3, :3] @ found.affine[:3, :3] / voxel_sizes(found.affine)
    sizes = (found.corners[:, 3:] - found.corners[:, :3]) * voxel_sizes(found.affine)
    regions = [
        {
            "type": "ROI",
            "coordinateSystem": "LPS",
            "coordinateUnits": "mm",
            "roiType": "Box",
            "label": f"{names[int(label)]} {number}: {score:.2f}",
            "center": centre.round(3).tolist(),
            "orientation": turn.round(6).ravel().tolist(),
            "size": size.round(3).tolist(),
        }
        for number, (label, score, centre, size) in enumerate(
            zip(found.classes, found.scores, _centres(found), sizes, strict=True), start=1
        )
    ]
    return {"@schema": _SCHEMA, "markups": regions}


def _centres(found: FoundBoxes) -> NDArray[np.float64]:
    """Return the centres of a volume's boxes in mm, LPS, (box, 3)."""
    middles = (found.corners[:, :3] + found.corners[:, 3:]) / 2 - 0.5
    return np.asarray(apply_affine(LPS_TO_RAS @ found.affine, middles), np.float64)
