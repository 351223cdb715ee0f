"""Group whole-slide instances into slides.

A pyramid's levels may lie in several series (PS3.3, C.8.12).

Levels of one slide share frame of reference, container and area, and differ in their number of pixels. Two scans of a
slide, which have the same sizes, stay two.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from oncofed.data.dicom.header_types import SlideHeader
from oncofed.data.dicom.stacks import SlideFile

VOLUME = "VOLUME"
_WHAT = {"LABEL": "label", "OVERVIEW": "overview", "THUMBNAIL": "thumbnail", "LOCALIZER": "overview"}
# Levels are cropped or padded to full pixels or tiles.
_SAME_ASPECT, _ROUNDED = 0.02, 2
_SAME_AREA = 0.02


@dataclass(frozen=True)
class WholeSlide:
    """One slide.

    Attributes:
        series: UID of the series of its finest level.
        instances: of its pyramid; without one, its label and overview.
    """

    series: str
    instances: tuple[SlideFile, ...]


def image_kind(image_type: Sequence[str]) -> str:
    """Return an instance's kind, by ImageType's third value.

    VOLUME, LABEL, OVERVIEW or THUMBNAIL.
    """
    named = image_type[2].strip().upper() if len(image_type) > 2 else ""
    return named or VOLUME


def whole_slides(by_series: Mapping[str, Sequence[SlideFile]]) -> tuple[list[WholeSlide], dict[str, str]]:
    """Return slides, and path -> reason for other files.

    Args:
        by_series: whole-slide instances by series.
    """
    pyramids: list[list[SlideFile]] = []
    associated: list[SlideFile] = []
    volumes = []
    for instances in by_series.values():
        associated += [item for item in instances if image_kind(_image_type(item)) != VOLUME]
        volumes.append([item for item in instances if image_kind(_image_type(item)) == VOLUME])
    for series in sorted(filter(None, volumes), key=_width, reverse=True):
        found = next((pyramid for pyramid in pyramids if _belongs(series, pyramid)), None)
        if found is None:
            pyramids.append(series)
        else:
            found += series
    slides = [WholeSlide(pyramid[0].header.series, tuple(pyramid)) for pyramid in pyramids]
    left_out: dict[str, str] = {}
    alone: dict[str, list[SlideFile]] = {}
    for item in associated:
        if any(_same_slide(item.header, other.header) for pyramid in pyramids for other in pyramid[:1]):
            kind = image_kind(_image_type(item))
            left_out[item.path] = f"{_WHAT.get(kind, kind)} of a DICOM slide, which is no level of its pyramid"
        else:
            alone.setdefault(item.header.series, []).append(item)
    return [*slides, *(WholeSlide(series, tuple(items)) for series, items in alone.items())], left_out


def _image_type(item: SlideFile) -> list[str]:
    return item.header.image_type


def _width(series: Iterable[SlideFile]) -> int:
    return max(_size(item.header)[0] for item in series)


def _size(header: SlideHeader) -> tuple[int, int]:
    width, height = header.matrix
    return width, height


def _belongs(series: Sequence[SlideFile], pyramid: Sequence[SlideFile]) -> bool:
    """Return whether a series holds further levels of a pyramid."""
    finest = pyramid[0].header
    sizes = {_size(item.header) for item in pyramid}
    return all(
        _same_slide(item.header, finest) and _size(item.header) not in sizes and _same_area(item.header, finest)
        for item in series
    )


def _same_slide(first: SlideHeader, second: SlideHeader) -> bool:
    """Return whether two instances are of one slide and space."""
    if (first.patient, first.study) != (second.patient, second.study):
        return False
    if first.series == second.series:
        return True
    pairs = ((first.frame_of_reference, second.frame_of_reference), (first.container, second.container))
    known = [pair for pair in pairs if all(pair)]
    return bool(known) and all(mine == theirs for mine, theirs in known)


def _same_area(level: SlideHeader, finest: SlideHeader) -> bool:
    """Return whether a level shows the finest one's area."""
    (width, height), (full_width, full_height) = _size(level), _size(finest)
    if not (0 < width < full_width and 0 < height < full_height):
        return False
    factor = full_width / width
    if abs(full_height / factor - height) > max(_ROUNDED, _SAME_ASPECT * height):
        return False
    if not level.imaged_mm or not finest.imaged_mm:
        return True
    return all(abs(a / b - 1) < _SAME_AREA for a, b in zip(level.imaged_mm, finest.imaged_mm, strict=True) if a and b)
