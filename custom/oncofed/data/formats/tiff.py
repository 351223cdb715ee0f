"""Read TIFF's pages as a flat image or a volume.

TIFF 6.0, BigTIFF, OME-TIFF, ImageJ's.

tifffile finds pages, axes and units, and decodes; Pillow decodes the rest.
"""

from __future__ import annotations

import importlib.util
import logging
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageSequence

from oncofed.data.formats.common import SWAPPED, LoadedImage, Values, require_memory, unreadable
from oncofed.data.formats.pillow import from_pillow, orientation_note
from oncofed.data.formats.units import millimetres
from oncofed.errors import DataError

IS_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

_PAGES = "ZIQ"  # axes of slices: depth, and unnamed ones
# PhotometricInterpretation.
_WHITE_IS_ZERO, _RGB, _PALETTE, _YCBCR = 0, 2, 3, 6
_KNOWN = (_WHITE_IS_ZERO, 1, _RGB, _PALETTE)
_COLOUR_NAMES = {4: "a transparency mask", 5: "CMYK", 6: "YCbCr", 8: "CIELab", 32803: "a camera's raw pixels"}
_LOSSY = {6: "JPEG", 7: "JPEG", 33003: "JPEG 2000", 33005: "JPEG 2000", 34712: "JPEG 2000", 50001: "WebP"}
_NAMES = {1: "no", 2: "CCITT", 3: "fax", 4: "fax", 5: "LZW", 8: "Deflate", 32773: "PackBits", 32946: "Deflate"}
_NAMES |= {34925: "LZMA", 50000: "Zstandard", 34887: "LERC", 50002: "JPEG XL", **_LOSSY}
_APERIO_YCC = 33003  # JPEG 2000 with YCbCr components, whatever its photometric interpretation
_ORIENTATION, _X_RESOLUTION, _Y_RESOLUTION = 274, 282, 283  # tags
_REDUCED, _IS_MASK = 1, 4  # bits of NewSubfileType
_LOOKS = ("a TIFF image",)
# Screen resolutions, which programs write by default.
_SCREEN_DPI = (72, 96)

logging.getLogger("tifffile").setLevel(logging.CRITICAL)


def read_tiff(path: Path) -> LoadedImage:
    """Read a TIFF as a flat image or a volume.

    One page is a flat image, several are a volume; smaller copies of a page and transparency masks do not count. Pixel
    sizes are those of OME's or ImageJ's metadata; a resolution in dots per inch says nothing about the object.

    Raises:
        DataError: it is broken, or holds neither one image nor one volume.
    """
    import tifffile  # noqa: PLC0415 - takes 0.1 s to import, and only TIFF needs it

    try:
        with tifffile.TiffFile(path) as file:
            return _read(path, file)
    except (DataError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise unreadable(path, "TIFF", "its header or its pixels are damaged. Copy it again", _LOOKS) from None


def _read(path: Path, file: Any) -> LoadedImage:
    series = _one_series(file)
    page = series.keyframe
    require_memory(int(np.prod(series.shape, dtype=np.int64)) * series.dtype.itemsize)
    axes = _checked_axes(series.axes, series.shape)
    image = _decoded(path, series, page, axes)
    notes = list(image.notes)
    slices = image.values.shape[2] if image.dimensions == 3 else 0
    if slices:
        notes.append(f"a TIFF of {slices} pages, read as a volume")
    tag = page.tags.get(_ORIENTATION)
    orientation = int(tag.value) if tag is not None and tag.value in range(2, 9) else 1
    x, y, z = _pixel_sizes(file, page)
    if orientation > 1:
        notes.append(orientation_note(orientation))
    if orientation in SWAPPED:
        x, y = y, x
    affine, calibrated = np.eye(4), bool(x and y and (z or not slices))
    if calibrated:
        affine[[0, 1, 2], [0, 1, 2]] = x, y, z if slices else 1.0
    return replace(
        image,
        affine=affine,
        calibrated=calibrated,
        oriented=False,
        notes=tuple(notes),
        lossy=_LOSSY.get(int(page.compression)),
        exif=orientation,
    )


def _one_series(file: Any) -> Any:
    """Return the pages of the only image."""
    if not len(file.pages):
        raise DataError("is a TIFF without a page. Copy it again")
    all_series = [s for s in file.series if not int(s.keyframe.subfiletype) & (_REDUCED | _IS_MASK)]
    if not all_series:
        raise DataError(
            "is a TIFF that holds only smaller copies of an image, or transparency. Export the image itself"
        )
    if len(all_series) > 1:
        sizes = sorted({f"{s.keyframe.imagewidth} x {s.keyframe.imagelength}" for s in all_series})
        what = f"of the sizes {', '.join(sizes[:4])}" if len(sizes) > 1 else f"of {sizes[0]} pixels that are not alike"
        raise DataError(f"is a TIFF of {len(all_series)} images {what}, expected one: save each as a file of its own")
    return all_series[0]


def _checked_axes(axes: str, shape: tuple[int, ...]) -> str:
    """Return tifffile's axes; refuse other than space and channels."""
    sides = dict(zip(axes, shape, strict=True))
    if "T" in sides and sides["T"] > 1:
        raise DataError(f"is a TIFF of {sides['T']} points in time, expected one: save each as a file of its own")
    deep = [axis for axis in axes if axis in _PAGES and sides[axis] > 1]
    odd = [axis for axis in axes if axis not in f"{_PAGES}TYXSC" and sides[axis] > 1]
    if len(deep) > 1 or odd or len(set(axes)) < len(axes) or not {"X", "Y"} <= set(axes):
        text = " x ".join(map(str, shape))
        raise DataError(f"is a TIFF with the axes {axes} ({text}), expected one image or one stack of slices")
    return axes


def _decoded(path: Path, series: Any, page: Any, axes: str) -> LoadedImage:
    """Return the upright pixels, by the first able decoder."""
    by_tifffile = partial(_by_tifffile, series, page, axes)
    by_pillow = partial(_by_pillow, path, page, len(series.pages), axes)
    # Pillow scales 2-bit and 4-bit grey to 8 bits as every viewer does, and converts print colours to screen colours.
    ways = [by_tifffile, by_pillow] if page.photometric in _KNOWN and page.bitspersample not in {2, 4} else [by_pillow]
    if page.photometric == _YCBCR and int(page.compression) in _LOSSY:
        ways = [by_pillow, by_tifffile]
    for way in ways:
        image = _tried(way)
        if image is not None:
            return image
    raise DataError(_what_it_is(page))


def _tried(way: Callable[[], LoadedImage]) -> LoadedImage | None:
    try:
        return way()
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - both libraries raise many types if they cannot decode
        return None


def _what_it_is(page: Any) -> str:
    codec = int(page.compression)
    name = _NAMES.get(codec, f"an unknown (number {codec})")
    colour = _COLOUR_NAMES.get(int(page.photometric), "")
    kind = f"{page.samplesperpixel} channels of {page.bitspersample} bits{f' in {colour}' if colour else ''}"
    text = f"is a TIFF with {kind} and {name} compression, whose pixels cannot be decoded: they are damaged"
    if importlib.util.find_spec("imagecodecs") is None:
        return f"{text}, or need pip install 'oncofed[pathology]'"
    return f"{text}, or of a kind that is not known here. Save it uncompressed, or as PNG"


def _by_tifffile(series: Any, page: Any, axes: str) -> LoadedImage:
    values = series.asarray()
    order = [axes.index(axis) for axis in "YX"]
    deep = [n for n, axis in enumerate(axes) if axis in _PAGES and values.shape[n] > 1]
    rest = [n for n, axis in enumerate(axes) if axis in "SC"]
    single = [n for n in range(values.ndim) if n not in {*order, *deep, *rest}]
    values = np.transpose(values, (*single, *order, *deep, *rest)).reshape(
        *(values.shape[n] for n in (*order, *deep)), -1
    )
    if values.dtype == bool:
        values = values.astype(np.uint8)
    if page.photometric == _WHITE_IS_ZERO:
        values = _inverted(values, page.bitspersample)
    if int(page.compression) == _APERIO_YCC and values.shape[-1] == 3 and values.dtype == np.uint8:
        flat = Image.frombytes("YCbCr", (values[..., 0].size, 1), np.ascontiguousarray(values).tobytes())
        values = np.asarray(flat.convert("RGB")).reshape(values.shape)
    tag = page.tags.get(_ORIENTATION)
    values = upright(values, int(tag.value) if tag is not None else 1).swapaxes(0, 1)
    rgb = page.photometric in {_RGB, _YCBCR} and page.samplesperpixel in {3, 4} and values.shape[-1] in {3, 4}
    extra = [int(kind) for kind in page.extrasamples]
    return LoadedImage(
        values,
        np.eye(4),
        str(values.dtype.newbyteorder("=")),
        calibrated=False,
        palette=_palette(page),
        colour=rgb and (values.shape[-1] == 3 or bool(extra and extra[0])),
        alpha=len(extra) == 1 and extra[0] in {1, 2} and values.shape[-1] in {2, 4},
    )


def _palette(page: Any) -> Any:
    """Return a colour map as (n, 3) uint8.

    TIFF specifies 16 bits, but some programs write 8.
    """
    if page.photometric != _PALETTE:
        return None
    colours = np.asarray(page.colormap).T
    return (colours >> 8 if colours.max() > 255 else colours).astype(np.uint8)


def _inverted(values: Values, bits: int) -> Values:
    """Return pixels stored with white as zero, inverted.

    TIFF 6.0, PhotometricInterpretation 0.
    """
    if values.dtype.kind == "u":
        inverted: Values = np.asarray(np.array((1 << min(bits, 64)) - 1, values.dtype) - values)
    elif values.dtype.kind == "i":
        inverted = ~values
    else:
        inverted = values.max() + values.min() - values
    return inverted


def upright(values: Values, orientation: int) -> Values:
    """Return (row, column, …) turned by TIFF's tag Orientation."""
    if orientation in SWAPPED:
        values = values.swapaxes(0, 1)
    rows = slice(None, None, -1 if orientation in {3, 4, 7, 8} else 1)
    columns = slice(None, None, -1 if orientation in {2, 3, 6, 7} else 1)
    return values[rows, columns]


def _by_pillow(path: Path, page: Any, pages: int, axes: str) -> LoadedImage:
    if "C" in axes or (page.photometric == _WHITE_IS_ZERO and page.bitspersample > 8):
        raise ValueError("Pillow takes channels for pages, and does not invert 16 bits")
    with Image.open(path, formats=("TIFF",)) as file:
        if pages == 1:
            file.load()
            return from_pillow(file)
        images = []
        for frame in ImageSequence.Iterator(file):
            frame.load()
            images.append(from_pillow(frame))
    alike = [image.values for image in images if image.shape == images[0].shape]
    values = np.stack(alike[:pages], axis=2)
    return replace(images[0], values=values)


def _pixel_sizes(file: Any, page: Any) -> tuple[float | None, float | None, float | None]:
    """Return pixel sizes (x, y, z) in mm, if stated."""
    if file.is_ome:
        found = re.search(r"<(?:\w+:)?Pixels\b[^>]*>", file.ome_metadata or "")
        text = found[0] if found else ""
        attributes = dict(re.findall(r"(PhysicalSize[XYZ](?:Unit)?)\s*=\s*[\"']([^\"']*)[\"']", text))
        return _ome_size(attributes, "X"), _ome_size(attributes, "Y"), _ome_size(attributes, "Z")
    metadata = (file.imagej_metadata or {}) if file.is_imagej else {}
    each = millimetres(str(metadata.get("unit", "")))
    resolutions = [page.tags[tag].value for tag in (_X_RESOLUTION, _Y_RESOLUTION) if tag in page.tags]
    if each is None or len(resolutions) < 2 or not all(n and d for n, d in resolutions):
        return None, None, None
    x, y = (each * d / n for n, d in resolutions)
    if any(abs(25.4 / x - dpi) < 0.5 for dpi in _SCREEN_DPI):
        return None, None, None
    depth = metadata.get("spacing")
    return x, y, abs(float(depth)) * each if depth else None


def _ome_size(attributes: dict[str, str], axis: str) -> float | None:
    try:
        size = float(attributes[f"PhysicalSize{axis}"])
    except (KeyError, ValueError):
        return None
    each = millimetres(attributes.get(f"PhysicalSize{axis}Unit", "µm"))
    return size * each if each and 0 < size < float("inf") else None
