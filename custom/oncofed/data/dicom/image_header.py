"""Read the headers of images and slides."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from pydicom.tag import Tag

from oncofed.data.dicom.elements import Elements, binaries, floats, integer, number, shown, tag_of, text, texts
from oncofed.data.dicom.header_types import ImageHeader, SlideHeader
from oncofed.data.dicom.projections import pixel_size

# Headers that differ between volumes of one series.
TELLING = (
    "EchoTime",
    "EchoNumbers",
    "InversionTime",
    "RepetitionTime",
    "FlipAngle",
    "DiffusionBValue",
    "DiffusionGradientOrientation",
    "TemporalPositionIdentifier",
    "TemporalPositionIndex",
    "ConvolutionKernel",
    "FilterType",
    "SliceThickness",
    "KVP",
    "ReconstructionDiameter",
    "ContrastBolusAgent",
    "ComplexImageComponent",
    "ImageType",
    "SequenceName",
    "Units",
    "NominalPercentageOfCardiacPhase",
    "FrameReferenceTime",
    "AcquisitionNumber",
    "SeriesNumber",
    "SeriesDescription",
    "ProtocolName",
    "StudyInstanceUID",
    "FrameOfReferenceUID",
    "AcquisitionDateTime",
    "AcquisitionDate",
    "AcquisitionTime",
    "TriggerTime",
    "SeriesTime",
    "ContentTime",
    "InstanceNumber",
)
_TELLING_TAGS = {tag_of(keyword): keyword for keyword in TELLING}
_SIEMENS_MOSAIC_IMAGES = Tag(0x0019, 0x100A)
_PHILIPS = 0x2005
_PHILIPS_CREATOR = "Philips MR Imaging DD 001"
_PHILIPS_BLOCKS = range(0x10, 0x16)
# Elements of the private block: intercept and slope of displayed values, and slope from measured to displayed values.
_PHILIPS_INTERCEPT, _PHILIPS_SLOPE, _PHILIPS_SCALE = 0x09, 0x0A, 0x0E
PRIVATE = (
    _SIEMENS_MOSAIC_IMAGES,
    *(Tag(_PHILIPS, block) for block in _PHILIPS_BLOCKS),
    *(Tag(_PHILIPS, block << 8 | _PHILIPS_SCALE) for block in _PHILIPS_BLOCKS),
    # The first version of Philips' tags has these two in the fifth block.
    *(Tag(_PHILIPS, 0x1400 | element) for element in (_PHILIPS_INTERCEPT, _PHILIPS_SLOPE)),
)

# Of the levels of a whole slide: PS3.3, C.8.12.4.
SLIDE_TAGS = (
    "ContainerIdentifier",
    "ImagedVolumeWidth",
    "ImagedVolumeHeight",
    "TotalPixelMatrixColumns",
    "TotalPixelMatrixRows",
)


def image_header(elements: Elements, common: Mapping[str, str], pixels_at: int) -> ImageHeader:
    """Return the header of an image.

    Args:
        elements: of its file.
        common: texts that all objects have, by field.
        pixels_at: byte of the file at which the pixels begin.

    Raises:
        DataError: a value is not a number.
    """
    image_type = texts(elements, "ImageType")
    texts_by_keyword = {keyword: shown(elements, keyword) for tag, keyword in _TELLING_TAGS.items() if tag in elements}
    size, scaling = pixel_size(elements), _scaling(elements)
    return ImageHeader(
        **common,
        rows=integer(elements, "Rows", 0),
        columns=integer(elements, "Columns", 0),
        frames=int(number(elements, "NumberOfFrames", 1)),
        samples=integer(elements, "SamplesPerPixel", 1),
        bits=integer(elements, "BitsAllocated", 16),
        bits_stored=integer(elements, "BitsStored", 16),
        signed=integer(elements, "PixelRepresentation", 0) == 1,
        image_type=image_type,
        position=floats(elements, "ImagePositionPatient", 3),
        orientation=floats(elements, "ImageOrientationPatient", 6),
        spacing=size.spacing,
        magnified=size.magnified,
        thickness=number(elements, "SpacingBetweenSlices", 0) or number(elements, "SliceThickness", 0),
        turned=texts(elements, "PatientOrientation"),
        plain_values=tag_of("ModalityLUTSequence") not in elements,
        padding=_padding(elements),
        enhanced=tag_of("SharedFunctionalGroupsSequence") in elements,
        mosaic="MOSAIC" in image_type or int(_SIEMENS_MOSAIC_IMAGES) in elements,
        units=text(elements, tag_of("Units")),
        intent=text(elements, tag_of("PresentationIntentType")),
        tells={keyword: value for keyword, value in texts_by_keyword.items() if value},
        has_slope=scaling.has_slope,
        slope=scaling.slope,
        intercept=scaling.intercept,
        philips_scale=scaling.philips_scale,
        pixels_at=pixels_at,
    )


def _padding(elements: Elements) -> list[int] | None:
    """Return the range of stored values that pad the image.

    PS3.3, section C.7.5.1.1.2.
    """
    if tag_of("PixelPaddingValue") not in elements:
        return None
    bits, signed = integer(elements, "BitsAllocated", 16), integer(elements, "PixelRepresentation", 0) == 1
    value = integer(elements, "PixelPaddingValue", 0)
    limits = [value, integer(elements, "PixelPaddingRangeLimit", value)]
    return sorted(limit - (1 << bits) if signed and limit >= 1 << (bits - 1) else limit for limit in limits)


class _Scaling(NamedTuple):
    has_slope: bool
    slope: float
    intercept: float
    philips_scale: float | None = None


def _scaling(elements: Elements) -> _Scaling:
    """Return slope and intercept from stored to real values.

    PS3.3, section C.11.1, or Philips' definition for MR.

    Philips' scanners store (measured x ScaleSlope - RescaleIntercept / RescaleSlope), with a scale for each image; only
    measured values can be compared between images (Chenevert et al., Translational Oncology 2014).
    """
    has_slope = bool(text(elements, tag_of("RescaleSlope")))
    slope, intercept = number(elements, "RescaleSlope", 1), number(elements, "RescaleIntercept", 0)
    is_philips = "philips" in text(elements, tag_of("Manufacturer")).lower()
    scale = None
    if is_philips and text(elements, tag_of("Modality")) == "MR":
        scale = _private(elements, _PHILIPS_SCALE)
    if scale is None:
        return _Scaling(has_slope, slope, intercept)
    if not has_slope and (own := _private(elements, _PHILIPS_SLOPE, 0x14)):
        has_slope, slope = True, own
        intercept = _private(elements, _PHILIPS_INTERCEPT, 0x14) or 0.0
    if has_slope and math.isfinite(scale) and scale > 0 and slope:
        return _Scaling(has_slope, 1 / scale, intercept / (slope * scale), scale)
    return _Scaling(has_slope, slope, intercept, scale)


def _private(elements: Elements, element: int, block: int | None = None) -> float | None:
    """Return a number of Philips' private block.

    The block is found by its creator's name; without names it is the first one.
    """
    names = {b: text(elements, int(Tag(_PHILIPS, b))) for b in _PHILIPS_BLOCKS}
    own = [b for b, name in names.items() if name.startswith(_PHILIPS_CREATOR)]
    if not own and any(names.values()):
        return None
    where = block or (own[0] if own else 0x10)
    found = elements.get(int(Tag(_PHILIPS, where << 8 | element)))
    if found is None or not found.value:
        return None
    # A binary number (FL) of four bytes, or text (DS); FL if the file states no types (implicit VR).
    if isinstance(found.value, bytes) and len(found.value) == 4 and found.VR != "DS":
        order = "<f4" if getattr(found, "is_little_endian", True) else ">f4"
        return float(np.frombuffer(found.value, order)[0])
    with contextlib.suppress(ValueError):
        return float(text(elements, int(found.tag)))
    return None


def slide_header(elements: Elements, common: Mapping[str, str]) -> SlideHeader:
    """Return the header of one instance of a whole slide.

    ``common`` are texts that all objects have, by field.
    """
    width, height, columns, rows = (_single_number(elements, keyword) for keyword in SLIDE_TAGS[1:])
    return SlideHeader(
        **common,
        image_type=texts(elements, "ImageType"),
        container=text(elements, tag_of("ContainerIdentifier")),
        matrix=[int(columns), int(rows)],
        imaged_mm=[width, height] if width and height else [],
    )


def _single_number(elements: Elements, keyword: str) -> float:
    """Return one binary number; 0 without it."""
    found = binaries(elements, keyword)
    return (found or [0.0])[0] if found is not None else number(elements, keyword, 0)
