"""Read DICOM slides through wsidicom.

PS3.3, section A.32.8: one folder per slide, with one or several series.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import Counter
from pathlib import Path
from typing import Any, cast

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import JPEGBaseline8Bit, JPEGExtended12Bit, RLELossless, VLWholeSlideMicroscopyImageStorage

from oncofed.data.dicom.whole_slides import VOLUME, image_kind
from oncofed.data.slides import resolution
from oncofed.data.slides.colour import is_transformed, jpeg_colours, to_rgb
from oncofed.data.slides.levels import WHITE, Level, Pixels
from oncofed.errors import DataError

_JPEG = {JPEGBaseline8Bit, JPEGExtended12Bit}
_COLOUR = {"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "XYB"}
_TAGS = [
    "SOPClassUID",
    "ImageType",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "BitsAllocated",
    "TotalPixelMatrixColumns",
    "TotalPixelMatrixRows",
]

# wsidicom logs the paths of files that it skips; oncofed reports them itself.
logging.getLogger("wsidicom").setLevel(logging.CRITICAL)


class DicomSlideFile:
    """A DICOM slide's folder through wsidicom."""

    def __init__(self, folder: Path) -> None:
        from wsidicom import WsiDicom  # noqa: PLC0415 - optional
        from wsidicom.codec.decoder import PydicomDecoder  # noqa: PLC0415 - optional
        from wsidicom.config import Settings  # noqa: PLC0415 - optional
        from wsidicom.errors import WsiDicomNoResolutionError, WsiDicomNotFoundError  # noqa: PLC0415 - optional

        files = _volumes(folder)
        # A pyramid's levels may have different tile sizes.
        try:
            self._slide = WsiDicom.open(files, settings=Settings(strict_tile_size_check=False))
        except WsiDicomNotFoundError:
            raise DataError(_undecodable(files[0])) from None
        except WsiDicomNoResolutionError:
            raise DataError(
                "does not say its resolution: its header has no PixelSpacing. Convert it with a tool that keeps the "
                "scanner's, or ask its source"
            ) from None
        try:
            finest = self._slide.levels[0]
            width, mpp = finest.size.width, resolution.square(finest.mpp.width, finest.mpp.height).mpp
            sizes = [level.size for level in self._slide.levels]
            self.levels = [Level(size.width, size.height, mpp * width / size.width) for size in sizes]
            self.unknown = "" if mpp else "it has no PixelSpacing"
            self._numbers = [level.level for level in self._slide.levels]
            images = [i.image_data for level in self._slide.levels for i in level.instances.values()]
            # wsidicom locks shared objects except the decoder of uncompressed pixels, which keeps a frame.
            shared = any(isinstance(image.decoder, PydicomDecoder) for image in images)
            for image in images:
                image._decoder = _InRgb(image)  # it takes decoded components for colours
        except BaseException:
            self._slide.close()
            raise
        self._lock = threading.Lock() if shared else contextlib.nullcontext()
        self.notes: tuple[str, ...] = ()
        self.vendor: str | None = None
        with contextlib.suppress(AttributeError, ValueError):
            self.vendor = self._slide.metadata.equipment.manufacturer

    def read(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        """Return (height, width, 3) uint8; outside is white."""
        shape = self.levels[level]
        region = np.full((height, width, 3), WHITE, np.uint8)
        x0, y0 = max(x, 0), max(y, 0)
        x1, y1 = min(x + width, shape.width), min(y + height, shape.height)
        if x1 > x0 and y1 > y0:
            try:
                with self._lock:
                    part = self._slide.read_region((x0, y0), self._numbers[level], (x1 - x0, y1 - y0))
            except MemoryError:
                raise
            except Exception:  # noqa: BLE001 - codecs raise different errors
                raise DataError("is damaged: a frame cannot be decoded. Copy it again from its source") from None
            region[y0 - y : y1 - y, x0 - x : x1 - x] = np.asarray(part.convert("RGB"))
        return region

    def close(self) -> None:
        """Close the files."""
        self._slide.close()


class _InRgb:
    """A decoder of wsidicom that gives RGB.

    For any storage of frames: PS3.5, section 8.2.
    """

    def __init__(self, image: Any) -> None:
        self._decoder = image.decoder
        self._syntax = image.transfer_syntax
        self._declared = str(image.photometric_interpretation)

    def decode(self, frame: bytes) -> Pixels:
        """Return the frame as (row, column, 3) uint8."""
        if self._syntax in _JPEG:
            return _decode_jpeg(frame, self._declared)
        values = cast("Pixels", np.asarray(self._decoder.decode(frame)))
        if self._syntax == RLELossless and values.ndim == 3 and values.shape[0] == 3 != values.shape[-1]:
            values = np.moveaxis(values, 0, -1)
        return to_rgb(values) if self._is_ycbcr(frame) else values

    def _is_ycbcr(self, frame: bytes) -> bool:
        if self._declared in {"YBR_FULL", "YBR_FULL_422"}:
            return not is_transformed(frame) if _is_jpeg_2000(frame) else True
        # The decoder undoes the codestream's transformation. If the codestream has none, it must be undone here.
        return self._declared == "YBR_ICT" and _is_jpeg_2000(frame) and not is_transformed(frame)


def _is_jpeg_2000(frame: bytes) -> bool:
    return frame[:4] == b"\xff\x4f\xff\x51" or frame[4:8] == b"jP  "


def _decode_jpeg(frame: bytes, declared: str) -> Pixels:
    import imagecodecs  # noqa: PLC0415 - optional

    colours = jpeg_colours(frame, None, "RGB" if declared == "RGB" else "YCbCr")
    decoded: Pixels = imagecodecs.jpeg8_decode(frame, colorspace=colours.upper(), outcolorspace="RGB")
    return decoded


def _undecodable(path: Path) -> str:
    header = pydicom.dcmread(path, stop_before_pixels=True)
    syntax = header.file_meta.TransferSyntaxUID
    photometric = header.get("PhotometricInterpretation")
    return f"is stored as {photometric} in {syntax.name}, which is not read here. Convert it to RGB or JPEG"


def _volumes(folder: Path) -> list[Path]:
    """Return a slide's pyramid files, without label and overview.

    Raises:
        DataError: there is none, or its kind is not supported.
    """
    headers = {path: _header(path) for path in sorted(folder.iterdir())}
    slides = {
        path: header
        for path, header in headers.items()
        if header and header.get("SOPClassUID") == VLWholeSlideMicroscopyImageStorage
    }
    kinds = {path: image_kind([str(part) for part in header.get("ImageType") or []]) for path, header in slides.items()}
    files = [path for path, kind in kinds.items() if kind == VOLUME]
    if not slides:
        raise DataError(
            f"holds {len(headers)} files, none of which is a DICOM slide (VL Whole Slide Microscopy Image). Add its "
            "files, or leave the folder out"
        )
    if not files:
        found = ", ".join(f"{count} {kind}" for kind, count in sorted(Counter(kinds.values()).items()))
        raise DataError(
            f"holds no level of a slide's pyramid: found {found} (ImageType), expected VOLUME. Add the slide's files"
        )
    for path in files:
        _require_colour(slides[path])
    return files


def _header(path: Path) -> Dataset | None:
    try:
        return pydicom.dcmread(path, stop_before_pixels=True, specific_tags=_TAGS)
    except Exception:  # noqa: BLE001 - a broken header raises any type of error
        return None


def _require_colour(header: Dataset) -> None:
    samples, bits = header.get("SamplesPerPixel"), header.get("BitsAllocated")
    photometric = str(header.get("PhotometricInterpretation", "none"))
    if samples != 3 or bits != 8 or photometric not in _COLOUR:
        found = f"{samples} {'sample' if samples == 1 else 'samples'} a pixel of {bits} bits ({photometric})"
        raise DataError(f"has {found}, expected 3 of 8 bits in colour: it is no brightfield slide")
    if not header.get("TotalPixelMatrixColumns") or not header.get("TotalPixelMatrixRows"):
        raise DataError(
            "does not say how large it is: its header has no TotalPixelMatrixColumns and Rows. Export it again"
        )
    if header.get("PlanarConfiguration") == 1 and not header.file_meta.TransferSyntaxUID.is_encapsulated:
        raise DataError("stores each colour in a plane of its own (PlanarConfiguration 1), expected colours by pixel")
