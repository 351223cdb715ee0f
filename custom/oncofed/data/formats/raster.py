"""Read PNG, JPEG, BMP and WebP through Pillow.

The format is told by the first bytes; TIFF is in module ``tiff``.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from oncofed.data.formats.common import LoadedImage, Values, require_memory, unreadable
from oncofed.data.formats.pillow import from_pillow, orientation_note
from oncofed.data.formats.png16 import read_sixteen_bits
from oncofed.data.formats.tiff import IS_TIFF, read_tiff, upright
from oncofed.errors import DataError

RASTER = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")

_FORMATS = ("PNG", "JPEG", "BMP", "DIB", "WEBP", "GIF", "PPM")
_NAMES = {"png": "PNG", "jpg": "JPEG", "jpeg": "JPEG", "bmp": "BMP", "webp": "WebP", "tif": "TIFF", "tiff": "TIFF"}
_ORIENTATION = 0x0112
# Raw modes of Pillow's decoders that drop the lower 8 of 16 bits.
_HALVED = ("RGB;16B", "RGBA;16B", "LA;16B")

# Memory is checked before pixels are read instead: a mask of a slide may be huge.
Image.MAX_IMAGE_PIXELS = None


def read_raster(path: Path) -> LoadedImage:
    """Read a flat image or TIFF pages, upright by Exif.

    Raises:
        DataError: it is broken, or of a kind that cannot be read.
    """
    name = _NAMES[path.suffix[1:].lower()]
    looks = (f"a {name} image",)
    with path.open("rb") as file:
        head = file.read(8)
    if head.startswith(IS_TIFF):
        return read_tiff(path)
    try:
        with Image.open(path, formats=_FORMATS) as image:
            return _read(path, image)
    except UnidentifiedImageError:
        raise unreadable(path, name, f"its beginning is none of such a file. Export it as {name}", looks) from None
    except DataError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise unreadable(path, name, "its pixels are damaged or end early. Copy it again", looks) from None


def _read(path: Path, image: Image.Image) -> LoadedImage:
    require_memory(image.width * image.height * 4)
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # MPO: a camera's second picture is a preview, or for the other eye
        raise DataError(f"holds {frames} pictures one after another, expected one")
    notes = []
    is_halved = any(tile[3] in _HALVED for tile in getattr(image, "tile", ()))
    if is_halved:
        require_memory(image.width * image.height * 24)
    said = image.getexif().get(_ORIENTATION)
    orientation = int(said) if said is not None and said in range(2, 9) else 1
    lossy = _lossy(path, image)
    image.load()
    full = read_sixteen_bits(path) if is_halved else None
    if is_halved and full is None:
        notes.append("its 16 bits a colour are read as 8")
    if orientation > 1:
        notes.append(orientation_note(orientation))
        ImageOps.exif_transpose(image, in_place=True)
    loaded = from_pillow(image) if full is None else _of_sixteen_bits(full, orientation)
    return replace(loaded, notes=tuple(notes), lossy=lossy, exif=orientation)


def _of_sixteen_bits(pixels: Values, orientation: int) -> LoadedImage:
    """Return 16-bit (row, column, channel) as an image."""
    values = upright(pixels, orientation).swapaxes(0, 1)
    channels = pixels.shape[-1]
    return LoadedImage(values, np.eye(4), "uint16", calibrated=False, colour=channels > 2, alpha=channels in {2, 4})


def _lossy(path: Path, image: Image.Image) -> str | None:
    if image.format in {"JPEG", "MPO"}:
        return "JPEG"
    if image.format != "WEBP":
        return None
    with path.open("rb") as file:
        # VP8L is WebP's lossless coder; its chunk comes first, or after those of metadata.
        return None if b"VP8L" in file.read(1 << 16) else "WebP"
