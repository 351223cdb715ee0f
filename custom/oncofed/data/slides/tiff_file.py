"""Read TIFF slides through tifffile, tile by tile."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from oncofed.data.slides import resolution
from oncofed.data.slides.colour import jpeg_colours
from oncofed.data.slides.levels import WHITE, Level, Pixels
from oncofed.data.slides.recent import Recent
from oncofed.data.slides.resolution import SAME_RESOLUTION, OmeImage, Resolution
from oncofed.data.slides.tiff_decoders import JPEG, YCBCR, declared, decoder, stored_tiles
from oncofed.errors import DataError

_BLACK_IS_ZERO, _RGB = 1, 2
_PHOTOMETRIC = {0: "WhiteIsZero", 1: "BlackIsZero", 2: "RGB", 3: "a palette", 5: "CMYK", 6: "YCbCr", 8: "CIELab"}
# RGB (also with a fourth channel, 16 bits or planes), palette, CMYK, YCbCr with subsampling, CIELab.
_BY_LIBTIFF = {2, 3, 5, 6, 8}
_NO_PYRAMID = ("label", "macro", "overview", "thumbnail")
# Of decoded tiles that the next regions share: about a row across a slide.
_MOST_RECENT_BYTES = 128 * 2**20


@dataclass(frozen=True)
class Pyramid:
    """The slide of a TIFF file.

    Attributes:
        pages: of tifffile, the finest first.
        resolution: of the finest.
    """

    pages: list[Any]
    resolution: Resolution

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return _size(self.pages[0])


class LeftToOpenSlideError(DataError):
    """A file that only OpenSlide can read.

    Attributes:
        pyramid: the slide in it; None: as defined by the scanner's format.
    """

    def __init__(self, reason: str, pyramid: Pyramid | None = None) -> None:
        super().__init__(reason)
        self.pyramid = pyramid


class TiffSlideFile:
    """A tiled TIFF, OME-TIFF or SVS through tifffile.

    Each tile is decoded separately. Regions that are not the file's tiles share decoded ones with their neighbours.
    """

    def __init__(self, path: Path) -> None:
        import tifffile  # noqa: PLC0415 - optional

        self._recent = Recent(_MOST_RECENT_BYTES)

        self._file = tifffile.TiffFile(path)
        try:
            if self._file.is_ndpi or self._file.is_scn or self._file.is_bif or self._file.is_philips:
                raise LeftToOpenSlideError("is damaged or cut off: its scanner's format cannot be read")
            pyramid = find_pyramid(self._file)
            first = pyramid.pages[0]
            _require_colour(self._file, pyramid)
            self._pages = [page for page in pyramid.pages if _is_alike(page, first)]
            self._descriptor = self._file.filehandle.fileno()
            # Created here, so that threads only read them.
            self._decoders = [decoder(page, stored_tiles(self._descriptor, page)) for page in self._pages]
            self._require_tiles(pyramid)
        except BaseException:
            self._file.close()
            raise
        self.vendor: str | None = "aperio" if self._file.is_svs else None
        self.unknown = pyramid.resolution.why
        grey = first.photometric == _BLACK_IS_ZERO
        note = "its three channels are taken for red, green and blue: its PhotometricInterpretation is BlackIsZero"
        self.notes: tuple[str, ...] = (note,) if grey else ()
        full, mpp = first.shape[1], pyramid.resolution.mpp
        self.levels = [Level(p.shape[1], p.shape[0], mpp * full / p.shape[1]) for p in self._pages]

    def read(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        """Return (height, width, 3) uint8.

        For one aligned tile, only that tile is decoded.
        """
        page = self._pages[level]
        tile_width, tile_height = page.tilewidth, page.tilelength
        if x % tile_width == 0 and y % tile_height == 0 and width == tile_width and height == tile_height:
            return self._tile(level, x // tile_width, y // tile_height)
        region = np.full((height, width, 3), WHITE, np.uint8)
        for column in range(x // tile_width, -(-(x + width) // tile_width)):
            for row in range(y // tile_height, -(-(y + height) // tile_height)):
                tile = self._recent.get((level, column, row), self._tile)
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
        height, width = page.shape[:2]
        across, down = -(-width // page.tilewidth), -(-height // page.tilelength)
        whole = (page.tilelength, page.tilewidth, 3)
        number = row * across + column
        size = page.databytecounts[number] if 0 <= column < across and 0 <= row < down else 0
        if size == 0:
            return np.full(whole, WHITE, np.uint8)
        data = os.pread(self._descriptor, size, page.dataoffsets[number])
        if len(data) < size:
            raise DataError("is cut off: a tile's bytes are missing. Copy it again from its source")
        tile = self._decoded(level, data, number)
        used = (min(whole[0], height - row * whole[0]), min(whole[1], width - column * whole[1]))
        if tile.shape != whole or used != whole[:2]:  # parts beyond the image's edge are white
            padded = np.full(whole, WHITE, np.uint8)
            padded[: min(used[0], tile.shape[0]), : min(used[1], tile.shape[1])] = tile[: used[0], : used[1]]
            return padded
        return tile

    def _decoded(self, level: int, data: bytes, number: int) -> Pixels:
        try:
            tile = self._decoders[level](data, number)
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001 - codecs raise different errors
            tile = None
        if tile is None or tile.ndim != 3 or tile.shape[-1] != 3:
            raise DataError("is damaged: a tile cannot be decoded. Copy it again from its source")
        return tile

    def _require_tiles(self, pyramid: Pyramid) -> None:
        """Refuse early a slide that cannot be decoded."""
        for level, page in enumerate(self._pages):
            number = next((n for n, size in enumerate(page.databytecounts) if size), None)
            if number is not None:
                across = -(-page.shape[1] // page.tilewidth)
                try:
                    self._tile(level, number % across, number // across)
                except DataError as error:
                    raise LeftToOpenSlideError(str(error), pyramid) from None


def find_pyramid(file: Any) -> Pyramid:
    """Return the slide of a TIFF file.

    It is the largest image, with its levels and resolution.

    Args:
        file: of tifffile.

    Raises:
        DataError: it holds no image, or its pixels are not square.
    """
    series = [
        candidate
        for candidate in file.series
        if candidate.levels and candidate.keyframe is not None and _area(candidate.keyframe)
    ]
    if not series:
        raise DataError("is damaged or cut off: it is a TIFF file without an image. Copy it again from its source")
    main = max(series, key=lambda candidate: _area(candidate.keyframe))
    images = ome_images_of(file)
    stated = _stated(images, series.index(main), main)
    found = _resolution(file, main.keyframe, stated)
    pages = [level.keyframe for level in main.levels]
    for other in series:
        if other is not main and _is_level(file, other, main, images, series, found):
            pages += [level.keyframe for level in other.levels]
    pages = sorted({page.shape[:2]: page for page in pages[::-1]}.values(), key=_area, reverse=True)
    return Pyramid(pages, found)


def ome_images_of(file: Any) -> list[OmeImage]:
    """Return the images of a file's OME-XML; empty without."""
    return resolution.ome_images(file.ome_metadata) if file.is_ome else []


def describe(file: Any) -> str:
    """Describe a TIFF file's largest image."""
    page = max((candidate.keyframe for candidate in file.series if candidate.keyframe is not None), key=_area)
    photometric = _PHOTOMETRIC.get(int(page.photometric), f"of PhotometricInterpretation {int(page.photometric)}")
    channels = _channels(file, page)
    return f"{channels} {'channel' if channels == 1 else 'channels'} of {page.dtype}, stored as {photometric}"


def _channels(file: Any, page: Any) -> int:
    series = next((candidate for candidate in file.series if candidate.keyframe is page), None)
    sizes = dict(zip(series.axes, series.shape, strict=False)) if series else {}
    return int(sizes.get("C", 1)) * int(page.samplesperpixel)


def _require_colour(file: Any, pyramid: Pyramid) -> None:
    """Refuse an image without coloured tiles.

    Raises:
        LeftToOpenSlideError: it is one that libtiff, which OpenSlide uses, converts to RGB.
        DataError: nothing converts it to RGB.
    """
    page = pyramid.pages[0]
    if page.parent is not file:
        raise DataError("keeps its pixels in another file (OME-TIFF of several files), expected one file a slide")
    channels = _channels(file, page)
    if not page.is_tiled:
        raise DataError("is stored in strips, expected tiles. Convert it to a tiled TIFF (vips tiffsave --tile)")
    plain = page.ndim == 3 and page.shape[-1] == 3 and page.photometric in {_BLACK_IS_ZERO, _RGB, YCBCR}
    if plain and page.dtype == np.uint8 and channels == 3:
        return
    reason = f"has {describe(file)}; expected one colour image of 3 channels of uint8"
    whole = page.dtype in {np.dtype(np.uint8), np.dtype(np.uint16)} and channels == page.samplesperpixel
    if whole and page.photometric in _BY_LIBTIFF and not _is_contradictory(file, page):
        raise LeftToOpenSlideError(reason, pyramid)
    raise DataError(reason)


def _is_contradictory(file: Any, page: Any) -> bool:
    """Return whether a JPEG and its page contradict each other.

    On colours; OpenSlide follows the page.
    """
    if page.compression not in JPEG or page.samplesperpixel != 3:
        return False
    data = next((data for data, _ in stored_tiles(file.filehandle.fileno(), page)), b"")
    return jpeg_colours(data, page.jpegtables, declared(page)) != declared(page)


def _size(page: Any) -> tuple[int, int]:
    return int(page.imagewidth), int(page.imagelength)


def _is_alike(page: Any, first: Any) -> bool:
    return bool(
        page.parent is first.parent
        and page.is_tiled
        and page.ndim == 3
        and page.shape[-1] == 3
        and page.dtype == first.dtype
        and page.photometric in {_BLACK_IS_ZERO, _RGB, YCBCR}
    )


def _area(page: Any) -> int:
    return int(page.imagewidth) * int(page.imagelength)


# --- levels and resolution


def _is_level(
    file: Any, other: Any, main: Any, images: Sequence[OmeImage], series: Sequence[Any], found: Resolution
) -> bool:
    """Return whether an image is a level of the slide.

    It shows the same area, coarser, and is marked as a level.
    """
    page, full = other.keyframe, main.keyframe
    stated = _stated(images, series.index(other), other)
    if not found.mpp or any(word in (other.name or "").lower() for word in _NO_PYRAMID):
        return False
    factor = full.imagewidth / page.imagewidth
    if factor <= 1 + SAME_RESOLUTION or abs(full.imagelength / factor - page.imagelength) > 1:
        return False
    try:
        mpp = _resolution(file, page, stated).mpp
    except DataError:
        return False
    return bool(abs(mpp / (found.mpp * factor) - 1) < SAME_RESOLUTION)


def _stated(images: Sequence[OmeImage], number: int, series: Any) -> OmeImage | None:
    """Return the OME-XML of a series.

    By its position, else the only image of its size.
    """
    page = series.keyframe
    size = _size(page)
    if number < len(images) and (images[number].width, images[number].height) == size:
        return images[number]
    alike = [image for image in images if (image.width, image.height) == size]
    return alike[0] if len(alike) == 1 else None


def _resolution(file: Any, page: Any, stated: OmeImage | None) -> Resolution:
    """Return a page's resolution, by description or tags.

    OME's or Aperio's description takes precedence.
    """
    found = Resolution(0.0)
    if file.is_svs:
        found = resolution.of_aperio(str(file.pages.first.description))
    elif stated is not None:
        found = stated.resolution()
    if found.mpp:
        return found
    tags = _of_tags(page)
    return tags if tags.mpp else resolution.unknown("; ".join(why for why in (found.why, tags.why) if why))


def _of_tags(page: Any) -> Resolution:
    sides = []
    for name in ("XResolution", "YResolution"):
        tag = page.tags.get(name)
        above, below = tag.value if tag is not None else (0, 1)
        sides.append(above / below if above and below else 0.0)
    unit = page.tags.get("ResolutionUnit")
    return resolution.of_tags(sides[0], sides[1] or sides[0], int(unit.value) if unit is not None else 2)
