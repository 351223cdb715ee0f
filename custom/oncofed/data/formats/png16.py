"""Read 16-bit PNG, which Pillow reduces to 8 bits.

PNG specification, third edition, sections 7 and 9.
"""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Colour type -> channels.
_CHANNELS = {2: 3, 4: 2, 6: 4}


def read_sixteen_bits(path: Path) -> NDArray[np.uint16] | None:
    """Return a 16-bit PNG's (row, column, channel); None: interlaced.

    Filters predict a byte from the same byte of the pixels to the left and above, so that each byte of the pixels forms
    a separate 8-bit image, which Pillow decodes.

    Args:
        path: of a file that Pillow can read.
    """
    header, packed = b"", []
    with path.open("rb") as file:
        file.seek(len(_SIGNATURE))
        while len(start := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", start)
            content = file.read(length)
            file.seek(4, io.SEEK_CUR)
            if kind == b"IHDR":
                header = content
            elif kind == b"IDAT":
                packed.append(content)
            elif kind == b"IEND":
                break
    width, height, bits, kind_of_colour, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    if bits != 16 or interlaced or kind_of_colour not in _CHANNELS:
        return None
    step = 2 * _CHANNELS[kind_of_colour]
    row = 1 + width * step
    plain = zlib.decompressobj().decompress(b"".join(packed), row * height)
    rows = np.frombuffer(plain, np.uint8).reshape(height, row)
    pixels = np.empty((height, width, step), np.uint8)
    for number in range(step):
        lane = np.concatenate([rows[:, :1], rows[:, 1 + number :: step]], axis=1)
        with Image.open(io.BytesIO(_grey(lane)), formats=("PNG",)) as image:
            pixels[..., number] = np.asarray(image)
    return pixels.view(">u2").astype(np.uint16)


def _grey(rows: NDArray[np.uint8]) -> bytes:
    """Return an 8-bit grey PNG of filtered rows."""
    height, width = rows.shape
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", width - 1, height, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows.tobytes(), 0)),
        (b"IEND", b""),
    )
    return _SIGNATURE + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in parts
    )
