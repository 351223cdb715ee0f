"""Read slides through OpenSlide.

Scanners' formats (SVS, NDPI, MRXS, SCN, BIF), and tiled TIFF that tifffile cannot decode.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from oncofed.data.slides import resolution
from oncofed.data.slides.levels import WHITE, Level, Pixels
from oncofed.data.slides.resolution import Resolution
from oncofed.errors import DataError

# Formats that state their resolution only in TIFF's tags.
_PLAIN_TIFF = {"generic-tiff"}


class OpenSlideFile:
    """A slide through OpenSlide.

    Args:
        path: of the file.
        known: its resolution, if more is known than OpenSlide tells.
    """

    def __init__(self, path: Path, known: Resolution | None = None) -> None:
        import openslide  # noqa: PLC0415 - optional

        self._slide = openslide.OpenSlide(str(path))
        properties = self._slide.properties
        self.vendor: str | None = properties.get("openslide.vendor")
        self.notes: tuple[str, ...] = ()
        try:
            found = known or self._resolution()
        except BaseException:
            self._slide.close()
            raise
        self.unknown = found.why
        self._downsamples = self._slide.level_downsamples
        self.levels = [
            Level(width, height, found.mpp * downsample)
            for (width, height), downsample in zip(self._slide.level_dimensions, self._downsamples, strict=True)
        ]

    def read(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        """Return (height, width, 3) uint8, white where transparent.

        OpenSlide makes areas outside transparent.
        """
        origin = (round(x * self._downsamples[level]), round(y * self._downsamples[level]))
        try:
            region = self._slide.read_region(origin, level, (width, height))
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001 - its message is about OpenSlide's internals
            raise DataError("is damaged: a part of it cannot be decoded. Copy it again from its source") from None
        white = Image.new("RGB", region.size, (WHITE,) * 3)
        white.paste(region, mask=region.getchannel("A"))
        return np.asarray(white)

    def close(self) -> None:
        """Close the file."""
        self._slide.close()

    def _resolution(self) -> Resolution:
        x, y = (resolution.number(self._slide.properties.get(f"openslide.mpp-{axis}")) for axis in "xy")
        if self.vendor in _PLAIN_TIFF and x and y:
            return resolution.of_tags(10_000 / x, 10_000 / y, 3)
        found = resolution.square(x, y)
        return found if found.mpp else resolution.unknown("its scanner's properties have no microns per pixel")
