"""Whole slides: levels, tissue, tiles at a resolution.

OpenSlide reads scanners' formats, tifffile decodes the tiles of tiled TIFF and SVS files without assembling regions,
wsidicom reads DICOM slides (PS3.3, section A.32.8). All of them read and decode from several threads at once.
Resolutions are in microns per pixel; 0.25 is about 40x, 0.5 about 20x.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import numpy as np
from PIL import Image

from oncofed.data.images import looks_like
from oncofed.data.slides.dicom_files import DicomSlideFile
from oncofed.data.slides.levels import Level, Pixels, Slide, TileSpec
from oncofed.data.slides.openslide_file import OpenSlideFile
from oncofed.data.slides.resolution import SAME_RESOLUTION, Resolution
from oncofed.data.slides.tiff_file import LeftToOpenSlideError, TiffSlideFile
from oncofed.data.slides.tissue import tissue_mask
from oncofed.errors import DataError

__all__ = [
    "DicomSlideFile",
    "Level",
    "OpenSlideFile",
    "Pixels",
    "Slide",
    "TiffSlideFile",
    "TileReader",
    "TileSpec",
    "open_slide",
    "tissue_mask",
]

_OVERVIEW_PIXELS = 2_000_000
_TIFF = {b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"}
_FORMATS = "SVS, NDPI, MRXS, SCN, BIF, tiled TIFF or OME-TIFF, or DICOM"


def open_slide(path: Path) -> Slide:
    """Open a slide with the fastest faithful reader.

    Args:
        path: a slide's file, or a folder of DICOM whole-slide instances.

    Raises:
        DataError: no installed reader can open it; the message names no path.
    """
    if path.is_dir():
        _require("wsidicom", "imagecodecs")
        return _open_dicom(path)
    _require("openslide", "tifffile", "imagecodecs")
    try:
        with path.open("rb") as file:
            head = file.read(4)
    except FileNotFoundError:
        if path.is_symlink():
            raise DataError("is a link that leads nowhere. Bring the file that it stands for") from None
        raise DataError("is missing. Copy it there again, or register the folder anew") from None
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})") from None
    if not head:
        raise DataError("is empty (0 bytes). Copy it again from its source")
    return _open_tiff(path) if head in _TIFF else _open_other(path)


def _open_dicom(folder: Path) -> Slide:
    try:
        return DicomSlideFile(folder)
    except (DataError, MemoryError):
        raise
    except Exception:  # noqa: BLE001 - wsidicom and pydicom raise many types for a broken file
        raise DataError(
            "cannot be read as a DICOM slide: its files are damaged or do not fit together. Copy them again"
        ) from None


def _open_tiff(path: Path) -> Slide:
    """Open a TIFF by tifffile, or by OpenSlide where needed."""
    reason, pyramid = "is damaged or cut off: it cannot be read as TIFF. Copy it again from its source", None
    try:
        return TiffSlideFile(path)
    except LeftToOpenSlideError as left:
        reason, pyramid = str(left), left.pyramid
    except (DataError, MemoryError):
        raise
    except Exception:  # noqa: BLE001, S110 - tifffile raises many types for a broken file; the other reader is tried
        pass
    slide = _openslide(path, pyramid.resolution if pyramid else None)
    if slide is None:
        raise DataError(reason)
    finest = slide.levels[0]
    if pyramid and (finest.width, finest.height) != pyramid.size:  # a macro or label comes first
        slide.close()
        raise DataError(reason)
    return slide


def _open_other(path: Path) -> Slide:
    slide = _openslide(path)
    if slide is not None:
        return slide
    tiles = path.with_suffix("")
    if path.suffix.lower() == ".mrxs" and not tiles.is_dir():
        raise DataError(f"lacks its tiles: there is no folder {tiles.name} beside it. Copy the folder, too")
    found = looks_like(path)
    seen = f"it looks like {found}" if found else "its first bytes are those of no slide"
    raise DataError(f"is no slide that can be read: {seen}. Expected {_FORMATS}")


def _openslide(path: Path, known: Resolution | None = None) -> OpenSlideFile | None:
    try:
        return OpenSlideFile(path, known)
    except (DataError, MemoryError):
        raise
    except Exception:  # noqa: BLE001 - the callers report it in words
        return None


class TileReader:
    """Reads tiles of a slide at one resolution; thread-safe.

    Args:
        path: of the slide.
        spec: size and resolution of a tile.

    Example:
        >>> with TileReader(path, TileSpec(256, mpp=0.5)) as tiles:  # doctest: +SKIP
        ...     tiles.read(x=1024, y=2048).shape
        (256, 256, 3)
    """

    def __init__(self, path: Path, spec: TileSpec) -> None:
        self.path, self.spec = path, spec
        self._slide = open_slide(path)
        self.levels = self._slide.levels
        self.vendor = self._slide.vendor
        self._lock = threading.Lock()
        self._closed = False
        self._users = 1  # the owner, and each reading thread
        finest = self.levels[0].mpp
        if finest <= 0:
            why = self._slide.unknown
            self._slide.close()
            raise DataError(
                f"does not say its resolution (microns per pixel){f': {why}' if why else ''}. Convert it with a tool "
                "that keeps the scanner's, or ask its source"
            )
        if spec.mpp < finest * (1 - SAME_RESOLUTION):
            self._slide.close()
            raise DataError(
                f"has at most {finest:.3f} microns per pixel, the tiles ask for {spec.mpp:g}. Take a finer scan of it "
                f"or, where tiles are free to be coarser, register them with --mpp {math.ceil(finest * 100) / 100:g}"
            )
        self.level = _level_for(self.levels, spec.mpp)
        self._scale = spec.mpp / self.levels[self.level].mpp
        if abs(self._scale - 1) < SAME_RESOLUTION:
            self._scale = 1.0

    def __enter__(self) -> TileReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the slide after its last reader."""
        with self._lock:
            closed, self._closed = self._closed, True
        if not closed:
            self._let_go()

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes on how the slide is read."""
        return self._slide.notes

    @property
    def step(self) -> float:
        """Pixels of the finest level per tile."""
        return self.spec.size * self._scale * self.levels[self.level].mpp / self.levels[0].mpp

    def read(self, x: int, y: int) -> Pixels:
        """Return the tile (size, size, 3) uint8 at (x, y).

        These are its corner, in pixels of the finest level.

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
        """Return an overview of the slide, and its scale.

        The scale is in pixels of the finest level per pixel of the overview.
        """
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
        """Defer closing while the slide is read.

        After closing, the file descriptor may belong to another file.
        """
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


def _level_for(levels: list[Level], mpp: float) -> int:
    """Return the coarsest level as fine as ``mpp``."""
    fine = [n for n, level in enumerate(levels) if level.mpp <= mpp * (1 + SAME_RESOLUTION)]
    return max(fine, key=lambda n: levels[n].mpp)


def _require(*names: str) -> None:
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise DataError(f"needs {' and '.join(missing)} to be read: pip install 'oncofed[pathology]'")
