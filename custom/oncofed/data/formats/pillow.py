"""Pillow's pictures as arrays, without loss."""

from __future__ import annotations

import warnings

import numpy as np
from PIL import Image

from oncofed.data.formats.common import LoadedImage

# Pillow logs oddities of headers without the file's name; errors are raised and reported with the name.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
_SHOWN_IN = {"CMYK": "RGB", "YCbCr": "RGB", "HSV": "RGB", "RGBX": "RGB", "RGBa": "RGBA", "La": "LA", "PA": "RGBA"}


def from_pillow(image: Image.Image) -> LoadedImage:
    """Return a picture as (x, y, channel), with its palette."""
    if image.mode in _SHOWN_IN:
        image = image.convert(_SHOWN_IN[image.mode])
    palette = None
    if image.mode == "P":
        colours = image.getpalette("RGB") or []
        palette = np.zeros((256, 3), np.uint8)
        palette[: len(colours) // 3] = np.array(colours, np.uint8).reshape(-1, 3)
    values = np.asarray(image)
    if values.dtype == bool:
        values = values.astype(np.uint8)
    values = values[..., None] if values.ndim == 2 else values
    return LoadedImage(
        values.swapaxes(0, 1),
        np.eye(4),
        str(values.dtype.newbyteorder("=")),
        calibrated=False,
        palette=palette,
        colour=image.mode in {"RGB", "RGBA"},
        alpha=image.mode in {"RGBA", "LA"},
    )


def orientation_note(orientation: int) -> str:
    """Return the note on an image that was turned upright."""
    return f"turned as its Exif orientation ({orientation}) says"
