"""Measure a slide: tissue, tiles, and their labels."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from oncofed.data.case_facts import checksum, intensity_of, stain
from oncofed.data.masks import read_mask
from oncofed.data.slides import TileReader
from oncofed.data.slides.levels import Level, Pixels, TileSpec
from oncofed.data.slides.regions import Drawn, draw, is_regions, read_regions
from oncofed.data.slides.tile_looks import look_at_tiles
from oncofed.data.slides.tile_quality import FLAGS, count_flags, find_artefacts, flag_of
from oncofed.data.slides.tissue import Tissue, find_tissue
from oncofed.errors import DataError

_MASK_CELLS_PER_TILE = 8
_SAME_ASPECT = 0.03
_MOST_TILE = 4  # times the slide's longer side: a larger tile is a wrong resolution


def measure(
    path: Path, spec: TileSpec, region: Path | None, names: Mapping[str, int]
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Return a slide's facts and tiles.

    Args:
        path: of the slide.
        spec: how it is cut.
        region: a mask image over the whole slide, or GeoJSON in pixels of the finest level; None without labels.
        names: name of a region -> label value, for GeoJSON; empty: every region is 1.

    Returns:
        Facts, as fields of an ``Entry``, and arrays by tile: ``x``, ``y`` (pixels of the finest level, int32),
        ``tissue`` (share, float32), ``flags`` (bits of ``tile_quality.FLAGS``, uint8), ``label`` (int16; with a
        region), plus ``size`` and ``mpp``.

    Raises:
        DataError: the slide or its region cannot be used.
    """
    with TileReader(path, spec) as tiles:
        full = tiles.levels[0]
        if tiles.step > _MOST_TILE * max(full.width, full.height):
            raise DataError(
                f"is far smaller than one tile: it has {full.width} x {full.height} pixels of {full.mpp:.3g} microns, "
                f"and a tile {spec.size} pixels of {spec.mpp:g}. Give it smaller tiles with --tile and --mpp, or ask "
                "its source for its resolution"
            )
        overview, scale = tiles.overview()
        tissue = find_tissue(overview, scale * full.mpp)
        mask = tissue.mask
        share = _by_tile(mask.astype(np.float32), scale, tiles.step, full)
        rows, columns = np.nonzero(share >= spec.tissue)
        if not len(rows):
            raise DataError(_no_tissue(tissue))
        looked = look_at_tiles(path, spec, tiles, np.stack([columns, rows], axis=1, dtype=np.float64) * tiles.step)
        flags = looked.flags
        if spec.quality != "none":
            for name, where in find_artefacts(overview, tissue, scale * full.mpp).items():
                found = _by_tile(where.astype(np.float32), scale, tiles.step, full)[rows, columns]
                flags = flags | flag_of(name, found)
        quality = {"tiles": len(rows), **count_flags(flags)} if spec.quality != "none" else None
        if spec.quality == "drop":
            rows, columns, flags = rows[flags == 0], columns[flags == 0], flags[flags == 0]
            if not len(rows):
                raise DataError(
                    "all of its tiles show pen, fold, blur or bubble: there is none to learn from. Leave it out, or "
                    "keep them: --quality count"
                )
        grid: dict[str, NDArray[Any]] = {
            "x": np.rint(columns * tiles.step).astype(np.int32),
            "y": np.rint(rows * tiles.step).astype(np.int32),
            "tissue": share[rows, columns].astype(np.float32),
            "flags": flags,
            "size": np.int32(spec.size),
            "mpp": np.float32(spec.mpp),
        }
        facts: dict[str, Any] = {
            "shape": [full.width, full.height],
            "channels": 3,
            "spacing": [full.mpp / 1000] * 2,
            "dtype": "uint8",
            "vendor": tiles.vendor,
            "finite": True,
            "checksum": checksum(sorted(path.iterdir()) if path.is_dir() else [path]),
            "intensity": intensity_of(overview[mask].mean(axis=-1)),
            "stain": stain(overview[mask]),
            "colours": looked.colours,
            "tile_quality": quality,
            "thumbnail": _thumbnail(overview),
            "notes": [f"{len(rows)} tiles of {share.size} show tissue", *tissue.notes(), *tiles.notes],
        }
        facts["notes"] += _quality_notes(quality, spec)
        if region is not None:
            labels, drawn = _region_labels(region, names, tiles.step, full, share.shape)
            grid["label"] = labels[rows, columns].astype(np.int16)
            values, counts = np.unique(grid["label"], return_counts=True)
            # Jobs of regions learn what is smaller than a tile, too: it is there, on none.
            small = sorted(drawn.values - set(values.tolist()))
            facts["label_values"] = {str(v): int(c) for v, c in zip(values, counts, strict=True)}
            facts["label_values"] |= dict.fromkeys(map(str, small), 0)
            facts["notes"] += [*drawn.notes, *_small_notes(small, names)]
        return facts, grid


def _quality_notes(quality: Mapping[str, int] | None, spec: TileSpec) -> list[str]:
    shown = [f"{quality[name]} {name}" for name in FLAGS if quality[name]] if quality else []
    done = "are left out" if spec.quality == "drop" else "are kept (--quality drop leaves them out)"
    return [f"tiles with {', '.join(shown)} {done}"] if shown else []


def _small_notes(values: Sequence[int], names: Mapping[str, int]) -> list[str]:
    called = [next((name for name, own in names.items() if own == value), f"value {value}") for value in values]
    return [f"drawn, and covers half of no tile with tissue: {', '.join(called)}"] if called else []


def _no_tissue(tissue: Tissue) -> str:
    ink = f"; {tissue.notes()[0]}" if tissue.inks else ""
    return f"shows no tissue: no tile is more than glass{ink}. Leave it out, or register it with a lower --tissue"


def _by_tile(values: NDArray[np.float32], scale: float, step: float, full: Level) -> NDArray[np.float32]:
    """Return the mean of an overview's values by tile."""
    rows, columns = math.ceil(full.height / step), math.ceil(full.width / step)
    sums = np.zeros((values.shape[0] + 1, values.shape[1] + 1))
    sums[1:, 1:] = values.cumsum(0, dtype=np.float64).cumsum(1)
    y = np.minimum(np.rint(np.arange(rows + 1) * step / scale).astype(int), values.shape[0])
    x = np.minimum(np.rint(np.arange(columns + 1) * step / scale).astype(int), values.shape[1])
    total = sums[y[1:]][:, x[1:]] - sums[y[:-1]][:, x[1:]] - sums[y[1:]][:, x[:-1]] + sums[y[:-1]][:, x[:-1]]
    # Parts of a tile beyond the edge are white.
    area = (step / scale) ** 2
    share: NDArray[np.float32] = (total / area).clip(0, 1).astype(np.float32)
    return share


def _region_labels(
    region: Path, names: Mapping[str, int], step: float, full: Level, shape: tuple[int, int]
) -> tuple[NDArray[np.int64], Drawn]:
    """Return the label of each tile, and what was drawn.

    The value that covers most of it; 0 if none covers half.
    """
    cell = step / _MASK_CELLS_PER_TILE
    size = shape[0] * _MASK_CELLS_PER_TILE, shape[1] * _MASK_CELLS_PER_TILE
    if is_regions(region):
        drawn = draw(read_regions(region), names, cell, size, (full.width, full.height))
    else:
        drawn = _mask_cells(region, names, cell, full, size)
    blocks = drawn.cells.reshape(shape[0], _MASK_CELLS_PER_TILE, shape[1], _MASK_CELLS_PER_TILE).swapaxes(1, 2)
    flat = blocks.reshape(*shape, -1)
    best = np.zeros(shape, np.int64)
    for value in np.unique(flat[flat > 0]):
        best[(flat == value).mean(axis=-1) >= 0.5] = value
    return best, drawn


def _mask_cells(region: Path, names: Mapping[str, int], cell: float, full: Level, size: tuple[int, int]) -> Drawn:
    """Return a slide's mask image as cells."""
    try:
        loaded = read_mask(region, named=names.values())
    except DataError as error:
        raise DataError(f"its mask {region.name} {error}") from None
    if loaded.dimensions != 2:
        raise DataError(f"its mask {region.name} is a volume, expected a flat image: save the plane of the slide alone")
    image = loaded.values[..., 0].T
    height, width = image.shape
    if abs(width / height / (full.width / full.height) - 1) > _SAME_ASPECT + 1 / min(width, height):
        raise DataError(
            f"its mask has {width} x {height} pixels, expected the shape of the slide of {full.width} x {full.height}"
        )
    y = ((np.arange(size[0]) + 0.5) * cell / full.height * height).astype(int)
    x = ((np.arange(size[1]) + 0.5) * cell / full.width * width).astype(int)
    inside = (y < height)[:, None] & (x < width)
    picked = image[y.clip(max=height - 1)][:, x.clip(max=width - 1)]
    values = frozenset(int(value) for value in np.unique(image) if value)
    return Drawn(np.where(inside, picked, 0).astype(np.int64), [], values)


def _thumbnail(overview: Pixels) -> str:
    small = Image.fromarray(overview).convert("L").resize((16, 16), Image.Resampling.BOX)
    return base64.b64encode(np.asarray(small).tobytes()).decode()
