"""Objects as QuPath reads them: GeoJSON (RFC 7946) in pixels of an image's finest level, x to the right and y down."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from oncofed.prediction.outputs.polygons import Polygon
from oncofed.report.planes import colour

Kind = Literal["annotation", "detection"]

# Whatever has this namespace was named by oncofed; RFC 9562, section 5.5.
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "oncofed/prediction")


def feature(
    polygons: list[Polygon],
    kind: Kind,
    key: str,
    category: tuple[int, str] | None,
    measurements: Mapping[str, float],
) -> dict[str, Any]:
    """Return one object.

    Args:
        polygons: whose rings are closed; several make a MultiPolygon.
        kind: QuPath's kind of object: a detection is measured and not drawn on, of which there may be many.
        key: what the object's identifier follows from, so that whoever predicts again finds the same.
        category: its class, label value and name; None: it has none.
        measurements: by name, as QuPath shows them.
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
    """Return objects as the text of a GeoJSON file, one a line."""
    lines = ",\n".join(json.dumps(each, ensure_ascii=False, separators=(",", ":")) for each in features)
    return f'{{"type":"FeatureCollection","features":[\n{lines}\n]}}\n'


def rectangle(left: float, top: float, right: float, bottom: float) -> Polygon:
    """Return a rectangle as a polygon."""
    return [[[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]]  # type: ignore[list-item]


def rgb(value: int) -> list[int]:
    """Return a label value's colour as red, green and blue."""
    return list(bytes.fromhex(colour(value).removeprefix("#")))
