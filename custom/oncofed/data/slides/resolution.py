"""The resolution of slides, and why it is unknown.

Units of OME: the schema's UnitsLength. TIFF's tags: TIFF 6.0, section 8 (ResolutionUnit is inch by default).
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from oncofed.errors import DataError

# A level whose resolution differs by less than this is not resampled.
SAME_RESOLUTION = 0.02
# Pixels whose sides differ by less than this count as square.
_SQUARE = 0.05
_POWERS = {"Y": 24, "Z": 21, "E": 18, "P": 15, "T": 12, "G": 9, "M": 6, "k": 3, "h": 2, "da": 1, "": 0, "d": -1}
_POWERS |= {"c": -2, "m": -3, "µ": -6, "n": -9, "p": -12, "f": -15, "a": -18, "z": -21, "y": -24}
_MICRONS = {
    **{f"{prefix}m": 10.0 ** (power + 6) for prefix, power in _POWERS.items()},
    **dict.fromkeys(("\u03bcm", "um", "micron", "microns"), 1.0),  # the first with the Greek letter
    **dict.fromkeys(("Å", "\u212b"), 1e-4),  # the letter, and the sign for Ångström
    "thou": 25.4,
    "li": 25_400 / 12,
    "in": 25_400.0,
    "ft": 304_800.0,
    "yd": 914_400.0,
    "mi": 1_609_344_000.0,
    "pt": 25_400 / 72,
}
# Resolutions of screens and printers, which software writes by default; no microscope has them.
_DEFAULT_DPI = (1, 72, 75, 90, 96, 100, 120, 144, 150, 180, 200, 240, 300, 360, 400, 600, 720, 1200)


@dataclass(frozen=True)
class Resolution:
    """Microns per pixel; if unknown, 0 and ``why``."""

    mpp: float
    why: str = ""


def unknown(why: str) -> Resolution:
    """Return an unknown resolution."""
    return Resolution(0.0, why)


def square(x: float, y: float) -> Resolution:
    """Return the resolution of pixels of ``x`` by ``y`` microns.

    0 stands for an unknown side.

    Raises:
        DataError: they are not square, so square tiles would not be square on the slide.
    """
    sides = [side for side in (x, y) if side > 0]
    if not sides:
        return unknown("")
    if max(sides) > min(sides) * (1 + _SQUARE):
        raise DataError(f"has pixels of {x:.4g} by {y:.4g} microns, expected square ones. Convert it to square pixels")
    return Resolution(sum(sides) / len(sides))


def number(text: Any) -> float:
    """Parse a positive finite size; 0 for other text."""
    try:
        value = float(str(text).strip().replace(",", "."))
    except ValueError:
        return 0.0
    return value if math.isfinite(value) and value > 0 else 0.0


def of_aperio(description: str) -> Resolution:
    """Return an Aperio description's resolution: ``... |MPP = 0.2520| ...``."""
    for part in description.split("|"):
        key, _, value = part.partition("=")
        if key.strip() == "MPP":
            found = number(value)
            return Resolution(found) if found else unknown(f"its description says MPP = {value.strip()[:20]}")
    return unknown("its description has no MPP")


@dataclass(frozen=True)
class OmeImage:
    """One image of OME-XML: name, pixels, physical size."""

    name: str
    width: int
    height: int
    sizes: dict[str, str]

    def resolution(self) -> Resolution:
        """Return the stated resolution.

        Raises:
            DataError: its pixels are not square.
        """
        sides, reasons = [], []
        for axis in "XY":
            size, unit = self.sizes.get(f"PhysicalSize{axis}"), self.sizes.get(f"PhysicalSize{axis}Unit", "µm")
            microns = number(size) * _MICRONS.get(unit.strip(), 0.0)
            sides.append(microns)
            if size is not None and not microns:
                reasons.append(f"PhysicalSize{axis} is {size[:20]} {unit[:20]}, which is no length")
        found = square(*sides) if not reasons else unknown("")
        return found if found.mpp else unknown("; ".join(reasons) or "its OME-XML has no PhysicalSizeX")


def ome_images(xml: str | None) -> list[OmeImage]:
    """Return the images of OME-XML; empty: unreadable."""
    return list(_ome_images(xml)) if xml else []


def _ome_images(xml: str) -> Iterator[OmeImage]:
    try:
        root = ET.fromstring(xml)  # noqa: S314 - of a local file
    except ET.ParseError:
        return
    for image in root:
        if not image.tag.endswith("Image"):
            continue
        for pixels in image:
            if pixels.tag.endswith("Pixels"):
                width, height = (int(number(pixels.get(f"Size{axis}"))) for axis in "XY")
                yield OmeImage(name=image.get("Name") or "", width=width, height=height, sizes=dict(pixels.attrib))


def of_tags(x: float, y: float, unit: int) -> Resolution:
    """Return the resolution of TIFF's tags.

    Args:
        x: XResolution, pixels per unit; 0: missing.
        y: YResolution.
        unit: ResolutionUnit; 1 is none.

    Raises:
        DataError: its pixels are not square.
    """
    per_unit = {2: 25_400.0, 3: 10_000.0}.get(unit)
    if not (x and y):
        return unknown("it has no XResolution and YResolution")
    if per_unit is None:
        return unknown("its XResolution has no unit")
    found = square(per_unit / x, per_unit / y)
    dots = 25_400 / found.mpp
    # 2.54: one pixel per centimetre, another default.
    default = next((dpi for dpi in (*_DEFAULT_DPI, 2.54) if abs(dots / dpi - 1) < 0.005), None)
    if default is not None:
        return unknown(f"its resolution tags say {default:g} pixels per inch, which software writes by default")
    return found
