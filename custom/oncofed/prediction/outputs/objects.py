"""Writes detected objects: GeoJSON, label image, table, summary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import tifffile
from numpy.typing import NDArray

from oncofed.prediction.case_prediction import CasePrediction
from oncofed.prediction.model import TrainedModel
from oncofed.prediction.outputs import geojson
from oncofed.prediction.outputs.labels import labels_image
from oncofed.prediction.outputs.polygons import object_polygons
from oncofed.prediction.outputs.records import json_text
from oncofed.prediction.outputs.tables import write_rows
from oncofed.tasks.inferred import ObjectMap

Numbers = NDArray[np.int32]
_MICRONS = 1000.0  # per mm
_WITHOUT_SIZE = 1e6  # pixels or voxels of the density's unit if their size is unknown
_AXES = "xyz"


@dataclass(frozen=True)
class ObjectTable:
    """All objects of an image, one per row.

    Attributes:
        numbers: object numbers, (object,), rising.
        sizes: pixels or voxels, (object,) int64.
        centres: centre of mass, (object, axis). The first pixel's centre is at 0.5.
        eccentricity: of the ellipse (or the ellipsoid's largest section) with the same second moments: 0 a circle, near
            1 a line; (object,).
        shape: of the image.
        spacing: pixel size along each axis in mm; None: not known.
    """

    numbers: NDArray[np.int64]
    sizes: NDArray[np.int64]
    centres: NDArray[np.float64]
    eccentricity: NDArray[np.float64]
    shape: tuple[int, ...]
    spacing: tuple[float, ...] | None

    @property
    def micron_sizes(self) -> NDArray[np.float64] | None:
        """Area in µm², or volume in µm³, (object,)."""
        if self.spacing is None:
            return None
        return np.asarray(self.sizes * np.prod(np.array(self.spacing) * _MICRONS), np.float64)

    def columns(self) -> dict[str, list[Any]]:
        """Return the table by column name."""
        flat = len(self.shape) == 2
        pixel, size, power = ("px", "area", "um2") if flat else ("voxel", "volume", "um3")
        found: dict[str, list[Any]] = {"number": self.numbers.tolist()}
        for axis, values in zip(_AXES, self.centres.T, strict=False):
            found[f"centre_{axis}_{pixel}"] = values.round(3).tolist()
        found[f"{size}_{pixel}"] = self.sizes.tolist()
        if self.micron_sizes is not None:
            found[f"{size}_{power}"] = [float(f"{value:.6g}") for value in self.micron_sizes]
        found["eccentricity"] = self.eccentricity.round(4).tolist()
        return found

    def summary(self, name: str) -> dict[str, Any]:
        """Return count, size and density over the whole image."""
        flat = len(self.shape) == 2
        pixel, size = ("px", "area") if flat else ("voxel", "volume")
        everything = float(np.prod(self.shape))
        found: dict[str, Any] = {"value": 1, "name": name, "objects": len(self.sizes)}
        found[f"{size}_{pixel}"] = int(self.sizes.sum())
        found["share_of_image"] = float(self.sizes.sum() / everything)
        if self.spacing is None:
            unit = "megapixel" if flat else "million_voxels"
            return found | {f"per_{unit}": len(self.sizes) / everything * _WITHOUT_SIZE, "size_known": False}
        each = float(np.prod(self.spacing))
        unit = "mm2" if flat else "mm3"
        found |= {f"{size}_{unit}": float(self.sizes.sum() * each), f"image_{unit}": everything * each}
        found |= {f"per_{unit}": len(self.sizes) / (everything * each), "size_known": True}
        if self.micron_sizes is not None and len(self.sizes):
            power = "um2" if flat else "um3"
            found |= {f"mean_{size}_{power}": float(self.micron_sizes.mean())}
            found |= {f"median_{size}_{power}": float(np.median(self.micron_sizes))}
        return found


def measure(numbers: Numbers, spacing: Sequence[float] | None) -> ObjectTable:
    """Measure every object of an image.

    Args:
        numbers: (x, y[, z]), a number for each object, zero elsewhere.
        spacing: pixel size along each axis in mm; None: not known.
    """
    places = np.nonzero(numbers)
    sizes = np.bincount(numbers[places])
    present = np.flatnonzero(sizes)
    row = np.zeros(len(sizes), np.int64)
    row[present] = np.arange(len(present))
    rows, count = row[numbers[places]], len(present)
    sizes = sizes[present]
    sides = np.ones(numbers.ndim) if spacing is None else np.array(spacing, np.float64)
    centres = np.stack([np.bincount(rows, at, count) for at in places], axis=1) / sizes[:, None]
    covariance = np.empty((count, numbers.ndim, numbers.ndim))
    offsets = [(at - centres[rows, axis]) * sides[axis] for axis, at in enumerate(places)]
    for one in range(numbers.ndim):
        for other in range(one, numbers.ndim):
            second = np.bincount(rows, offsets[one] * offsets[other], count) / sizes
            # Second moment of a square pixel.
            covariance[:, one, other] = covariance[:, other, one] = second + (one == other) * sides[one] ** 2 / 12
    spread = np.linalg.eigvalsh(covariance)  # rising
    eccentricity = np.sqrt(np.clip(1 - spread[:, 0] / spread[:, -1], 0, 1))
    known = None if spacing is None else tuple(float(side) for side in spacing)
    return ObjectTable(
        numbers=present,
        sizes=sizes,
        centres=centres + 0.5,
        eccentricity=eccentricity,
        shape=numbers.shape,
        spacing=known,
    )


def object_features(numbers: Numbers, table: ObjectTable, name: str, key: str) -> list[dict[str, Any]]:
    """Return a flat image's objects as GeoJSON features.

    Args:
        numbers: (x, y), a number for each object, zero elsewhere.
        table: of the same objects.
        name: of their class.
        key: determines the objects' identifiers, with their numbers.

    Raises:
        DataError: the image is a volume.
    """
    polygons = object_polygons(numbers)
    microns = table.micron_sizes
    features = []
    for row, (number, size) in enumerate(zip(table.numbers.tolist(), table.sizes.tolist(), strict=True)):
        measurements: dict[str, float] = {"Number": number, "Area px^2": size}
        if microns is not None:
            measurements["Area µm^2"] = float(f"{microns[row]:.6g}")
        measurements["Eccentricity"] = round(float(table.eccentricity[row]), 4)
        features.append(geojson.feature(polygons[number], "detection", f"{key}/{number}", (1, name), measurements))
    return features


def write_objects(prediction: CasePrediction, model: TrainedModel, folder: Path) -> list[Path]:
    """Write the detected objects of one image.

    ``NAME_objects.geojson``, ``NAME_labels.tif``, ``NAME_objects.csv`` and ``NAME_objects.json``; of a volume
    ``NAME_labels.nii.gz`` and no GeoJSON.
    """
    found, source = prediction.found, prediction.source
    assert isinstance(found, ObjectMap)
    name, spacing = model.task.classes[1], source.entry.spacing
    table = measure(found.numbers, spacing)
    paths = {end: folder / f"{source.name}_objects.{end}" for end in ("csv", "json")}
    write_table(table, name, paths["csv"])
    summary = {"case": source.name, "model": model.digest, **table.summary(name)}
    paths["json"].write_text(json_text(summary), encoding="utf-8")
    if found.numbers.ndim == 2:
        paths["geojson"] = folder / f"{source.name}_objects.geojson"
        key = prediction.key(model)
        features = object_features(found.numbers, table, name, key)
        paths["geojson"].write_text(geojson.collection(features), encoding="utf-8")
        paths["labels"] = folder / f"{source.name}_labels.tif"
        write_label_image(found.numbers, spacing, paths["labels"])
    else:
        paths["labels"] = folder / f"{source.name}_labels.nii.gz"
        numbers = found.numbers.astype(_kind(found.numbers))
        nib.save(labels_image(numbers, found.affine, source.case.image), paths["labels"])
    return list(paths.values())


def write_label_image(numbers: Numbers, spacing: Sequence[float] | None, path: Path) -> None:
    """Write a flat label image as 16- or 32-bit TIFF.

    32 bits are used from 65,536 objects on.

    Args:
        numbers: (x, y), a number for each object, zero elsewhere.
        spacing: pixel size along each axis in mm, which goes into the file; None: not known.
        path: of the file.
    """
    size: dict[str, Any] = {}
    if spacing:
        size = {"resolution": tuple(10.0 / side for side in spacing), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(
        path,
        np.ascontiguousarray(numbers.T, _kind(numbers)),
        photometric="minisblack",
        compression="zlib",
        metadata=None,
        **size,
    )


def _kind(numbers: Numbers) -> type[np.unsignedinteger[Any]]:
    return np.uint16 if numbers.max(initial=0) <= np.iinfo(np.uint16).max else np.uint32


def write_table(table: ObjectTable, name: str, path: Path) -> None:
    """Write one CSV row per object.

    Args:
        table: of the objects.
        name: of their class.
        path: of the file.
    """
    columns = table.columns()
    write_rows(path, [*columns, "class"], ([*row, name] for row in zip(*columns.values(), strict=True)))
