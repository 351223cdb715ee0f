"""Polygons of a slide's labels and objects, one strip after the other.

Pieces that end at a strip's edge wait for the next strip and are joined there: only these are held.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from oncofed.prediction.outputs.polygons import Polygon as Rings
from oncofed.prediction.outputs.polygons import object_polygons
from oncofed.tasks.slide_strips import SlideMap

if TYPE_CHECKING:
    from shapely import MultiPolygon, Polygon

# A line of a ring with fewer has no area.
_FEWEST_POINTS = 3
# Of coordinates that are written.
_DECIMALS = 2


@dataclass(frozen=True)
class Piece:
    """One connected area of a slide.

    Attributes:
        value: label value, or number of its object.
        area: in working pixels, exact.
        outline: in working pixels, x to the right and y down.
    """

    value: int
    area: float
    outline: Polygon | MultiPolygon


def pieces(found: SlideMap, whole: bool = False) -> Iterator[Piece]:
    """Yield each connected area of one value, with its holes.

    Outlines run along pixels' edges.

    Args:
        found: on the slide.
        whole: all areas of a value are one piece, as those of an object are.
    """
    import shapely  # noqa: PLC0415 - of the extra pathology

    waiting: dict[int, list[Polygon]] = {}
    for number, strip in enumerate(found.strips):
        last = number + 1 == len(found.strips)
        top, bottom = strip.first, strip.first + strip.shape[0]
        polygons = object_polygons(strip.values.T)
        for value in sorted({*polygons, *waiting}):
            outlines = [_outline(rings, top) for rings in polygons.get(value, ())]
            if value in waiting:
                above = [outline for outline in outlines if outline.bounds[1] == top]
                outlines = [outline for outline in outlines if outline.bounds[1] != top]
                outlines += shapely.get_parts(shapely.union_all([*waiting.pop(value), *above])).tolist()
            goes_on = [outline.bounds[3] == bottom and not last for outline in outlines]
            if any(goes_on):
                waiting[value] = list(outlines if whole else itertools.compress(outlines, goes_on))
                outlines = [] if whole else [one for one, on in zip(outlines, goes_on, strict=True) if not on]
            if whole and outlines:
                shape = shapely.MultiPolygon(outlines) if len(outlines) > 1 else outlines[0]
                yield Piece(value, shape.area, shape)
            else:
                yield from (Piece(value, outline.area, outline) for outline in outlines)


def _outline(rings: Rings, top: int) -> Polygon:
    import shapely  # noqa: PLC0415 - of the extra pathology

    shell, *holes = (np.array(ring, np.float64) + np.array([0, top]) for ring in rings)
    return shapely.Polygon(shell, holes)


def simplified(piece: Piece, tolerance: float, least_area: float) -> Piece | None:
    """Return a piece with fewer points; None where it is too small.

    No point of the outline is farther from the simpler one than the tolerance (Douglas and Peucker, 1973); the simpler
    one is valid, too.

    Args:
        piece: a connected area.
        tolerance: in working pixels.
        least_area: in square working pixels, of the area and of each hole.
    """
    import shapely  # noqa: PLC0415 - of the extra pathology

    if piece.area < least_area:
        return None
    assert isinstance(piece.outline, shapely.Polygon)
    holes = [ring for ring in piece.outline.interiors if shapely.Polygon(ring).area >= least_area]
    kept = shapely.Polygon(piece.outline.exterior, holes)
    # As lines, whose ends stay: a ring's first point may be taken away though it is farther off.
    lines = [
        shapely.LineString(ring.coords).simplify(tolerance, preserve_topology=False) for ring in (kept.exterior, *holes)
    ]
    if all(len(line.coords) > _FEWEST_POINTS for line in lines):
        simple = shapely.Polygon(lines[0], lines[1:])
        if simple.is_valid:
            return Piece(piece.value, piece.area, simple)
    return Piece(piece.value, piece.area, kept.simplify(tolerance / 2, preserve_topology=True))


def on_slide(piece: Piece, pixel: float, size: tuple[int, int]) -> list[Rings]:
    """Return a piece's valid polygons, closed rings in pixels of the slide's finest level.

    Args:
        piece: a connected area.
        pixel: side of a working pixel.
        size: width and height of the slide, beyond which no point lies.

    Returns:
        A list for each polygon; none where nothing of the piece lies on the slide.
    """
    import shapely  # noqa: PLC0415 - of the extra pathology
    from shapely.geometry.polygon import orient  # noqa: PLC0415 - of the extra pathology

    found: list[Any] = []
    for part in shapely.get_parts(piece.outline).tolist():
        for valid in _within(part, pixel, size):
            turned = orient(valid, 1.0)
            rings = (np.array(ring.coords).round(_DECIMALS) for ring in (turned.exterior, *turned.interiors))
            found.append([[[_short(x), _short(y)] for x, y in ring.tolist()] for ring in rings])
    return found


def _within(part: Polygon, pixel: float, size: tuple[int, int]) -> Iterator[Polygon]:
    """Yield what of a polygon in working pixels lies on the slide, to two decimals of a pixel there."""
    import shapely  # noqa: PLC0415 - of the extra pathology

    moved = shapely.transform(part, lambda points: np.minimum(points * pixel, size).round(_DECIMALS))
    if moved.is_valid:
        yield moved
        return
    # Moving points to the slide's edge, or rounding them, made lines meet.
    scaled = shapely.transform(part, lambda points: points * pixel)
    cut = shapely.intersection(scaled, shapely.box(0, 0, *size), grid_size=10**-_DECIMALS)
    yield from (one for one in shapely.get_parts(cut).tolist() if isinstance(one, shapely.Polygon) and one.area)


def _short(value: float) -> float:
    return int(value) if value.is_integer() else value
