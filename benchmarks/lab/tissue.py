"""A slide of smooth tissue, tiled and JPEG-compressed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tifffile


def write_tissue(path: Path, side: int) -> None:
    """Write a slide of ``side`` x ``side`` tiles.

    Tiles of 256 x 256 pixels, half a micron each.
    """
    y, x = np.mgrid[: side * 256, : side * 256].astype(np.float32) / 256
    wave = (np.sin(x * 3) + np.cos(y * 2)) * 20
    pixels = np.stack([200 + wave, 130 + wave, 180 + wave], axis=-1).clip(0, 255).astype(np.uint8)
    tifffile.imwrite(
        path,
        pixels,
        tile=(256, 256),
        photometric="rgb",
        compression="jpeg",
        resolution=(2e4, 2e4),
        resolutionunit="CENTIMETER",
    )
