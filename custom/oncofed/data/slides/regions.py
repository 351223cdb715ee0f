"""Regions drawn on a slide.

GeoJSON (RFC 7946) in pixels of the finest level.

QuPath writes a FeatureCollection, a list of features or one feature, with the class in ``properties.classification``;
other tools write it as text, or as ``name`` or ``label``.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oncofed.errors import DataError

SUFFIXES = (".geojson", ".json")

_NO_AREA = {"Point": "point", "MultiPoint": "point", "LineString": "line", "MultiLineString": "line"}
_CORNERS = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]])
_CLASS_KEYS = ("classification", "class", "label", "PartOfGroup", "group")
_TITLE_KEYS = ("name", "Name")
_BEYOND = 0.01
_NO_CLASS = "without a class"

Ring = NDArray[np.float64]


@dataclass(frozen=True)
class Region:
    """One drawn region.

    Attributes:
        number: in its file, from 1.
        name: of its class, if any.
        title: text that QuPath shows at a region, which may or may not be its class.
        polygons: rings of each, the outer one first, then its holes, (point, 2) in pixels.
        left_out: kinds of geometry without an area, such as "line".
        points: single ones, (2,) in pixels.
    """

    number: int
    name: str | None
    title: str | None
    polygons: list[list[Ring]]
    left_out: list[str] = field(default_factory=list)
    points: list[Ring] = field(default_factory=list)


@dataclass(frozen=True)
class Drawn:
    """Regions on a grid of cells.

    Attributes:
        cells: (row, column) label values, 0 outside.
        notes: for people.
        values: label values of all that was drawn, however small, those of points included.
    """

    cells: NDArray[np.int64]
    notes: list[str]
    values: frozenset[int] = frozenset()


def is_regions(path: Path) -> bool:
    """Return whether a file holds drawn regions, by name."""
    return path.suffix.lower() in SUFFIXES


def label_values(paths: Iterable[Path]) -> dict[str, int]:
    """Return class -> label value of files of regions.

    From 1, in alphabetical order. Unreadable files are skipped: reading their slides reports them.
    """
    regions: list[Region] = []
    for path in paths:
        with contextlib.suppress(DataError):
            regions += read_regions(path)
    found = {region.name for region in regions if region.name} or {region.title for region in regions if region.title}
    names = {_key(name): name for name in sorted(found, reverse=True)}
    return {name: value for value, name in enumerate(sorted(names.values(), key=str.casefold), start=1)}


def read_regions(path: Path) -> list[Region]:
    """Read a GeoJSON file of any root type.

    A FeatureCollection, a Feature, a geometry, or a list of these.

    Raises:
        DataError: it is none of them, or one of its features is invalid; the message gives the feature's number.
    """
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"its file of regions cannot be read ({error.strerror})") from None
    except RecursionError:
        raise DataError("its file of regions is nested too deeply for GeoJSON. Export it again") from None
    except ValueError as error:
        where = f" (line {error.lineno})" if isinstance(error, json.JSONDecodeError) else ""
        raise DataError(f"its file of regions is no JSON text{where}. Export it again as GeoJSON") from None
    return [_region(number, feature) for number, feature in enumerate(_features(content), start=1)]


def with_squares(regions: Iterable[Region], side: float) -> list[Region]:
    """Return regions with a square around each of their points.

    Args:
        regions: from ``read_regions``.
        side: of a square in pixels.
    """
    return [
        replace(one, polygons=[*one.polygons, *([point + side * _CORNERS] for point in one.points)], points=[])
        for one in regions
    ]


def draw(
    regions: Sequence[Region], names: Mapping[str, int], cell: float, shape: tuple[int, int], size: tuple[int, int]
) -> Drawn:
    """Draw regions into a grid of cells.

    A cell belongs to a region if its centre does; of two regions, to the later one. A hole is no part of its polygon,
    but may be covered by others: RFC 7946, section 3.1.6.

    Args:
        regions: from ``read_regions``.
        names: class -> label value; empty: every region is 1.
        cell: side of a cell in pixels of the slide.
        shape: rows and columns of cells.
        size: width and height of the slide in pixels.

    Raises:
        DataError: a class is not among ``names``, or no region has one, or all lie outside the slide.
    """
    values = values_of(regions, names)
    notes = _left_out(regions, values)
    require_on_slide(regions, size, notes)
    cells = np.zeros(shape, np.int64)
    overlap = False
    for region in regions:
        value = values.get(region.number, 0)
        for rings in region.polygons if value else ():
            part = fill(rings, cell, shape)
            if part is not None:
                box, inside = part
                before = cells[box][inside]
                overlap |= bool(((before != 0) & (before != value)).any())
                cells[box][inside] = value
    if overlap:
        notes.append("regions of two classes overlap: the one that comes later in the file holds there")
    return Drawn(cells, notes, frozenset(values.values()) | _values_of_points(regions, names))


# --- reading a file


def _features(content: Any) -> Iterator[Any]:
    if isinstance(content, list):
        for item in content:
            yield from _features(item)
    elif isinstance(content, dict) and (content.get("type") == "FeatureCollection" or "features" in content):
        features = content.get("features")
        if not isinstance(features, list):
            raise DataError(
                "its file of regions is a FeatureCollection without a list of features. Export it again as GeoJSON"
            )
        yield from features
    elif isinstance(content, dict) and ("geometry" in content or "type" in content):
        yield content
    else:
        keys = ", ".join(sorted(map(str, content))[:5]) if isinstance(content, dict) else ""
        found = f"an object with {keys}" if keys else "no feature"
        raise DataError(f"its file of regions holds {found}, expected a GeoJSON FeatureCollection")


def _region(number: int, feature: Any) -> Region:
    """Return a feature, or a bare geometry, as a region."""
    if not isinstance(feature, dict):
        raise DataError(f"its region {number} is no GeoJSON feature, expected one with a type and a geometry")
    geometry = feature.get("geometry") if "geometry" in feature or feature.get("type") == "Feature" else feature
    region = Region(number, *_class_of(number, feature), [])
    if geometry is None:
        region.left_out.append("region without a geometry")
    else:
        _add(region, geometry)
    return region


def _add(region: Region, geometry: Any) -> None:
    """Add a geometry's polygons to a region."""
    kind = geometry.get("type") if isinstance(geometry, dict) else None
    if kind == "GeometryCollection":
        for part in geometry.get("geometries") or []:
            _add(region, part)
    elif kind in _NO_AREA:
        region.left_out.append(_NO_AREA[kind])
        if _NO_AREA[kind] == "point":
            region.points.extend(_points(region.number, geometry))
    elif kind in {"Polygon", "MultiPolygon"}:
        coordinates = geometry.get("coordinates") or []
        try:
            polygons = [[_ring(ring) for ring in p] for p in (coordinates if kind == "MultiPolygon" else [coordinates])]
        except (TypeError, ValueError, IndexError):
            raise DataError(
                f"its region {region.number} ({kind}) has coordinates that are no rings of points, expected lists of "
                "[x, y] in pixels"
            ) from None
        closed = [rings for rings in polygons if rings and len(rings[0]) >= 3]
        region.left_out.extend(["polygon of fewer than three points"] * (len(polygons) - len(closed)))
        region.polygons.extend(closed)
    else:
        named = f"the geometry {kind!r}" if isinstance(kind, str) else "no geometry with a type"
        raise DataError(f"its region {region.number} has {named}, expected Polygon or MultiPolygon")


def _points(number: int, geometry: Mapping[str, Any]) -> list[Ring]:
    """Return the points of a Point or a MultiPoint."""
    coordinates = geometry.get("coordinates") or []
    try:
        found = [coordinates] if geometry["type"] == "Point" and coordinates else coordinates
        return [np.array(_ring([point])[0]) for point in found]
    except (TypeError, ValueError, IndexError):
        raise DataError(
            f"its region {number} ({geometry['type']}) has coordinates that are no points, expected [x, y] in pixels"
        ) from None


def _ring(points: Any) -> Ring:
    """Return a ring without its closing point.

    Raises:
        ValueError: a coordinate is not a finite number.
    """
    ring = np.array([(float(point[0]), float(point[1])) for point in points], np.float64).reshape(-1, 2)
    if not np.isfinite(ring).all():
        raise ValueError
    return ring[:-1] if len(ring) > 1 and (ring[0] == ring[-1]).all() else ring


def _class_of(number: int, feature: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Return the name of a feature's class, and its title."""
    properties = feature.get("properties")
    if properties is None:
        return None, None
    if not isinstance(properties, dict):
        raise DataError(f"its region {number} has properties that are no object, expected its class there")
    name, title = (
        next(filter(None, (_name(properties.get(key)) for key in keys)), None) for keys in (_CLASS_KEYS, _TITLE_KEYS)
    )
    # In files of tools other than QuPath, which writes objectType, the title is the class.
    return (name, title) if name or "objectType" in properties else (title, None)


def _name(value: Any) -> str | None:
    """Return a class's name, or None.

    From a text, a number, or an object that holds it.
    """
    if isinstance(value, dict):
        parts = value.get("names")
        joined = ": ".join(map(str, parts)) if isinstance(parts, list) else None
        return _name(value.get("name")) or joined or _name(value.get("label"))
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:g}"
    return value.strip() or None if isinstance(value, str) else None


# --- label values of regions


def values_of(regions: Sequence[Region], names: Mapping[str, int]) -> dict[int, int]:
    """Return number -> label value of classified regions.

    Args:
        regions: from ``read_regions``.
        names: class -> label value; empty: every region is 1.

    Raises:
        DataError: a class is not among the names, or no region has one.
    """
    found = sorted({region.name for region in regions if region.name and region.polygons})
    if not names:
        if len({_key(name) for name in found}) > 1:
            raise DataError(f"its regions are of the classes {', '.join(found)}, expected a value for each (--labels)")
        return {region.number: 1 for region in regions if region.name or not found}
    known = {**{str(value): value for value in names.values()}, **{_key(n): value for n, value in names.items()}}
    values = {}
    for region in regions:
        name = region.name or (region.title if _key(region.title or "") in known else None)
        if not name or not region.polygons:
            continue
        if _key(name) not in known:
            raise DataError(
                f"its region {region.number} is of the class {name!r}, expected one of "
                f"{', '.join(name for name, value in sorted(names.items()) if value)} (--labels)"
            )
        values[region.number] = known[_key(name)]
    if any(region.polygons for region in regions) and not values:
        count = sum(bool(region.polygons) for region in regions)
        raise DataError(f"none of its {count} regions has a class, expected one of {', '.join(sorted(names))}")
    return values


def _values_of_points(regions: Sequence[Region], names: Mapping[str, int]) -> set[int]:
    known = {_key(name): value for name, value in names.items()}
    points = [_key(region.name or region.title or "") for region in regions if region.points]
    return {known[key] for key in points if key in known} if names else {1 for _ in points}


def _key(name: str) -> str:
    return " ".join(name.casefold().split())


def _left_out(regions: Sequence[Region], values: Mapping[int, int]) -> list[str]:
    kinds = Counter(kind for region in regions for kind in region.left_out)
    kinds[_NO_CLASS] = sum(bool(region.polygons) and region.number not in values for region in regions)
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()) if count)
    return [f"regions left out: {counts}"] if counts else []


def require_on_slide(regions: Sequence[Region], size: tuple[int, int], notes: list[str]) -> None:
    """Raise where no region lies on a slide; a note says where some reach beyond it.

    Args:
        regions: from ``read_regions``.
        size: width and height of the slide in pixels.
        notes: takes the note.

    Raises:
        DataError: all lie beside it.
    """
    rings = [rings[0] for region in regions for rings in region.polygons]
    if not rings:
        return
    low = np.min([ring.min(axis=0) for ring in rings], axis=0)
    high = np.max([ring.max(axis=0) for ring in rings], axis=0)
    reach = f"from ({low[0]:.0f}, {low[1]:.0f}) to ({high[0]:.0f}, {high[1]:.0f}), the slide has {size[0]} x {size[1]}"
    if (low >= size).any() or (high <= 0).any():
        raise DataError(f"its regions lie beside the slide: {reach}. Expected pixels of the finest level")
    if (low < -_BEYOND * np.array(size)).any() or (high > (1 + _BEYOND) * np.array(size)).any():
        notes.append(f"its regions reach beyond the slide: {reach} pixels")


# --- drawing


def fill(rings: Sequence[Ring], cell: float, shape: tuple[int, int]) -> tuple[tuple[slice, slice], Any] | None:
    """Return a polygon's box and cells; None: empty."""
    outer = rings[0] / cell
    first = np.maximum(np.floor(outer.min(axis=0)), 0).astype(int)
    last = np.minimum(np.ceil(outer.max(axis=0)).astype(int), shape[::-1])
    if (last <= first).any():
        return None
    width, height = (int(n) for n in last - first)
    inside = _inside(outer - first, width, height)
    for hole in rings[1:]:
        if len(hole) >= 3:
            inside &= ~_inside(hole / cell - first, width, height)
    return (slice(int(first[1]), int(last[1])), slice(int(first[0]), int(last[0]))), inside


def _inside(ring: Ring, width: int, height: int) -> NDArray[np.bool_]:
    """Return the cells whose centres a ring encloses.

    Those with a winding number other than zero.
    """
    start, end = ring, np.roll(ring, -1, axis=0)
    # Rows whose centres an edge crosses, with its lower end and without its upper one.
    low, high = np.minimum(start[:, 1], end[:, 1]), np.maximum(start[:, 1], end[:, 1])
    first = np.clip(np.ceil(low - 0.5), 0, height).astype(int)
    counts = np.maximum(np.clip(np.ceil(high - 0.5), 0, height).astype(int) - first, 0)
    edges = np.repeat(np.arange(len(ring)), counts)
    rows = np.arange(len(edges)) - np.repeat(np.cumsum(counts) - counts, counts) + first[edges]
    a, b = start[edges], end[edges]
    x = a[:, 0] + (rows + 0.5 - a[:, 1]) / (b[:, 1] - a[:, 1]) * (b[:, 0] - a[:, 0])
    columns = np.clip(np.ceil(x - 0.5), 0, width).astype(int)
    turns = np.zeros((height, width + 1), np.int32)
    np.add.at(turns, (rows, columns), np.where(b[:, 1] > a[:, 1], 1, -1))
    inside: NDArray[np.bool_] = turns.cumsum(axis=1)[:, :width] != 0
    return inside
