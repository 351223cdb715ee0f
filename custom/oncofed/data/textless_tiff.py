"""Copy TIFF files without text.

The stored pixels are copied byte by byte, with the tags that describe them.

Other tags are dropped. ImageJ, OME and tifffile state sizes and axes in text: numbers and known words of it are written
again.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import tifffile

from oncofed.data.formats.common import require_memory
from oncofed.data.formats.tiff import IS_TIFF
from oncofed.data.formats.units import millimetres
from oncofed.errors import DataError

# Tags of TIFF 6.0 and its supplements for storage, orientation and size of pixels.
_KEPT = {254, 255, 256, 257, 258, 259, 262, 266, 274, 277, 278, 282, 283, 284, 292, 293, 296, 317, 320, 322, 323}
_KEPT |= {332, 334, 336, 338, 339, 340, 341, 347, 529, 530, 531, 532, 50674}
_DESCRIPTION, _JPEG_TABLES = 270, 347
_STRIPS, _TILES = (273, 279), (324, 325)  # offsets and sizes
_ASCII, _LONG, _LONG8, _UNDEFINED = 2, 4, 16, 7
_IMAGEJ_NUMBERS = {"images", "channels", "slices", "frames", "spacing", "min", "max", "finterval", "fps"}
_IMAGEJ_WORDS = {"hyperstack", "mode", "loop"}
_WORDS = {"true", "false", "grayscale", "color", "composite"}
_OME = "http://www.openmicroscopy.org/Schemas/OME/2016-06"
_OME_SIZES = re.compile(
    r"Size[XYZCT]|PhysicalSize[XYZ](Unit)?|DimensionOrder|Type|BigEndian|Interleaved|SignificantBits"
)
_OME_PLANES = re.compile(r"IFD|First[CTZ]|PlaneCount")
_NUMBER = re.compile(r"-?[\d.]+([eE][+-]?\d+)?")
_OME_WORDS = re.compile(r"(?i)true|false|[XYZCT]{5}|u?int(8|16|32)|float|double|bit|(double-)?complex")


def is_slide(path: Path) -> bool:
    """Return whether a TIFF is a slide.

    Then only its largest image is copied, with its levels.
    """
    with path.open("rb") as start:
        if not start.read(4).startswith(IS_TIFF):
            return False
    with tifffile.TiffFile(path) as file:
        if file.is_svs or not file.pages or not file.pages[0].is_tiled:
            return bool(file.is_svs)
        stack = len(file.series[0].pages) > 1
        alone = file.is_ome and len(file.pages) == 1 and not file.pages[0].subifds
        return not stack and not alone


def tiff_without_text(path: Path) -> bytes:
    """Return a TIFF's pages without text and SubIFDs.

    Raises:
        DataError: it has no page, or its pixels lie in several files.
    """
    require_memory(2 * path.stat().st_size)
    with tifffile.TiffFile(path) as file:
        if not len(file.pages):
            raise DataError("is a TIFF without a page. Copy it again")
        big, order = bool(file.is_bigtiff), str(file.byteorder)
        mark = b"II" if order == "<" else b"MM"
        made = bytearray(mark + (struct.pack(f"{order}HHHQ", 43, 8, 0, 0) if big else struct.pack(f"{order}HI", 42, 0)))
        link = len(made) - (8 if big else 4)
        for number in range(len(file.pages)):
            tags = _tags(file, file.pages[number], made, order, big)
            if not number and (text := _description(file)):
                content = text.encode() + b"\0"
                tags[_DESCRIPTION] = (_ASCII, len(content), content)
            struct.pack_into(f"{order}{'Q' if big else 'I'}", made, link, _even_end(made))
            link = _append_page(made, tags, order, big)
    return bytes(made)


def _tags(file: Any, page: Any, made: bytearray, order: str, big: bool) -> dict[int, tuple[int, int, bytes]]:
    """Append a page's pixels, and return its tags.

    Code -> type, count and bytes of the value.
    """
    tags = {}
    for tag in page.tags:
        if tag.code in _KEPT and (int(tag.dtype) not in {_ASCII, _UNDEFINED} or tag.code == _JPEG_TABLES):
            file.filehandle.seek(tag.valueoffset)
            tags[int(tag.code)] = int(tag.dtype), int(tag.count), file.filehandle.read(tag.valuebytecount)
    places = []
    for segment in _segments(file, page):
        places.append(_even_end(made) if segment else 0)
        made += segment
    codes = _TILES if _TILES[0] in page.tags else _STRIPS
    for code, numbers in zip(codes, (places, list(page.databytecounts)), strict=True):
        kind = "Q" if big else "I"
        tags[code] = _LONG8 if big else _LONG, len(numbers), struct.pack(f"{order}{len(numbers)}{kind}", *numbers)
    return tags


def _segments(file: Any, page: Any) -> Iterator[bytes]:
    for offset, size in zip(page.dataoffsets, page.databytecounts, strict=True):
        file.filehandle.seek(offset)
        yield file.filehandle.read(size)


def _append_page(made: bytearray, tags: dict[int, tuple[int, int, bytes]], order: str, big: bool) -> int:
    """Append a page's directory.

    Returns the position of the next directory's offset.
    """
    room, number = (8, "Q") if big else (4, "I")
    start = len(made)
    head = struct.pack(f"{order}{'Q' if big else 'H'}", len(tags))
    behind = start + len(head) + len(tags) * (4 + 2 * room) + room
    entries, values = bytearray(head), bytearray()
    for code, (kind, count, content) in sorted(tags.items()):
        if len(content) <= room:
            field = content.ljust(room, b"\0")
        else:
            field = struct.pack(f"{order}{number}", behind + len(values))
            values += content + b"\0" * (len(content) % 2)
        entries += struct.pack(f"{order}HH{number}", code, kind, count) + field
    made += entries + bytes(room) + values
    return behind - room


def _even_end(made: bytearray) -> int:
    """Return the next even offset, as TIFF 6.0 wants."""
    made += bytes(len(made) % 2)
    return len(made)


def _description(file: Any) -> str:
    """Return the first page's description of pages, if any."""
    if file.is_ome:
        return _of_ome(file.ome_metadata)
    texts = [str(tag.value) for tag in file.pages[0].tags if tag.code == _DESCRIPTION]
    if file.is_imagej:
        return _of_imagej(next((text for text in texts if text.startswith("ImageJ=")), ""))
    return _of_tifffile(next((text for text in texts if text.startswith('{"shape"')), ""))


def _of_imagej(text: str) -> str:
    kept = ["ImageJ=1.11a"]
    for line in text.splitlines()[1:]:
        key, _, value = line.partition("=")
        number = key in _IMAGEJ_NUMBERS and _NUMBER.fullmatch(value)
        unit = key == "unit" and millimetres(value) is not None and len(value) <= 16
        if number or unit or (key in _IMAGEJ_WORDS and value in _WORDS):
            kept.append(line)
    return "\n".join([*kept, ""])


def _of_tifffile(text: str) -> str:
    try:
        described = json.loads(text) if text else {}
    except ValueError:
        return ""
    shape, axes = described.get("shape"), described.get("axes")
    if not isinstance(shape, list) or not all(isinstance(side, int) for side in shape):
        return ""
    named = {"axes": axes} if isinstance(axes, str) and re.fullmatch(r"[A-Z]{1,8}", axes) else {}
    return json.dumps({"shape": shape, **named})


def _of_ome(text: str) -> str:
    root = ElementTree.fromstring(text)  # noqa: S314 - of the site's own files
    made = ElementTree.Element("OME", xmlns=_OME)
    for number, pixels in enumerate(part for part in root.iter() if _name(part) == "Pixels"):
        image = ElementTree.SubElement(made, "Image", ID=f"Image:{number}")
        known = _kept(pixels, _OME_SIZES)
        whole = ElementTree.SubElement(image, "Pixels", {"ID": f"Pixels:{number}", **known})
        for count, part in enumerate(pixels):
            if _name(part) == "Channel":
                samples = _kept(part, re.compile("SamplesPerPixel"))
                ElementTree.SubElement(whole, "Channel", {"ID": f"Channel:{number}:{count}", **samples})
            elif _name(part) == "TiffData":
                ElementTree.SubElement(whole, "TiffData", _kept(part, _OME_PLANES))
    files = {part.get("FileName") for part in root.iter() if _name(part) == "UUID" and part.get("FileName")}
    if len(files) > 1:
        raise DataError(f"is one of {len(files)} OME-TIFF files of one image, expected a file of its own: save it so")
    xml: bytes = ElementTree.tostring(made, "us-ascii")
    return f'<?xml version="1.0" encoding="UTF-8"?>{xml.decode()}'


def _kept(part: ElementTree.Element, wanted: re.Pattern[str]) -> dict[str, str]:
    """Return an element's attributes that are free of text.

    Numbers, units and words of OME.
    """
    return {k: v for k, v in part.attrib.items() if wanted.fullmatch(k) and _is_known(v)}


def _is_known(value: str) -> bool:
    return bool(_NUMBER.fullmatch(value) or _OME_WORDS.fullmatch(value) or millimetres(value) is not None)


def _name(part: ElementTree.Element) -> str:
    return part.tag.rpartition("}")[2]


def copy_slide(path: Path, target: Path) -> None:
    """Copy a slide's compressed tiles into a new file.

    Label, macro and descriptions stay behind.

    Raises:
        DataError: it holds no slide.
    """
    from oncofed.data.slides.tiff_file import find_pyramid  # noqa: PLC0415 - for slides alone

    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.name}")
    with tifffile.TiffFile(path) as file, tifffile.TiffWriter(unfinished, bigtiff=True) as writer:
        pyramid = find_pyramid(file)
        pages, mpp = pyramid.pages, pyramid.resolution.mpp
        width = pages[0].shape[1]
        for number, page in enumerate(pages):
            scale = page.shape[1] / width
            resolution = (1e4 / mpp * scale, 1e4 / mpp * scale) if mpp else None
            writer.write(
                _segments(file, page),
                shape=page.shape,
                dtype=page.dtype,
                tile=(page.tilelength, page.tilewidth),
                photometric=page.photometric,
                compression=page.compression,
                jpegtables=page.jpegtables,
                subsampling=page.subsampling if page.photometric == tifffile.PHOTOMETRIC.YCBCR else None,
                subfiletype=1 if number else 0,
                resolution=resolution,
                resolutionunit="CENTIMETER" if resolution else None,
                metadata=None,
                software=False,
            )
    unfinished.replace(target)
