"""TIFF: pages, axes, units, and what white is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from oncofed.data.images import read_image
from oncofed.errors import DataError

RANDOM = np.random.default_rng(0)
FLAT = RANDOM.integers(0, 255, (24, 40), dtype=np.uint8)
STACK = RANDOM.integers(0, 4000, (8, 24, 40)).astype(np.uint16)


def _pages(path: Path, stack: np.ndarray, **more: object) -> Path:
    first, *others = [Image.fromarray(page) for page in stack]
    first.save(path, save_all=True, append_images=others, **more)
    return path


@pytest.mark.wild("pytiff#11, ruby-vips#91, CellProfiler#2071, tifffile#30", "a TIFF of several pages: the first alone")
@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_deflate"])
def test_pages_are_the_slices_of_a_volume(compression: str | None, tmp_path: Path) -> None:
    more = {"compression": compression} if compression else {}
    read = read_image(_pages(tmp_path / "a.tif", (STACK >> 4).astype(np.uint8), **more))
    assert np.array_equal(read.values[..., 0], (STACK >> 4).transpose(2, 1, 0))
    assert (read.spacing, read.orientation) == (None, None)
    assert read.notes == ("a TIFF of 8 pages, read as a volume",)


def test_colour_pages_are_the_slices_of_a_volume_in_colour(tmp_path: Path) -> None:
    stack = RANDOM.integers(0, 255, (3, 24, 40, 3), dtype=np.uint8)
    assert np.array_equal(read_image(_pages(tmp_path / "a.tif", stack)).values, stack.transpose(2, 1, 0, 3))


@pytest.mark.wild("CellProfiler#2071", "a smaller copy of an image taken for a page")
@pytest.mark.parametrize("inside", [True, False])
def test_smaller_copies_are_not_pages(inside: bool, tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(FLAT, subifds=1 if inside else 0, metadata=None)
        file.write(FLAT[::2, ::2], subfiletype=1, metadata=None)
    read = read_image(tmp_path / "a.tif")
    assert np.array_equal(read.values[..., 0], FLAT.T)


@pytest.mark.wild("CellProfiler#2071", "pages that are not alike: one of them, without a word")
def test_differing_pages_are_refused(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(FLAT, metadata=None)
        file.write(FLAT[:20], metadata=None)
    with pytest.raises(DataError, match=r"2 images of the sizes 40 x 20, 40 x 24, expected one: save each"):
        read_image(tmp_path / "a.tif")


@pytest.mark.wild("standard: OME-TIFF 2016-06, ImageJ's TIFF", "pixel sizes of microscopes in other units")
@pytest.mark.parametrize(
    ("unit", "in_mm"), [("um", 1e-3), ("micron", 1e-3), ("\\u00B5m", 1e-3), ("mm", 1.0), ("cm", 10.0), ("nm", 1e-6)]
)
def test_imagejs_units(unit: str, in_mm: float, tmp_path: Path) -> None:
    metadata = {"unit": unit, "spacing": 3.0, "axes": "ZYX"}
    tifffile.imwrite(tmp_path / "a.tif", STACK, imagej=True, resolution=(4, 2), metadata=metadata)
    read = read_image(tmp_path / "a.tif")
    assert read.spacing == pytest.approx((0.25 * in_mm, 0.5 * in_mm, 3 * in_mm))
    assert read.orientation is None


@pytest.mark.parametrize(("unit", "in_mm"), [("µm", 1e-3), (None, 1e-3), ("mm", 1.0), ("pixel", None), ("Å", 1e-7)])
def test_omes_units(unit: str | None, in_mm: float | None, tmp_path: Path) -> None:
    metadata: dict[str, object] = {"axes": "ZYX"}
    for axis, size in zip("XYZ", (0.25, 0.5, 3.0), strict=True):
        metadata |= {f"PhysicalSize{axis}": size} | ({f"PhysicalSize{axis}Unit": unit} if unit else {})
    tifffile.imwrite(tmp_path / "a.ome.tif", STACK, metadata=metadata)
    read = read_image(tmp_path / "a.ome.tif")
    expected = pytest.approx((0.25 * in_mm, 0.5 * in_mm, 3 * in_mm)) if in_mm else None
    assert read.spacing == expected
    assert read.shape == (40, 24, 8)


def test_a_resolution_in_dots_per_inch_is_ignored(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", FLAT, resolution=(72, 72), resolutionunit="INCH")
    assert read_image(tmp_path / "a.tif").spacing is None


@pytest.mark.parametrize("axes", ["ZCYX", "CZYX"])
def test_channels_are_recognised_at_any_axis(axes: str, tmp_path: Path) -> None:
    values = RANDOM.integers(0, 4000, (3, 2, 24, 40) if axes == "ZCYX" else (2, 3, 24, 40)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.ome.tif", values, metadata={"axes": axes})
    order = (3, 2, 0, 1) if axes == "ZCYX" else (3, 2, 1, 0)
    assert np.array_equal(read_image(tmp_path / "a.ome.tif").values, values.transpose(order))


def test_time_points_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", STACK.reshape(2, 4, 24, 40), imagej=True, metadata={"axes": "TZYX"})
    with pytest.raises(DataError, match="2 points in time, expected one"):
        read_image(tmp_path / "a.tif")


@pytest.mark.wild("standard: TIFF 6.0, PhotometricInterpretation", "white that is zero")
@pytest.mark.parametrize("kind", [bool, np.uint8, np.uint16, np.uint32])
@pytest.mark.parametrize("pages", [1, 3])
def test_white_is_zero_is_inverted_at_every_depth(kind: type, pages: int, tmp_path: Path) -> None:
    top = 1 if kind is bool else np.iinfo(kind).max
    values = RANDOM.integers(0, top, (pages, 24, 40), endpoint=True).astype(kind)
    tifffile.imwrite(tmp_path / "a.tif", values if pages > 1 else values[0], photometric="miniswhite")
    expected = (top - values.astype(np.int64)).transpose(2, 1, 0)
    found = read_image(tmp_path / "a.tif").values[..., 0]
    assert np.array_equal(found, expected if pages > 1 else expected[..., 0])


@pytest.mark.wild("openslide#656", "a TIFF that Pillow does not know: cannot identify image file")
@pytest.mark.parametrize("compression", [None, "zlib", "lzw", "zstd", "jpeg2000", "packbits", "lzma"])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_compressions_and_channels(compression: str | None, channels: int, tmp_path: Path) -> None:
    values = RANDOM.integers(0, 255, (24, 40, channels), dtype=np.uint8)
    photometric = "rgb" if channels == 3 else "minisblack"
    if compression == "jpeg2000" and channels == 5:
        channels, values = 4, values[..., :4]
    written = values if channels > 1 else values[..., 0]
    tifffile.imwrite(
        tmp_path / "a.tif", written, photometric=photometric, planarconfig="contig", compression=compression
    )
    assert np.array_equal(read_image(tmp_path / "a.tif").values, values.swapaxes(0, 1))


@pytest.mark.wild("openslide#656", "a TIFF that nobody decodes: the last library's words")
def test_undecodable_pixels_are_named(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", FLAT, compression="lzw")
    content = bytearray((tmp_path / "a.tif").read_bytes())
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        offset = file.pages[0].tags["Compression"].valueoffset
    content[offset : offset + 2] = (34676).to_bytes(2, "little")
    (tmp_path / "a.tif").write_bytes(bytes(content))
    with pytest.raises(
        DataError, match=r"1 channels of 8 bits and an unknown \(number 34676\) compression, whose"
    ) as error:
        read_image(tmp_path / "a.tif")
    assert "Error" not in str(error.value)


@pytest.mark.wild("standard: TIFF 6.0, Orientation", "a TIFF that lies on its side")
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_is_applied(orientation: int, tmp_path: Path) -> None:
    extra = [(274, "H", 1, orientation, True)]
    tifffile.imwrite(tmp_path / "a.tif", FLAT, extratags=extra, metadata=None)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(FLAT).save(tmp_path / "a.png", exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "a.png")))
    assert np.array_equal(read_image(tmp_path / "a.tif").values[..., 0], expected.T)
    assert np.array_equal(read_image(tmp_path / "a.png").values[..., 0], expected.T)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_bytes_are_read_or_refused(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("t") / "a.tif"
    tifffile.imwrite(path, FLAT, compression="zlib")
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, min(400, len(content) - 1)))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content[: data.draw(st.integers(8, len(content)))]))
    said = ""
    try:
        read_image(path)
    except DataError as error:
        said = str(error)
    except MemoryError:  # of sides that no machine holds, which a case's reader refuses in its own words
        pass
    assert not any(word in said for word in ("Error", "0x", "cannot identify"))
