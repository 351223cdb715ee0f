"""PNG, JPEG, WebP and BMP: orientation, depth, errors."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from oncofed.data.images import read_image, read_stored
from oncofed.data.masks import read_mask
from oncofed.errors import DataError

FIELD = np.random.default_rng(0).integers(0, 255, (24, 40, 3), dtype=np.uint8)


@pytest.mark.wild(
    "detectron2#788, detectron2#262, D-FINE#308, darwin-py#924", "an Exif orientation that is not applied"
)
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
def test_images_are_read_as_viewers_show_them(name: str, orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(FIELD).save(tmp_path / name, exif=exif)
    shown = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / name)))
    read = read_image(tmp_path / name)
    assert np.array_equal(read.values, shown.swapaxes(0, 1))
    assert read.shape == ((24, 40) if orientation > 4 else (40, 24))
    assert bool(read.notes) == (orientation > 1)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "CMYK", "1", "L", "I;16"])
def test_images_of_every_mode_have_colours_or_grey(mode: str, tmp_path: Path) -> None:
    image = Image.fromarray(FIELD)
    image = Image.fromarray(FIELD[..., 0].astype(np.uint16)) if mode == "I;16" else image.convert(mode)
    image.save(tmp_path / ("a.tif" if mode == "CMYK" else "a.png"))
    read = read_image(tmp_path / ("a.tif" if mode == "CMYK" else "a.png"))
    assert read.values.shape[-1] == (3 if mode in {"RGBA", "P", "CMYK"} else 1)
    if mode == "P":
        assert np.array_equal(read.values, np.asarray(image.convert("RGB")).swapaxes(0, 1))


def _bytes(image: Image.Image, kind: str, **more: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **more)
    return buffer.getvalue()


@pytest.mark.wild("openslide#656", "a broken picture: cannot identify image file")
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"%PDF-1.7" + bytes(90), "cannot be read as PNG: its beginning is none of such a file; it looks like a PDF"),
        (_bytes(Image.fromarray(FIELD), "PNG")[:300], "its pixels are damaged or end early"),
        (_bytes(Image.fromarray(FIELD), "JPEG")[:700], "its pixels are damaged or end early"),
        (
            _bytes(Image.fromarray(FIELD), "PNG", save_all=True, append_images=[Image.fromarray(255 - FIELD)]),
            "holds 2 pictures one after another, expected one",
        ),
    ],
)
def test_faults_are_described_in_words(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(DataError, match=said):
        read_image(tmp_path / "a.png")


def _png(values: np.ndarray, kind: int, filters: Sequence[int], interlaced: int = 0) -> bytes:
    """Return a 16-bit PNG written byte by byte.

    Each row has one of the filters of the specification.
    """
    height, width, channels = values.shape
    rows = values.astype(">u2").tobytes()
    step, length = 2 * channels, 2 * channels * width
    above, written = bytes(length), b""
    for number in range(height):
        row, how = rows[number * length : (number + 1) * length], filters[number % len(filters)]
        left, corner = bytes(step) + row[:-step], bytes(step) + above[:-step]
        guesses = []
        for a, b, c in zip(left, above, corner, strict=True):
            nearest = min((abs(b - c), 0, a), (abs(a - c), 1, b), (abs(a + b - 2 * c), 2, c))[2]
            guesses.append((0, a, b, (a + b) // 2, nearest)[how])
        written += bytes([how, *((x - guess) % 256 for x, guess in zip(row, guesses, strict=True))])
        above = row
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, interlaced)
    packed = zlib.compress(written)
    parts = ((b"IHDR", header), (b"IDAT", packed[:40]), (b"IDAT", packed[40:]), (b"IEND", b""))
    chunks = (struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.wild("standard: PNG, 9.2", "16 bits a colour that are read as 8")
@settings(max_examples=20, deadline=None)
@given(
    filters=st.lists(st.integers(0, 4), min_size=1, max_size=5),
    kind=st.sampled_from([(2, 3), (4, 2), (6, 4)]),
    seed=st.integers(0, 99),
)
def test_sixteen_bits_of_colour_are_read_in_full(
    filters: list[int], kind: tuple[int, int], seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("p") / "a.png"
    colour_type, channels = kind
    values = np.random.default_rng(seed).integers(0, 65536, (7, 9, channels)).astype(np.uint16)
    path.write_bytes(_png(values, colour_type, filters))
    read = read_stored(path)
    assert np.array_equal(read.values, values.swapaxes(0, 1))
    assert (read.stored, read.notes) == ("uint16", ())
    assert (read.colour, read.alpha) == (channels > 2, channels in {2, 4})
    assert np.array_equal(np.asarray(Image.open(path).convert("RGBA"))[..., 0], values[..., 0] >> 8)


@pytest.mark.parametrize("orientation", [3, 6])
def test_sixteen_bits_of_colour_are_turned_upright(orientation: int, tmp_path: Path) -> None:
    import imagecodecs  # noqa: PLC0415 - of an extra

    plain = imagecodecs.png_encode(FIELD.astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = orientation
    text = exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(text)) + b"eXIf" + text + struct.pack(">I", zlib.crc32(b"eXIf" + text))
    (tmp_path / "a.png").write_bytes(plain[:33] + chunk + plain[33:])
    Image.fromarray(FIELD).save(tmp_path / "b.png", exif=exif)
    halved = read_image(tmp_path / "b.png")
    read = read_image(tmp_path / "a.png")
    assert np.array_equal(read.values, halved.values.astype(np.uint16) * 257)
    assert read.notes == halved.notes


def test_colours_of_a_mask_in_sixteen_bits_are_those_of_eight(tmp_path: Path) -> None:
    mask = np.zeros((20, 30, 3), np.uint8)
    mask[4:9, 5:12] = (255, 0, 0)
    mask[12:18, 5:12] = (0, 128, 0)
    Image.fromarray(mask).save(tmp_path / "8.png")
    (tmp_path / "16.png").write_bytes(_png(mask.astype(np.uint16) * 257, 2, [1, 4]))
    assert np.array_equal(read_mask(tmp_path / "16.png").values, read_mask(tmp_path / "8.png").values)


def test_interlaced_sixteen_bit_colour_is_halved_with_a_note(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(_png(np.full((1, 1, 3), 0x1234, np.uint16), 2, [0], interlaced=1))
    read = read_image(tmp_path / "a.png")
    assert read.values.tolist() == [[[0x12] * 3]]
    assert read.notes == ("its 16 bits a colour are read as 8",)
