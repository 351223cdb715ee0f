"""Writes slide predictions: GeoJSON, attention maps, top tiles.

Coordinates are pixels of the slide's finest level, x to the right and y down.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import rankdata

from oncofed.data.layouts.base import first_free
from oncofed.prediction.case_prediction import CasePrediction
from oncofed.prediction.model import TrainedModel
from oncofed.prediction.outputs import geojson
from oncofed.prediction.outputs.heatmap import blended_colours, overlay_heatmap
from oncofed.prediction.outputs.tables import write_rows
from oncofed.prediction.outputs.targets import in_short, target_rows, with_unit
from oncofed.prediction.sources import Source, file_name
from oncofed.tasks.canvas import Canvas, open_canvas
from oncofed.tasks.inferred import SlideScores, SlideTargetScores, TileAttention

TOP_TILES = 12

# Pixels of the overlay's finest level in total, and along one attention tile.
_MOST_PIXELS, _TILE_PIXELS = 1 << 26, 64
_BLOCK = 256  # side of the overlay's own tiles
_QUALITY = 90
_PICTURE, _MARGIN, _COLOUR_BAR = 8.0, 0.4, 0.8  # inches: the slide's longer side, what surrounds it
_BELOW = 0.35  # inches, for the bar of length
_BAR = 0.25  # of the picture's width, at most
# Colours of attention: of a slide's thousands of tiles few have a share that a linear scale shows.
_GAMMA = 0.6


@dataclass(frozen=True)
class TileHeat:
    """Attention of each tile of a slide.

    Attributes:
        attention: sums to one over a case, (tile,) float32.
        places: upper left corners, (tile, 2) int32: x and y.
        step: side of a tile in pixels.
        largest: what is drawn as one; None: the largest of these.
    """

    attention: NDArray[np.float32]
    places: NDArray[np.int32]
    step: float
    largest: float | None = None

    @property
    def percentiles(self) -> NDArray[np.float64]:
        """Percentile rank of each tile, (tile,); ties share their mean."""
        return np.asarray(100 * rankdata(self.attention) / max(len(self.attention), 1))

    @property
    def order(self) -> NDArray[np.int64]:
        """Tile indices by falling attention, (tile,)."""
        return np.argsort(-self.attention, kind="stable")

    def drawn(self, shape: tuple[int, ...], scale: float) -> NDArray[np.float32]:
        """Return the relative attention as a picture (row, column).

        Args:
            shape: its rows and columns.
            scale: downsampling relative to the finest level.
        """
        tiles = TileAttention(self.attention, self.places, largest=self.largest)
        return tiles.drawn(shape, self.step, scale)


def write_slide(prediction: CasePrediction, model: TrainedModel, folder: Path) -> list[Path]:
    """Write a slide's class and the attention of its tiles.

    ``NAME_slide.geojson``; where the network gives attention also ``NAME_attention.png``, ``NAME_attention.tif``,
    ``NAME_tiles.csv`` and ``NAME_tile_RANK.png``. Of a patient with several slides each slide has these, under
    ``NAME_SLIDE``. Vectors without a place, and without their slide's file, have none.

    Raises:
        DataError: the slide cannot be read, or was cut otherwise than the job's slides are.
    """
    with tempfile.TemporaryDirectory(dir=folder, prefix=".") as unfinished:
        written = []
        for number, name in enumerate(_names(prediction.source)):
            written += _write_slide(prediction, model, number, name, Path(unfinished))
        return [path.replace(folder / path.name) for path in written]


def _names(source: Source) -> list[str]:
    """Return the beginnings of the names of each slide's files."""
    slides = source.case.slides
    if len(slides) == 1:
        return [source.name]
    names: list[str] = []
    for slide in slides:
        names.append(first_free(f"{source.name}_{file_name(slide.name)}", names))
    return names


def _write_slide(prediction: CasePrediction, model: TrainedModel, number: int, name: str, folder: Path) -> list[Path]:
    found, source = prediction.found, prediction.source
    assert isinstance(found, SlideScores | SlideTargetScores)
    category, numbers, caption = _words(prediction, model)
    key = f"{source.entry.checksum or source.name}/{number}/{model.digest}"
    paths = [folder / f"{name}_slide.geojson"]
    with open_canvas(source.case.slides[number], model.job.data) as canvas:
        if canvas is None:
            return []
        heat = _heat(found.of_slide(number), canvas)
        features = slide_features(heat, canvas.size, category, numbers, key)
        paths[0].write_text(geojson.collection(features), encoding="utf-8")
        if heat is not None:
            paths += [folder / f"{name}_attention.png", folder / f"{name}_attention.tif"]
            write_picture(canvas, heat, caption, paths[1])
            write_overlay(canvas, heat, paths[2])
            paths += write_top_tiles(canvas, heat, folder, name)
    return paths


def _heat(tiles: TileAttention, canvas: Canvas) -> TileHeat | None:
    if tiles.attention is None or not tiles.is_placed:
        return None
    return TileHeat(tiles.attention, tiles.places, canvas.step, tiles.largest)


def _words(prediction: CasePrediction, model: TrainedModel) -> tuple[tuple[int, str], dict[str, float], str]:
    """Return a slide's category with its number, its numbers by name, and a caption."""
    if prediction.probabilities is None:
        rows = target_rows(prediction, model)
        numbers = {f"{row['target']}, {with_unit(row['title'], row['unit'])}": row["number"] for row in rows}
        return (1, in_short(rows)), numbers, in_short(rows)
    shares = {model.task.classes[n]: float(p) for n, p in enumerate(prediction.probabilities)}
    value = int(prediction.probabilities.argmax())
    caption = ", ".join(f"{name} {share:.3f}" for name, share in shares.items())
    return (value + 1, model.task.classes[value]), {f"Probability {n}": p for n, p in shares.items()}, caption


def slide_features(
    heat: TileHeat | None,
    size: tuple[int, int],
    category: tuple[int, str],
    numbers: Mapping[str, float],
    key: str,
) -> Iterator[dict[str, Any]]:
    """Yield a slide annotation, and each tile as a detection without a class.

    Args:
        heat: attention of the tiles; None: the network has none.
        size: width and height of the slide.
        category: colour index and name of the slide's class, or its answers.
        numbers: of the slide, by name.
        key: determines the features' identifiers.
    """
    whole = geojson.rectangle(0, 0, *size)
    yield geojson.feature([whole], "annotation", f"{key}/slide", category, numbers)
    if heat is None:
        return
    ends = np.minimum(np.rint(heat.places + heat.step), size).astype(int).tolist()
    columns = (column.tolist() for column in (heat.places, heat.attention, heat.percentiles))
    for number, ((x, y), attention, percentile) in enumerate(zip(*columns, strict=True)):
        measurements = {"Attention": float(f"{attention:.6g}"), "Attention percentile": round(percentile, 3)}
        tile = geojson.rectangle(x, y, *ends[number])
        # Without a class: the slide's is not its tiles', and viewers colour by class.
        yield geojson.feature([tile], "detection", f"{key}/tile/{number}", None, measurements)


def write_picture(canvas: Canvas, heat: TileHeat, caption: str, path: Path) -> None:
    """Write a PNG of the slide with attention and scales.

    Args:
        canvas: to draw on.
        heat: attention of the tiles.
        caption: stands above.
        path: of the file.
    """
    pixels, scale = canvas.overview()
    height, width = pixels.shape[:2]
    across, down = (_PICTURE * side / max(height, width) for side in (width, height))
    whole = across + _MARGIN + _COLOUR_BAR, _BELOW + down + _MARGIN
    figure = Figure(figsize=whole)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, _BELOW / whole[1], across / whole[0], down / whole[1]))
    shown = overlay_heatmap(pixels, heat.drawn((height, width), scale), _GAMMA)
    axes.imshow(shown, interpolation="antialiased", aspect="auto")
    axes.set_axis_off()
    axes.set_title(caption, fontsize=9)
    beside = (across + _MARGIN / 2) / whole[0], (_BELOW + 0.1 * down) / whole[1], 0.2 / whole[0], 0.8 * down / whole[1]
    figure.colorbar(
        ScalarMappable(PowerNorm(_GAMMA, 0, 1), blended_colours(_GAMMA)),
        cax=figure.add_axes(beside),
        label=f"attention, share of the largest (to the power of {_GAMMA:g})",
    )
    if canvas.mpp:
        # Below: on a plane without a slide tiles lie up to its edge.
        below = figure.add_axes((0, 0, across / whole[0], _BELOW / whole[1]), xlim=(0, width), ylim=(height, 0))
        below.set_axis_off()
        length_bar(below, canvas.mpp * scale, width, height, 0.8)
    figure.savefig(path, dpi=150)


def length_bar(axes: Any, mpp: float, width: int, height: int, at: float = 0.97) -> None:
    """Draw a scale bar of a round length, ``at`` which share of the height."""
    longest = width * mpp * _BAR
    power = 10.0 ** math.floor(math.log10(longest))
    microns = max(factor * power for factor in (1, 2, 5) if factor * power <= longest * 1.0001)
    words = f"{microns / 1000:g} mm" if microns >= 1000 else f"{microns:g} µm"
    left, y = 0.03 * width, at * height
    for colour, thick in (("white", 4), ("black", 2)):
        axes.plot([left, left + microns / mpp], [y, y], color=colour, linewidth=thick, solid_capstyle="butt")
    box = {"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 1}
    above = {"xytext": (0, 4), "textcoords": "offset points"}
    axes.annotate(words, (left, y), **above, fontsize=8, va="bottom", bbox=box)


def write_overlay(canvas: Canvas, heat: TileHeat, path: Path) -> None:
    """Write the slide with its attention as pyramidal TIFF.

    Each level is a separate image of half the size, as in OpenSlide's generic tiled TIFF. Its origin is the slide's,
    and it states its pixel size where that is known.

    Args:
        canvas: to draw on.
        heat: attention of the tiles.
        path: of the file.
    """
    shrink = _shrink(canvas.size, heat.step)
    pixels = canvas.shrunk(shrink)
    pixels = overlay_heatmap(pixels, heat.drawn(pixels.shape[:2], shrink), _GAMMA)
    with tifffile.TiffWriter(path) as file:
        levels = 1 + max(0, math.ceil(math.log2(max(pixels.shape) / _BLOCK)))  # the last fits into one tile
        for level in range(levels):
            side = canvas.mpp and canvas.mpp * shrink * 2**level
            file.write(
                pixels,
                tile=(_BLOCK, _BLOCK),
                photometric="rgb",
                compression="jpeg",
                compressionargs={"level": _QUALITY},
                subfiletype=1 if level else 0,  # a smaller copy of another image
                resolution=(1e4 / side, 1e4 / side) if side else None,
                resolutionunit="CENTIMETER" if side else None,
                metadata=None,
            )
            pixels = np.asarray(Image.fromarray(pixels).reduce(2))


def _shrink(size: tuple[int, int], step: float) -> int:
    """Return the overlay's downsampling, at which a tile remains several pixels wide."""
    shrink = 1
    while step / (2 * shrink) >= _TILE_PIXELS or size[0] * size[1] / shrink**2 > _MOST_PIXELS:
        shrink *= 2
    return shrink


def write_top_tiles(canvas: Canvas, heat: TileHeat, folder: Path, name: str, most: int = TOP_TILES) -> list[Path]:
    """Write the most attended tiles, and a table of all.

    Args:
        canvas: of the slide, with the network's tiling; pictures are written where there is a slide.
        heat: attention of the tiles.
        folder: for ``NAME_tiles.csv`` and ``NAME_tile_RANK.png``.
        name: of the case.
        most: number of tiles written as pictures.
    """
    table = folder / f"{name}_tiles.csv"
    paths = [table]
    rows: list[list[Any]] = []
    percentiles = heat.percentiles
    for rank, number in enumerate(heat.order.tolist(), start=1):
        x, y = heat.places[number].tolist()
        seen = canvas.tile(x, y) if rank <= most else None
        picture = "" if seen is None else f"{name}_tile_{rank:02d}.png"
        if seen is not None:
            paths.append(folder / picture)
            Image.fromarray(seen).save(paths[-1])
        attention = f"{heat.attention[number]:.6g}"
        rows.append([rank, x, y, round(heat.step), attention, f"{percentiles[number]:.3f}", picture])
    write_rows(table, ["rank", "x", "y", "size_px", "attention", "percentile", "picture"], rows)
    return paths
