"""Slides of smooth tissue, tiled and compressed."""

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


def write_aperio(path: Path, side: int, compression: str, tile: int) -> Path:
    """Write a slide as Aperio's scanners do, of tissue with noise and dark nuclei.

    Args:
        path: of the file.
        side: tiles a side.
        compression: "jpeg", in YCbCr of half the resolution, or "jpeg2000", in RGB.
        tile: pixels a side of a tile, half a micron each.
    """
    width = side * tile
    noise = np.random.default_rng(0)
    y, x = np.mgrid[:width, :width].astype(np.float32) / 256
    wave = (np.sin(x * 3) + np.cos(y * 2)) * 20
    nuclei = (np.sin(x * 60) * np.cos(y * 50) > 0.7) * 60
    pixels = np.stack([200 + wave - nuclei, 130 + wave - nuclei, 180 + wave - nuclei / 2], axis=-1)
    pixels = (pixels + noise.normal(0, 6, pixels.shape)).clip(0, 255).astype(np.uint8)
    jpeg = compression == "jpeg"
    options: dict[str, int | str] = {"level": 75} if jpeg else {"level": 33}
    if jpeg:
        options = {**options, "outcolorspace": "ycbcr"}
    tifffile.imwrite(
        path,
        pixels,
        tile=(tile, tile),
        photometric="rgb",
        compression=7 if jpeg else 33005,
        compressionargs=options,
        subsampling=(2, 2) if jpeg else None,
        description=f"Aperio Image Library v12.0.15\r\n{width}x{width} [0,0 {width}x{width}] ({tile}x{tile}) "
        "Q=75|AppMag = 20|MPP = 0.5000",
        metadata=None,
    )
    return path
