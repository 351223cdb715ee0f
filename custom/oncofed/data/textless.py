"""Copy flat images without the text in their files."""

from __future__ import annotations

import io
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from oncofed.data.formats.common import LoadedImage
from oncofed.data.formats.tiff import IS_TIFF
from oncofed.data.images import read_stored
from oncofed.data.textless_tiff import tiff_without_text
from oncofed.errors import DataError

_ORIENTATION = 0x0112  # Exif
_PNG_TEXT = {b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"tIME"}


def without_text(path: Path) -> bytes:
    """Return a flat image's file without its text.

    PNG, JPEG, WebP, BMP or TIFF, without comments, camera data, names. The orientation stays, because masks lie on the
    image as shown.

    Raises:
        DataError: it is cut off, or holds several pictures.
    """
    content = path.read_bytes()
    if content.startswith(IS_TIFF):
        return tiff_without_text(path)
    with Image.open(path) as image:
        orientation = int(image.getexif().get(_ORIENTATION) or 1)
        if content.startswith(b"\x89PNG"):
            return _png_without_text(content, _orientation_alone(orientation))
        if content.startswith(b"\xff\xd8"):
            return _jpeg_without_text(content, _orientation_alone(orientation))
        pages, kind = getattr(image, "n_frames", 1), image.format
        if pages > 1:
            raise DataError(f"holds {pages} pictures one after another, expected one")
        buffer = io.BytesIO()
        _redrawn(image).save(buffer, kind, lossless=True)
    return buffer.getvalue()


def require_same(original: Path, made: Path) -> None:
    """Remove a copy that differs from its original.

    Raises:
        DataError: they differ, or the original cannot be read.
    """
    try:
        what = _difference(read_stored(original), read_stored(made))
    except DataError:
        made.unlink()
        raise
    if what:
        made.unlink()
        raise DataError(
            f"cannot be copied without its text: the copy would have other {what}. Export it anew, "
            "without tags of its maker, and copy that"
        )


def _difference(first: LoadedImage, second: LoadedImage) -> str | None:
    """Return how two images differ, if they do."""
    if first.values.dtype != second.values.dtype or not np.array_equal(
        first.values, second.values, equal_nan=_floats(first)
    ):
        return "pixel values"
    palettes = [None if image.palette is None else image.palette.tolist() for image in (first, second)]
    kinds = [(image.colour, image.alpha) for image in (first, second)]
    if kinds[0] != kinds[1] or palettes[0] != palettes[1]:
        return "colours"
    sizes_differ = first.calibrated != second.calibrated or not np.allclose(first.affine, second.affine)
    return "pixel sizes" if sizes_differ else None


def _floats(image: LoadedImage) -> bool:
    return image.values.dtype.kind == "f"


def _redrawn(image: Image.Image) -> Image.Image:
    """Return a picture's upright pixels, and nothing else."""
    image.load()
    upright = ImageOps.exif_transpose(image)
    clean = Image.new(upright.mode, upright.size)
    clean.paste(upright)
    if image.mode == "P" and (palette := image.getpalette()):
        clean.putpalette(palette)
    return clean


def _orientation_alone(orientation: int) -> bytes:
    """Return Exif with the orientation only; empty: upright."""
    if orientation not in range(2, 9):
        return b""
    exif = Image.Exif()
    exif[_ORIENTATION] = orientation
    return exif.tobytes()


def _png_without_text(content: bytes, exif: bytes) -> bytes:
    kept = [content[:8]]
    position = 8
    while position + 12 <= len(content):
        length = int.from_bytes(content[position : position + 4], "big")
        kind = content[position + 4 : position + 8]
        if kind == b"IDAT" and exif:
            part = b"eXIf" + exif.removeprefix(b"Exif\0\0")
            kept.append((len(part) - 4).to_bytes(4, "big") + part + zlib.crc32(part).to_bytes(4, "big"))
            exif = b""
        if kind not in _PNG_TEXT:
            kept.append(content[position : position + 12 + length])
        position += 12 + length
    if position != len(content) or not kept[-1][4:8] == b"IEND":
        raise DataError(
            "is a PNG image that is cut off or has something behind its end. Copy it again, or export it anew"
        )
    return b"".join(kept)


def _jpeg_without_text(content: bytes, exif: bytes) -> bytes:
    segment = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif if exif else b""
    kept = [content[:2], segment]
    position = 2
    while position + 4 <= len(content):
        if content[position] != 0xFF:
            raise DataError("is a JPEG image with broken segments. Copy it again, or export it anew")
        marker = content[position + 1]
        length = 2 + int.from_bytes(content[position + 2 : position + 4], "big")
        # APP0 defines pixels and APP14 colours; the other APP segments and comments are text.
        if not (0xE1 <= marker <= 0xED or marker in {0xEF, 0xFE}):
            kept.append(content[position : position + length])
        position += length
        if marker == 0xDA:  # the pixels follow, up to the end of the image
            end = content.rfind(b"\xff\xd9")
            if end < position:
                raise DataError("is a JPEG image that is cut off. Copy it again, or export it anew")
            kept.append(content[position : end + 2])
            return b"".join(kept)
    raise DataError("is a JPEG image that is cut off. Copy it again, or export it anew")
