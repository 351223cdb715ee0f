"""GeoJSON objects for QuPath (RFC 7946), in pixels.

Coordinates are pixels of the finest level, x to the right and y down.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from oncofed.prediction.outputs.polygons import Polygon
from oncofed.report.planes import colour

Kind = Literal["annotation", "detection"]

# Namespace of our identifiers (RFC 9562, section 5.5).
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "oncofed/prediction")


def feature(
    polygons: list[Polygon],
    kind: Kind,
    key: str,
    category: tuple[int, str] | None,
    measurements: Mapping[str, float],
) -> dict[str, Any]:
    """Return one GeoJSON feature.

    Args:
        polygons: with closed rings; several make a MultiPolygon.
        kind: QuPath's object type. Detections cannot be edited and may be numerous.
        key: determines the identifier, so that repeated predictions agree.
        category: label value and name of its class; None: none.
        measurements: by name, as QuPath displays them.
    """
    single = len(polygons) == 1
    properties: dict[str, Any] = {"objectType": kind}
    if category:
        value, name = category
        properties["classification"] = {"name": name, "color": rgb(value)}
    properties["measurements"] = dict(measurements)
    return {
        "type": "Feature",
        "id": str(uuid.uuid5(_NAMESPACE, key)),
        "geometry": {
            "type": "Polygon" if single else "MultiPolygon",
            "coordinates": polygons[0] if single else polygons,
        },
        "properties": properties,
    }


def collection(features: Iterable[Mapping[str, Any]]) -> str:
    """Return a GeoJSON file's text, one object per line."""
    lines = ",\n".join(json.dumps(each, ensure_ascii=False, separators=(",", ":")) for each in features)
    return f'{{"type":"FeatureCollection","features":[\n{lines}\n]}}\n'


def write(features: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Write a GeoJSON file, one object per line, without holding them all."""
    with path.open("w", encoding="utf-8") as file:
        file.write('{"type":"FeatureCollection","features":[\n')
        for number, each in enumerate(features):
            text = json.dumps(each, ensure_ascii=False, separators=(",", ":"))
            file.write(f",\n{text}" if number else text)
        file.write("\n]}\n")


def rectangle(left: float, top: float, right: float, bottom: float) -> Polygon:
    """Return a rectangle as a polygon."""
    return [[[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]]  # type: ignore[list-item]


def rgb(value: int) -> list[int]:
    """Return a label value's colour as RGB."""
    return list(bytes.fromhex(colour(value).removeprefix("#")))
