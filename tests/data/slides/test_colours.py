"""Slides are decoded to RGB, whatever their files state."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import openslide
import pydicom
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000, UID, JPEG2000Lossless, JPEGBaseline8Bit, RLELossless

from dicoms import make_wsi
from oncofed.data.slides import TiffSlideFile, open_slide
from oncofed.data.slides.colour import jpeg_colours, to_rgb
from oncofed.errors import DataError
from slide_files import bare_tiff, jpeg, jpeg_2000, stained, tiled, ycbcr

Encode = Callable[[np.ndarray], bytes]

RGB, YCBCR = 2, 6
APERIO = "Aperio Image Library v10\r\n512x512 (256x256) J2K/YUV16 Q=70|AppMag = 20|MPP = 0.5"


def _encoded_ycbcr(pixels: np.ndarray) -> bytes:
    return jpeg_2000(ycbcr(pixels), transformed=False)


def _seen(path: Path) -> np.ndarray:
    slide = open_slide(path)
    try:
        return slide.read(0, 0, 0, 512, 512).astype(int)
    finally:
        slide.close()


def _is_right(path: Path, truth: np.ndarray) -> bool:
    # Losses of compression are below this; a wrong colour space differs by 30 and more.
    return bool(np.abs(_seen(path) - truth).mean() < 5)


J2K_YCC: Encode = _encoded_ycbcr
J2K_RGB: Encode = partial(jpeg_2000, transformed=False)
J2K_MCT: Encode = partial(jpeg_2000, transformed=True)


@pytest.mark.wild("openslide#772, openslide#646, bioformats#4166", "YCbCr in JPEG 2000 shown as red, green, blue")
@pytest.mark.parametrize(
    ("encode", "compression", "photometric"),
    [
        (J2K_YCC, 33003, RGB),
        (J2K_YCC, 33003, YCBCR),
        (J2K_YCC, 34712, YCBCR),
        (J2K_RGB, 33005, RGB),
        (J2K_RGB, 34712, RGB),
        (J2K_MCT, 33005, RGB),
        (J2K_MCT, 34712, RGB),
        (J2K_MCT, 33003, RGB),  # the declared YCbCr contradicts the stream, so the pixels decide
        (J2K_YCC, 33005, YCBCR),
        (J2K_RGB, 33005, YCBCR),
    ],
)
def test_jpeg_2000_in_tiff_is_shown_in_its_colours(
    tmp_path: Path, encode: Encode, compression: int, photometric: int
) -> None:
    pixels = stained(512, 512)
    path = bare_tiff(tmp_path / "a.svs", pixels, encode, compression, photometric, APERIO)
    assert _is_right(path, pixels)
    assert _is_right(bare_tiff(tmp_path / "plain.tif", pixels, encode, compression, photometric), pixels)


@pytest.mark.wild("openslide#772, openslide#646, bioformats#4166", "YCbCr in JPEG 2000 shown as red, green, blue")
def test_an_aperio_slide_in_ycbcr_is_what_openslide_shows(tmp_path: Path) -> None:
    path = bare_tiff(tmp_path / "a.svs", stained(512, 512), J2K_YCC, 33003, RGB, APERIO)
    peer = openslide.OpenSlide(str(path)).read_region((0, 0), 0, (512, 512)).convert("RGB")
    assert np.abs(_seen(path) - np.asarray(peer)).max() <= 3


@pytest.mark.wild("bioformats#2811, openslide#772", "JPEG whose markers say other than PhotometricInterpretation")
@pytest.mark.parametrize("photometric", [RGB, YCBCR])
@pytest.mark.parametrize("suffix", [".svs", ".tif"])
@pytest.mark.parametrize("space", ["rgb", "ycbcr"])
def test_jpeg_markers_take_precedence(tmp_path: Path, space: str, suffix: str, photometric: int) -> None:
    pixels = stained(512, 512)
    encode = partial(jpeg, space=space, marked=True)
    path = bare_tiff(tmp_path / f"a{suffix}", pixels, encode, 7, photometric, APERIO if suffix == ".svs" else "")
    assert _is_right(path, pixels)


@pytest.mark.wild("bioformats#2811, openslide#772", "JPEG without markers")
@pytest.mark.parametrize(
    ("space", "subsampled", "photometric"),
    [("rgb", False, RGB), ("ycbcr", False, YCBCR), ("ycbcr", True, YCBCR), ("ycbcr", True, RGB)],
)
def test_a_jpeg_without_markers_follows_its_page(
    tmp_path: Path, space: str, subsampled: bool, photometric: int
) -> None:
    pixels = stained(512, 512)
    encode = partial(jpeg, space=space, marked=False, subsampled=subsampled)
    assert _is_right(bare_tiff(tmp_path / "a.tif", pixels, encode, 7, photometric), pixels)


@pytest.mark.parametrize(
    ("encode", "compression"),
    [(J2K_MCT, 33005), (J2K_YCC, 33003), (partial(jpeg, space="ycbcr", marked=True), 7)],
    ids=["JPEG 2000", "JPEG 2000 in YCbCr", "JPEG"],
)
def test_several_threads_decode_what_one_does(tmp_path: Path, encode: Encode, compression: int) -> None:
    slide = open_slide(bare_tiff(tmp_path / "a.svs", stained(512, 512), encode, compression, RGB, APERIO))
    tiles = [slide.read(0, x, y, 256, 256) for x in (0, 256) for y in (0, 256)]

    def right(number: int) -> bool:
        x, y = divmod(number % 4, 2)
        return np.array_equal(slide.read(0, x * 256, y * 256, 256, 256), tiles[number % 4])

    try:
        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(right, range(24)))
    finally:
        slide.close()


def test_tiles_may_have_different_markers(tmp_path: Path) -> None:
    pixels = stained(512, 512)
    spaces = iter(["ycbcr", "rgb", "rgb", "ycbcr"])
    path = bare_tiff(tmp_path / "a.tif", pixels, lambda tile: jpeg(tile, next(spaces), marked=True), 7, RGB)
    assert _is_right(path, pixels)


@pytest.mark.wild("standard: TIFF 6.0 section 21", "uncompressed YCbCr shown as red, green, blue")
@pytest.mark.parametrize("compression", [None, "zlib", "lzw"])
def test_ycbcr_without_jpeg_is_turned_into_colours(tmp_path: Path, compression: str | None) -> None:
    pixels = stained(512, 512)
    path = tiled(tmp_path / "a.tif", ycbcr(pixels), photometric="ycbcr", compression=compression)
    with tifffile.TiffFile(path) as file:
        subsampling = file.pages.first.tags.valueof("YCbCrSubSampling")  # type: ignore[union-attr]
    assert subsampling in {None, (1, 1)}
    assert _is_right(path, pixels)


def test_webp_and_jpeg_xl_decode_to_rgb(tmp_path: Path) -> None:
    pixels = stained(512, 512)
    for codec in ("webp", "jpegxl"):
        assert _is_right(tiled(tmp_path / f"{codec}.tif", pixels, compression=codec), pixels)


def _dicom(folder: Path, encode: Encode, syntax: UID, photometric: str) -> np.ndarray:
    pixels = stained(512, 512)
    path = make_wsi(folder, pixels)
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID, dataset.PhotometricInterpretation = syntax, photometric
    frames = [pixels[y : y + 256, x : x + 256] for y in (0, 256) for x in (0, 256)]
    dataset.PixelData = encapsulate([encode(frame) for frame in frames])
    dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
    dataset.save_as(path)
    return pixels


@pytest.mark.wild("standard: PS3.5 8.2, pydicom#1206", "a DICOM slide whose frames are other than its header says")
@pytest.mark.parametrize(
    ("encode", "syntax", "photometric"),
    [
        (partial(jpeg, space="ycbcr", marked=True), JPEGBaseline8Bit, "RGB"),
        (partial(jpeg, space="ycbcr", marked=True), JPEGBaseline8Bit, "YBR_FULL_422"),
        (partial(jpeg, space="rgb", marked=True), JPEGBaseline8Bit, "YBR_FULL_422"),
        (partial(jpeg, space="rgb", marked=False), JPEGBaseline8Bit, "RGB"),
        (partial(jpeg, space="ycbcr", marked=False), JPEGBaseline8Bit, "YBR_FULL_422"),
        (J2K_MCT, JPEG2000Lossless, "YBR_RCT"),
        (J2K_MCT, JPEG2000Lossless, "RGB"),
        (J2K_RGB, JPEG2000Lossless, "RGB"),
        (J2K_YCC, JPEG2000, "YBR_FULL"),
        (J2K_YCC, JPEG2000, "YBR_FULL_422"),
        (J2K_YCC, JPEG2000, "YBR_ICT"),
        (J2K_MCT, JPEG2000, "YBR_FULL_422"),
    ],
)
def test_a_dicom_slide_is_shown_in_its_colours(tmp_path: Path, encode: Encode, syntax: UID, photometric: str) -> None:
    pixels = _dicom(tmp_path / "in", encode, syntax, photometric)
    assert _is_right(tmp_path / "in", pixels)


def test_a_run_length_encoded_dicom_slide_is_shown_in_its_colours(tmp_path: Path) -> None:
    pixels = stained(512, 512)
    path = make_wsi(tmp_path / "in", pixels)
    dataset = pydicom.dcmread(path)
    dataset.compress(RLELossless, generate_instance_uid=False)
    dataset.save_as(path)
    assert _is_right(tmp_path / "in", pixels)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"PhotometricInterpretation": "YBR_FULL"}, "is stored as YBR_FULL in Explicit VR Little Endian"),
        ({"PhotometricInterpretation": "MONOCHROME2", "SamplesPerPixel": 1}, "1 sample a pixel of 8 bits"),
        ({"PlanarConfiguration": 1}, "PlanarConfiguration 1"),
    ],
)
def test_a_dicom_slide_that_would_show_other_colours_is_refused(
    tmp_path: Path, change: dict[str, object], words: str
) -> None:
    path = make_wsi(tmp_path / "in", stained(256, 256))
    dataset = pydicom.dcmread(path)
    for keyword, value in change.items():
        setattr(dataset, keyword, value)
    dataset.save_as(path)
    with pytest.raises(DataError, match=words):
        open_slide(tmp_path / "in")


@settings(deadline=None, max_examples=12)
@given(st.lists(st.tuples(*[st.integers(0, 255)] * 3), min_size=4, max_size=4))
def test_ycbcr_and_back_is_the_same_colour(colours: list[tuple[int, int, int]]) -> None:
    pixels = np.array(colours, np.uint8).reshape(2, 2, 3)
    assert np.abs(to_rgb(ycbcr(pixels)).astype(int) - pixels).max() <= 3


def test_the_container_decides_on_unmarked_colours() -> None:
    stream = jpeg(stained(64, 64), "ycbcr", marked=False)  # its components are numbered and have no letters
    assert jpeg_colours(stream, None, "RGB") == "RGB"
    assert jpeg_colours(stream, None, "YCbCr") == "YCbCr"
    assert jpeg_colours(b"\xff\xd8" + stream[2:6], jpeg(stained(64, 64), "rgb", marked=True), "YCbCr") == "RGB"


def test_aligned_tiles_and_regions_agree_at_the_edge(tmp_path: Path) -> None:
    pixels = stained(400, 600)
    slide = TiffSlideFile(tiled(tmp_path / "a.tif", pixels, compression="jpeg"))
    tile, region = slide.read(0, 512, 256, 256, 256), slide.read(0, 500, 250, 268, 262)
    np.testing.assert_array_equal(tile, region[6:, 12:])
    assert (tile[144:] == 255).all()
    assert (tile[:, 88:] == 255).all()
    slide.close()
