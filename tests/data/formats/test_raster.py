"""PNG, JPEG, WebP and BMP: upright as viewers show them, refused in words."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from oncofed.data.images import read_image
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
def test_what_is_wrong_is_said_in_words(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(DataError, match=said):
        read_image(tmp_path / "a.png")


def test_sixteen_bits_of_colour_that_are_halved_are_told(tmp_path: Path) -> None:
    import imagecodecs  # noqa: PLC0415 - of an extra

    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(FIELD.astype(np.uint16) * 257))
    read = read_image(tmp_path / "a.png")
    assert np.array_equal(read.values, FIELD.swapaxes(0, 1))
    assert read.notes == ("its 16 bits a colour are read as 8",)
