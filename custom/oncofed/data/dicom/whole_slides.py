"""Which whole-slide instances are one slide: a pyramid whose levels may lie in several series (PS3.3, C.8.12).

Levels of one slide have one frame of reference and one container, show one area, and differ in their number of pixels.
Two scans of one slide, which have the same sizes, stay two.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from oncofed.data.dicom.headers import Header
from oncofed.data.dicom.stacks import Slice

VOLUME = "VOLUME"
_WHAT = {"LABEL": "label", "OVERVIEW": "overview", "THUMBNAIL": "thumbnail", "LOCALIZER": "overview"}
# Levels are cut or filled up to whole pixels, or whole tiles.
_SAME_ASPECT, _ROUNDED = 0.02, 2
_SAME_AREA = 0.02


@dataclass(frozen=True)
class WholeSlide:
    """One slide.

    Attributes:
        series: UID of the series of its finest level.
        instances: of its pyramid; where it has none, its label and overview alone.
    """

    series: str
    instances: tuple[Slice, ...]


def image_kind(image_type: Sequence[str]) -> str:
    """Return what a whole-slide instance shows by the third value of ImageType: VOLUME, LABEL, OVERVIEW, THUMBNAIL."""
    named = image_type[2].strip().upper() if len(image_type) > 2 else ""
    return named or VOLUME


def whole_slides(by_series: Mapping[str, Sequence[Slice]]) -> tuple[list[WholeSlide], dict[str, str]]:
    """Return the slides of a heap, and path -> reason of the instances that are in none.

    Args:
        by_series: whole-slide instances by series.
    """
    pyramids: list[list[Slice]] = []
    beside: list[Slice] = []
    volumes = []
    for instances in by_series.values():
        beside += [item for item in instances if image_kind(_image_type(item)) != VOLUME]
        volumes.append([item for item in instances if image_kind(_image_type(item)) == VOLUME])
    for series in sorted(filter(None, volumes), key=_width, reverse=True):
        found = next((pyramid for pyramid in pyramids if _belongs(series, pyramid)), None)
        if found is None:
            pyramids.append(series)
        else:
            found += series
    slides = [WholeSlide(pyramid[0].header["series"], tuple(pyramid)) for pyramid in pyramids]
    left_out: dict[str, str] = {}
    alone: dict[str, list[Slice]] = {}
    for item in beside:
        if any(_same_slide(item.header, other.header) for pyramid in pyramids for other in pyramid[:1]):
            kind = image_kind(_image_type(item))
            left_out[item.path] = f"{_WHAT.get(kind, kind)} of a DICOM slide, which is no level of its pyramid"
        else:
            alone.setdefault(item.header["series"], []).append(item)
    return [*slides, *(WholeSlide(series, tuple(items)) for series, items in alone.items())], left_out


def _image_type(item: Slice) -> list[str]:
    return list(item.header.get("image_type") or [])


def _width(series: Iterable[Slice]) -> int:
    return max(_size(item.header)[0] for item in series)


def _size(header: Header) -> tuple[int, int]:
    width, height = header.get("matrix") or (0, 0)
    return int(width), int(height)


def _belongs(series: Sequence[Slice], pyramid: Sequence[Slice]) -> bool:
    """Return whether all instances of a series are further levels of a pyramid."""
    finest = pyramid[0].header
    sizes = {_size(item.header) for item in pyramid}
    return all(
        _same_slide(item.header, finest) and _size(item.header) not in sizes and _same_area(item.header, finest)
        for item in series
    )


def _same_slide(one: Header, other: Header) -> bool:
    """Return whether two headers are of one physical slide in one coordinate system."""
    if (one["patient"], one["study"]) != (other["patient"], other["study"]):
        return False
    if one["series"] == other["series"]:
        return True
    frames, containers = ({h.get(key) or "" for h in (one, other)} for key in ("frame_of_reference", "container"))
    known = [found for found in (frames, containers) if "" not in found]
    return bool(known) and all(len(found) == 1 for found in known)


def _same_area(level: Header, finest: Header) -> bool:
    """Return whether a level shows what the finest one does, with fewer pixels."""
    (width, height), (full_width, full_height) = _size(level), _size(finest)
    if not (0 < width < full_width and 0 < height < full_height):
        return False
    factor = full_width / width
    if abs(full_height / factor - height) > max(_ROUNDED, _SAME_ASPECT * height):
        return False
    areas = [header.get("imaged_mm") for header in (level, finest)]
    if not all(areas):
        return True
    return all(abs(a / b - 1) < _SAME_AREA for a, b in zip(*areas, strict=True) if a and b)
