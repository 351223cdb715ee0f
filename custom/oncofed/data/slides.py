"""Whole slides: their levels, where the tissue is, and tiles at a given resolution.

OpenSlide reads what scanners write, tifffile decodes the tiles of tiled TIFF and SVS files without assembling regions,
wsidicom reads DICOM's slides (PS3.3, section A.32.8). All of them read and decode from several threads at once.
Resolutions are in microns per pixel; 0.25 is about 40x, 0.5 about 20x.
"""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import json
import math
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from oncofed.data.facts import checksum
from oncofed.data.manifest import Intensity
from oncofed.data.masks import read_mask
from oncofed.errors import DataError

Pixels = NDArray[np.uint8]

# A level whose resolution differs by less than this is read as it is.
_SAME_RESOLUTION = 0.02
_OVERVIEW_PIXELS = 2_000_000
_MASK_CELLS_PER_TILE = 8
_LEAST_SATURATION = 0.05
_WHITE = 255


@dataclass(frozen=True)
class TileSpec:
    """How a slide is cut.

    Attributes:
        size: side of a tile in pixels.
        mpp: microns per pixel.
        tissue: least share of a tile that is tissue.
    """

    size: int = 256
    mpp: float = 0.5
    tissue: float = 0.25

    @property
    def bytes(self) -> int:
        """Of one tile's pixels."""
        return 3 * self.size**2


@dataclass(frozen=True)
class Level:
    """One resolution of a slide: size in pixels, and microns per pixel."""

    width: int
    height: int
    mpp: float


class Slide(Protocol):
    """An open slide, which several threads may read from at once; none may while it is closed."""

    levels: list[Level]
    vendor: str | None

    def read(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        """Return (height, width, 3) uint8 at pixel (x, y) of a level; white where there is nothing."""

    def close(self) -> None:
        """Close the file."""


class OpenSlideFile:
    """A slide through OpenSlide: SVS, NDPI, MRXS, SCN, BIF, generic tiled TIFF."""

    def __init__(self, path: Path) -> None:
        import openslide  # noqa: PLC0415 - optional

        self._slide = openslide.OpenSlide(str(path))
        properties = self._slide.properties
        mpp = _mean_mpp(properties.get("openslide.mpp-x"), properties.get("openslide.mpp-y"))
        self.vendor: str | None = properties.get("openslide.vendor")
        self._downsamples = self._slide.level_downsamples
        self.levels = [
            Level(width, height, mpp * downsample)
            for (width, height), downsample in zip(self._slide.level_dimensions, self._downsamples, strict=True)
        ]

    def read(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        """Return (height, width, 3) uint8; OpenSlide makes what lies outside transparent."""
        origin = (round(x * self._downsamples[level]), round(y * self._downsamples[level]))
        region = self._slide.read_region(origin, level, (width, height))
        white = Image.new("RGB", region.size, (_WHITE,) * 3)
        white.paste(region, mask=region.getchannel("A"))
        return np.asarray(white)

    def close(self) -> None:
        """Close the file."""
        self._slide.close()


class TiffSlideFile:
    """A tiled TIFF, OME-TIFF or SVS through tifffile: each tile is decoded from its own bytes."""

    def __init__(self, path: Path) -> None:
        import tifffile  # noqa: PLC0415 - optional

        self._file = tifffile.TiffFile(path)
        try:
            series = self._file.series[0]
            pages = [level.keyframe for level in series.levels]
            if not all(page.is_tiled and page.ndim == 3 and page.shape[-1] == 3 for page in pages):
                raise DataError("is no tiled colour TIFF")
            self._pages = [page for page in pages if page.dtype == np.uint8]
            if not self._pages:
                raise DataError(f"holds pixels of type {pages[0].dtype}, expected uint8")
            self._descriptor = self._file.filehandle.fileno()
            # Made at first use, which is here: threads only read them.
            self._decoders = [page.decode for page in self._pages]
            mpp = _tiff_mpp(self._file, pages[0])
        except BaseException:
            self._file.close()
            raise
        self.vendor: str | None = "aperio" if self._file.is_svs else None
        full = self._pages[0].shape[1]
        self.levels = [Level(p.shape[1], p.shape[0], mpp * full / p.shape[1]) for p in self._pages]

    def read(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        """Return (height, width, 3) uint8; one aligned tile is decoded and nothing else."""
        page = self._pages[level]
        tile_width, tile_height = page.tilewidth, page.tilelength
        if x % tile_width == 0 and y % tile_height == 0 and width == tile_width and height == tile_height:
            return self._tile(level, x // tile_width, y // tile_height)
        region = np.full((height, width, 3), _WHITE, np.uint8)
        for column in range(x // tile_width, -(-(x + width) // tile_width)):
            for row in range(y // tile_height, -(-(y + height) // tile_height)):
                tile = self._tile(level, column, row)
                left, top = column * tile_width - x, row * tile_height - y
                x0, y0 = max(left, 0), max(top, 0)
                x1, y1 = min(left + tile_width, width), min(top + tile_height, height)
                region[y0:y1, x0:x1] = tile[y0 - top : y1 - top, x0 - left : x1 - left]
        return region

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _tile(self, level: int, column: int, row: int) -> Pixels:
        page = self._pages[level]
        across = -(-page.shape[1] // page.tilewidth)
        down = -(-page.shape[0] // page.tilelength)
        whole = (page.tilelength, page.tilewidth, 3)
        if not (0 <= column < across and 0 <= row < down):
            return np.full(whole, _WHITE, np.uint8)
        number = row * across + column
        size = page.databytecounts[number]
        if size == 0:
            return np.full(whole, _WHITE, np.uint8)
        data = os.pread(self._descriptor, size, page.dataoffsets[number])
        if len(data) < size:
            raise DataError("is cut off: a tile's bytes are missing")
        decoded = self._decoders[level](data, number, jpegtables=page.jpegtables)[0]
        tile: Pixels = decoded[0]
        if tile.shape != whole:  # tifffile cuts the tiles at the edge
            padded = np.full(whole, _WHITE, np.uint8)
            padded[: tile.shape[0], : tile.shape[1]] = tile
            return padded
        return tile


class DicomSlideFile:
    """A folder of DICOM whole-slide instances through wsidicom."""

    def __init__(self, folder: Path) -> None:
        from wsidicom import WsiDicom  # noqa: PLC0415 - optional
        from wsidicom.codec.decoder import PydicomDecoder  # noqa: PLC0415 - optional

        self._slide = WsiDicom.open(folder)
        self.vendor: str | None = None
        with contextlib.suppress(AttributeError, ValueError):
            self.vendor = self._slide.metadata.equipment.manufacturer
        self._numbers = [level.level for level in self._slide.levels]
        self.levels = [
            Level(lv.size.width, lv.size.height, _mean_mpp(lv.mpp.width, lv.mpp.height)) for lv in self._slide.levels
        ]
        decoders = [instance.image_data.decoder for lv in self._slide.levels for instance in lv.instances.values()]
        # wsidicom locks what it shares, but for the decoder of uncompressed pixels, which keeps a frame in itself.
        shared = any(isinstance(decoder, PydicomDecoder) for decoder in decoders)
        self._lock = threading.Lock() if shared else contextlib.nullcontext()

    def read(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        """Return (height, width, 3) uint8; what lies outside is white."""
        shape = self.levels[level]
        region = np.full((height, width, 3), _WHITE, np.uint8)
        x0, y0 = max(x, 0), max(y, 0)
        x1, y1 = min(x + width, shape.width), min(y + height, shape.height)
        if x1 > x0 and y1 > y0:
            with self._lock:
                part = self._slide.read_region((x0, y0), self._numbers[level], (x1 - x0, y1 - y0))
            region[y0 - y : y1 - y, x0 - x : x1 - x] = np.asarray(part.convert("RGB"))
        return region

    def close(self) -> None:
        """Close the files."""
        self._slide.close()


def open_slide(path: Path) -> Slide:
    """Open a slide with the fastest reader that reads it.

    Args:
        path: a slide's file, or a folder of DICOM whole-slide instances.

    Raises:
        DataError: no reader that is installed can; the message names no path.
    """
    _require_pathology()
    if path.is_dir():
        readers: list[Any] = [DicomSlideFile]
    elif path.suffix.lower() in {".svs", ".tif", ".tiff"}:
        readers = [TiffSlideFile, OpenSlideFile]
    else:
        readers = [OpenSlideFile]
    reasons = []
    for reader in readers:
        try:
            slide: Slide = reader(path)
            return slide
        except Exception as error:  # noqa: BLE001, PERF203 - each library has errors of its own
            reasons.append(str(error).splitlines()[0] if str(error) else type(error).__name__)
    reason = reasons[-1].replace(str(path), "file")
    raise DataError(f"cannot be read as a slide ({reason})")


class TileReader:
    """Reads tiles of one slide at one resolution; safe to use from several threads.

    Args:
        path: of the slide.
        spec: size and resolution of a tile.

    Example:
        >>> with TileReader(path, TileSpec(256, mpp=0.5)) as tiles:  # doctest: +SKIP
        ...     tiles.read(x=1024, y=2048).shape
        (256, 256, 3)
    """

    def __init__(self, path: Path, spec: TileSpec) -> None:
        self.spec = spec
        self._slide = open_slide(path)
        self.levels = self._slide.levels
        self.vendor = self._slide.vendor
        self._lock = threading.Lock()
        self._closed = False
        self._users = 1  # who opened it, and each thread that reads
        finest = self.levels[0].mpp
        if finest <= 0:
            self._slide.close()
            raise DataError("does not say its resolution (microns per pixel), so that tiles at one cannot be cut")
        if spec.mpp < finest * (1 - _SAME_RESOLUTION):
            self._slide.close()
            raise DataError(f"has at most {finest:.3f} microns per pixel, the tiles ask for {spec.mpp:g}")
        self.level = _level_for(self.levels, spec.mpp)
        self._scale = spec.mpp / self.levels[self.level].mpp
        if abs(self._scale - 1) < _SAME_RESOLUTION:
            self._scale = 1.0

    def __enter__(self) -> TileReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the slide, once those who read from it are done."""
        with self._lock:
            closed, self._closed = self._closed, True
        if not closed:
            self._let_go()

    @property
    def step(self) -> float:
        """Pixels of the finest level that one tile spans."""
        return self.spec.size * self._scale * self.levels[self.level].mpp / self.levels[0].mpp

    def read(self, x: int, y: int) -> Pixels:
        """Return the tile (size, size, 3) uint8 whose corner is at pixel (x, y) of the finest level.

        Raises:
            DataError: the slide was closed, or its bytes are missing.
        """
        downsample = self.levels[self.level].mpp / self.levels[0].mpp
        size = round(self.spec.size * self._scale)
        with self._kept_open():
            tile = self._slide.read(self.level, round(x / downsample), round(y / downsample), size, size)
        if size == self.spec.size:
            return tile
        resized = Image.fromarray(tile).resize(
            (self.spec.size, self.spec.size), Image.Resampling.BILINEAR, reducing_gap=2
        )
        return np.asarray(resized)

    def overview(self) -> tuple[Pixels, float]:
        """Return the whole slide small enough for memory, and pixels of the finest level per pixel of it."""
        number = next(
            (n for n, lv in enumerate(self.levels) if lv.width * lv.height <= _OVERVIEW_PIXELS * 4),
            len(self.levels) - 1,
        )
        level = self.levels[number]
        shrink = max(1, math.ceil(math.sqrt(level.width * level.height / _OVERVIEW_PIXELS)))
        strip = max(1, 1024 // shrink) * shrink
        parts = []
        for top in range(0, level.height, strip):
            height = min(strip, level.height - top)
            part = Image.fromarray(self._slide.read(number, 0, top, level.width, height))
            parts.append(np.asarray(part.reduce(shrink)))
        return np.concatenate(parts), self.levels[0].width / level.width * shrink

    @contextlib.contextmanager
    def _kept_open(self) -> Iterator[None]:
        """Put closing off: a file descriptor that was closed may be another file's by then."""
        with self._lock:
            if self._closed:
                raise DataError("was closed while its tiles were read; open it again")
            self._users += 1
        try:
            yield
        finally:
            self._let_go()

    def _let_go(self) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                self._slide.close()


def tissue_mask(overview: Pixels) -> NDArray[np.bool_]:
    """Return where an overview (height, width, 3) shows tissue: its colour is more saturated than Otsu's threshold.

    Otsu, IEEE Transactions on Systems, Man, and Cybernetics 1979. Glass is grey or white, the scanner's fill is black.
    """
    values = overview.astype(np.float32)
    high, low = values.max(axis=-1), values.min(axis=-1)
    saturation = np.where(high > 0, (high - low) / np.maximum(high, 1), 0)
    usable = high > 20
    threshold = max(_otsu(saturation[usable]), _LEAST_SATURATION) if usable.any() else 1.0
    mask: NDArray[np.bool_] = (saturation > threshold) & usable
    return mask


def measure(
    path: Path, spec: TileSpec, region: Path | None, names: Mapping[str, int]
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Return the facts of one slide, as fields of an ``Entry``, and its tiles.

    Args:
        path: of the slide.
        spec: how it is cut.
        region: a mask image over the whole slide, or GeoJSON in pixels of the finest level; None without labels.
        names: name of a region -> label value, for GeoJSON.

    Returns:
        facts, and arrays by tile: ``x`` and ``y`` (pixels of the finest level, int32), ``tissue`` (share, float32),
        ``label`` (int16; with a region), beside ``size`` and ``mpp``.

    Raises:
        DataError: the slide or its region cannot be used.
    """
    with TileReader(path, spec) as tiles:
        overview, scale = tiles.overview()
        mask = tissue_mask(overview)
        full = tiles.levels[0]
        share = _by_tile(mask.astype(np.float32), scale, tiles.step, full)
        rows, columns = np.nonzero(share >= spec.tissue)
        if not len(rows):
            raise DataError("shows no tissue: no tile is more than glass")
        grid: dict[str, NDArray[Any]] = {
            "x": np.rint(columns * tiles.step).astype(np.int32),
            "y": np.rint(rows * tiles.step).astype(np.int32),
            "tissue": share[rows, columns].astype(np.float32),
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
            "intensity": _intensity(overview[mask]),
            "thumbnail": _thumbnail(overview),
            "notes": [f"{len(rows)} tiles of {share.size} show tissue"],
        }
        if region is not None:
            labels = _region_labels(region, names, tiles.step, full, share.shape)
            grid["label"] = labels[rows, columns].astype(np.int16)
            values, counts = np.unique(grid["label"], return_counts=True)
            facts["label_values"] = {str(v): int(c) for v, c in zip(values, counts, strict=True)}
        return facts, grid


def _level_for(levels: list[Level], mpp: float) -> int:
    """Return the coarsest level that is at least as fine as ``mpp``."""
    fine = [n for n, level in enumerate(levels) if level.mpp <= mpp * (1 + _SAME_RESOLUTION)]
    return max(fine, key=lambda n: levels[n].mpp)


def _by_tile(values: NDArray[np.float32], scale: float, step: float, full: Level) -> NDArray[np.float32]:
    """Return the mean of an overview's values over each whole or cut tile of the slide."""
    rows, columns = math.ceil(full.height / step), math.ceil(full.width / step)
    sums = np.zeros((values.shape[0] + 1, values.shape[1] + 1))
    sums[1:, 1:] = values.cumsum(0, dtype=np.float64).cumsum(1)
    y = np.minimum(np.rint(np.arange(rows + 1) * step / scale).astype(int), values.shape[0])
    x = np.minimum(np.rint(np.arange(columns + 1) * step / scale).astype(int), values.shape[1])
    total = sums[y[1:]][:, x[1:]] - sums[y[:-1]][:, x[1:]] - sums[y[1:]][:, x[:-1]] + sums[y[:-1]][:, x[:-1]]
    # A tile that hangs over the edge is white there.
    area = (step / scale) ** 2
    share: NDArray[np.float32] = (total / area).clip(0, 1).astype(np.float32)
    return share


def _region_labels(
    region: Path, names: Mapping[str, int], step: float, full: Level, shape: tuple[int, int]
) -> NDArray[np.int64]:
    """Return the label of each tile: the value that covers most of it; 0 where none covers half."""
    cell = step / _MASK_CELLS_PER_TILE
    height, width = shape[0] * _MASK_CELLS_PER_TILE, shape[1] * _MASK_CELLS_PER_TILE
    if region.suffix.lower() in {".geojson", ".json"}:
        cells = _draw_geojson(region, names, cell, (height, width))
    else:
        image = read_mask(region).values[..., 0].T
        y = ((np.arange(height) + 0.5) * cell / full.height * image.shape[0]).astype(int)
        x = ((np.arange(width) + 0.5) * cell / full.width * image.shape[1]).astype(int)
        inside = (y < image.shape[0])[:, None] & (x < image.shape[1])
        picked = image[y.clip(max=image.shape[0] - 1)][:, x.clip(max=image.shape[1] - 1)]
        cells = np.where(inside, picked, 0).astype(np.int64)
    blocks = cells.reshape(shape[0], _MASK_CELLS_PER_TILE, shape[1], _MASK_CELLS_PER_TILE).swapaxes(1, 2)
    flat = blocks.reshape(*shape, -1)
    best = np.zeros(shape, np.int64)
    for value in np.unique(flat[flat > 0]):
        best[(flat == value).mean(axis=-1) >= 0.5] = value
    return best


def _draw_geojson(path: Path, names: Mapping[str, int], cell: float, shape: tuple[int, int]) -> NDArray[np.int64]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        features = content["features"] if isinstance(content, dict) and "features" in content else content
        canvas = Image.new("I", shape[::-1])
        draw = ImageDraw.Draw(canvas)
        for feature in features:
            value = _region_value(feature, names)
            geometry = feature["geometry"]
            several = geometry["type"] == "MultiPolygon"
            for rings in geometry["coordinates"] if several else [geometry["coordinates"]]:
                for number, ring in enumerate(rings):
                    points = [(x / cell, y / cell) for x, y, *_ in ring]
                    draw.polygon(points, fill=0 if number else value)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"its regions cannot be read as GeoJSON polygons ({type(error).__name__})") from None
    return np.asarray(canvas, dtype=np.int64)


def _region_value(feature: Mapping[str, Any], names: Mapping[str, int]) -> int:
    properties = feature.get("properties") or {}
    classification = properties.get("classification") or {}
    name = classification.get("name") or properties.get("name") or properties.get("label")
    if isinstance(name, str) and name in names:
        return names[name]
    if not names:
        return 1
    raise DataError(f"its regions name {name!r}, expected one of {sorted(names)} (--labels)")


def _otsu(values: NDArray[np.float32]) -> float:
    counts, edges = np.histogram(values, bins=256, range=(0, 1))
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    above = below[-1] - below
    sums = np.cumsum(counts * centres)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (sums / below - (sums[-1] - sums) / above) ** 2
    return float(centres[int(np.nanargmax(between))]) if np.isfinite(between).any() else 0.0


def _intensity(values: Pixels) -> Intensity:
    grey = values.mean(axis=-1)
    low, median, high = np.percentile(grey, (0.5, 50, 99.5))
    return Intensity(low=low, median=median, high=high, mean=float(grey.mean()), std=float(grey.std()))


def _thumbnail(overview: Pixels) -> str:
    small = Image.fromarray(overview).convert("L").resize((16, 16), Image.Resampling.BOX)
    return base64.b64encode(np.asarray(small).tobytes()).decode()


def _mean_mpp(x: Any, y: Any) -> float:
    try:
        return (float(x) + float(y)) / 2
    except (TypeError, ValueError):
        return 0.0


def _tiff_mpp(file: Any, page: Any) -> float:
    """Return microns per pixel of a TIFF: by its OME or Aperio description, else by its resolution tags."""
    if file.is_svs:
        for part in str(page.description).split("|"):
            key, _, value = part.partition("=")
            if key.strip() == "MPP":
                return float(value)
    if file.is_ome:
        import xml.etree.ElementTree as ET  # noqa: PLC0415 - of a local file

        with contextlib.suppress(ET.ParseError):
            for element in ET.fromstring(file.ome_metadata).iter():  # noqa: S314
                if element.tag.endswith("Pixels") and element.get("PhysicalSizeX"):
                    factor = {"nm": 1e-3, "mm": 1e3, "cm": 1e4}.get(element.get("PhysicalSizeXUnit", "µm"), 1.0)
                    return float(element.get("PhysicalSizeX", 0)) * factor
    resolution, unit = page.tags.get("XResolution"), page.tags.get("ResolutionUnit")
    per_unit = {2: 25_400.0, 3: 10_000.0}.get(int(unit.value) if unit else 0)
    if resolution is None or per_unit is None or not resolution.value[0]:
        return 0.0
    return float(per_unit * resolution.value[1] / resolution.value[0])


def _require_pathology() -> None:
    missing = [name for name in ("openslide", "tifffile") if importlib.util.find_spec(name) is None]
    if missing:
        raise DataError(f"needs {' and '.join(missing)} to be read: pip install 'oncofed[pathology]'")
