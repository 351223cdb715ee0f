"""A file's slide, its resolution, and unknown resolutions."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from oncofed.data.deidentify import Options, deidentify
from oncofed.data.register import RegisterOptions, register
from oncofed.data.slides import OpenSlideFile, TileReader, TileSpec, open_slide
from oncofed.data.slides.resolution import OmeImage, of_aperio, of_tags
from oncofed.errors import DataError
from slide_files import MICRON, halved, stained, tiled

OPTIONS: dict[str, Any] = {"tile": (256, 256), "photometric": "rgb"}


def _size(mpp: float) -> dict[str, Any]:
    return {"axes": "YXS", "PhysicalSizeX": mpp, "PhysicalSizeY": mpp, **MICRON}


def _shapes(path: Path) -> list[tuple[int, int, float]]:
    slide = open_slide(path)
    slide.close()
    return [(level.width, level.height, round(level.mpp, 4)) for level in slide.levels]


@pytest.mark.wild("tiffslide#21, tiffslide#22, openslide#189", "OME-TIFF whose first image is the macro or the label")
@pytest.mark.parametrize(
    "order", [("macro", "label", "slide"), ("label", "slide", "macro"), ("slide", "macro", "label")]
)
def test_the_largest_image_of_an_ome_tiff_is_the_slide(tmp_path: Path, order: tuple[str, ...]) -> None:
    pixels = stained()
    images = {
        "macro": (stained(300, 400, (90, 60, 20)), 20.0),
        "label": (stained(256, 256), 20.0),
        "slide": (pixels, 0.5),
    }
    path = tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as writer:
        for name in order:
            values, mpp = images[name]
            writer.write(values, metadata={**_size(mpp), "Name": name}, **OPTIONS)
    assert _shapes(path) == [(640, 512, 0.5)]
    slide = open_slide(path)
    np.testing.assert_array_equal(slide.read(0, 100, 50, 300, 400), pixels[50:450, 100:400])
    slide.close()


@pytest.mark.wild("tiffslide#21, tiffslide#22, openslide#189", "pyramid in SubIFDs behind a macro")
def test_levels_in_subifds_are_those_of_the_slide(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as writer:
        writer.write(stained(300, 400), metadata={**_size(8.0), "Name": "macro"}, **OPTIONS)
        writer.write(stained(), subifds=1, metadata={**_size(0.25), "Name": "slide"}, **OPTIONS)
        writer.write(halved(stained()), subfiletype=1, **OPTIONS)
    assert _shapes(path) == [(640, 512, 0.25), (320, 256, 0.5)]


@pytest.mark.wild("openslide#511, tiffslide#22", "a pyramid over several images of one OME-TIFF")
def test_levels_in_separate_images_are_one_slide(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    pixels = stained(1024, 1280)
    with tifffile.TiffWriter(path, ome=True) as writer:
        writer.write(halved(pixels), metadata={**_size(1.0), "Name": "level 1"}, **OPTIONS)
        writer.write(pixels, metadata={**_size(0.5), "Name": "level 0"}, **OPTIONS)
        writer.write(halved(halved(pixels)), metadata={**_size(2.0), "Name": "level 2"}, **OPTIONS)
        writer.write(stained(256, 320), metadata={**_size(15.0), "Name": "overview of the glass"}, **OPTIONS)
        writer.write(stained(128, 160), metadata={**_size(15.0), "Name": "of the same form, another area"}, **OPTIONS)
    assert _shapes(path) == [(1280, 1024, 0.5), (640, 512, 1.0), (320, 256, 2.0)]


def test_pages_of_a_plain_tiff_are_levels_by_resolution(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as writer:
        for values, mpp in ((halved(stained()), 1.0), (stained(), 0.5)):
            writer.write(values, resolution=(1e4 / mpp,) * 2, resolutionunit=3, metadata=None, **OPTIONS)
    assert _shapes(path) == [(640, 512, 0.5), (320, 256, 1.0)]


def test_openslide_does_not_show_a_macro_instead_of_the_slide(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as writer:
        writer.write(stained(300, 400), metadata=None, **OPTIONS)
        writer.write(np.stack([stained()[..., 0]] * 4), tile=(256, 256), photometric="minisblack", metadata=None)
        writer.write(stained().astype(np.uint16), metadata=None, **OPTIONS)
    assert OpenSlideFile(path).levels[0].width == 400
    with pytest.raises(DataError, match=r"expected one colour image of 3 channels of uint8"):
        open_slide(path)


@pytest.mark.wild("tiffslide#21, tiffslide#22, openslide#189", "the macro copied for the slide when names are removed")
def test_a_copy_without_names_holds_the_slide_and_no_macro(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with tifffile.TiffWriter(tmp_path / "in" / "a.ome.tif", ome=True) as writer:
        writer.write(stained(300, 400), metadata={**_size(20.0), "Name": "macro of Jane Doe"}, **OPTIONS)
        writer.write(stained(), metadata={**_size(0.5), "Name": "slide"}, **OPTIONS)
    deidentify(tmp_path / "in", tmp_path / "out", tmp_path / "key", Options())
    copies = list((tmp_path / "out").rglob("*.tif"))
    assert [_shapes(path) for path in copies] == [[(640, 512, 0.5)]]
    assert b"Jane" not in copies[0].read_bytes()


# --- units


MICRONS = {
    "m": 1e6,
    "cm": 1e4,
    "mm": 1e3,
    "µm": 1.0,
    "nm": 1e-3,
    "Å": 1e-4,
    "pm": 1e-6,
    "in": 25_400.0,
    "pt": 25_400 / 72,
}


@pytest.mark.wild("bioformats#3676, ome-model#177, rse-panimg#107", "units of OME taken for microns")
@settings(deadline=None, max_examples=30)
@given(st.sampled_from(sorted(MICRONS)), st.floats(0.05, 4))
def test_units_of_ome_are_converted(unit: str, mpp: float) -> None:
    side = repr(mpp / MICRONS[unit])
    sizes = {"PhysicalSizeX": side, "PhysicalSizeXUnit": unit, "PhysicalSizeY": side, "PhysicalSizeYUnit": unit}
    assert math.isclose(OmeImage("", 1, 1, sizes).resolution().mpp, mpp, rel_tol=1e-9)


@pytest.mark.wild("bioformats#3676, ome-model#177, rse-panimg#107", "units of OME taken for microns")
@pytest.mark.parametrize(
    ("sizes", "mpp", "why"),
    [
        ({"PhysicalSizeX": "0.5"}, 0.5, ""),
        ({"PhysicalSizeX": "500", "PhysicalSizeXUnit": "nm", "PhysicalSizeY": "0.5"}, 0.5, ""),
        ({"PhysicalSizeX": "1.0", "PhysicalSizeXUnit": "pixel"}, 0, "PhysicalSizeX is 1.0 pixel, which is no length"),
        ({"PhysicalSizeX": "1", "PhysicalSizeXUnit": "reference frame"}, 0, "is 1 reference frame, which is no length"),
        ({"PhysicalSizeX": "0"}, 0, "PhysicalSizeX is 0 µm"),
        ({"PhysicalSizeX": "NaN"}, 0, "PhysicalSizeX is NaN"),
        ({}, 0, "has no PhysicalSizeX"),
    ],
)
def test_pixel_sizes_of_ome_images(sizes: dict[str, str], mpp: float, why: str) -> None:
    found = OmeImage("", 1, 1, sizes).resolution()
    assert math.isclose(found.mpp, mpp)
    assert why in found.why


@pytest.mark.wild("standard: OME schema, PhysicalSizeX and PhysicalSizeY", "pixels that are not square")
def test_pixels_that_are_not_square_are_refused(tmp_path: Path) -> None:
    sizes = {**_size(0.5), "PhysicalSizeY": 1.0}
    tifffile.imwrite(tmp_path / "a.ome.tif", stained(), metadata=sizes, **OPTIONS)
    tiled(tmp_path / "b.tif", stained(), None, resolution=(20_000, 10_000), resolutionunit="CENTIMETER")
    for name in ("a.ome.tif", "b.tif"):
        with pytest.raises(DataError, match=r"has pixels of 0\.5 by 1 microns, expected square ones"):
            open_slide(tmp_path / name)


def test_the_slide_does_not_get_its_macros_size(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as writer:
        writer.write(stained(300, 400), metadata=_size(20.0), **OPTIONS)
        writer.write(stained(), metadata={"axes": "YXS"}, **OPTIONS)
    assert open_slide(path).levels[0].mpp == 0


@pytest.mark.wild("bioformats#3535", "resolution tags that software writes by default")
@settings(deadline=None, max_examples=20)
@given(st.sampled_from([72, 96, 150, 300, 600]), st.sampled_from([2, 3]))
def test_a_screen_resolution_is_ignored(dpi: int, unit: int) -> None:
    pixels = dpi if unit == 2 else dpi / 2.54
    found = of_tags(pixels, pixels, unit)
    assert found.mpp == 0
    assert f"{dpi} pixels per inch, which software writes by default" in found.why


@pytest.mark.wild("bioformats#3535", "resolution tags that software writes by default")
@pytest.mark.parametrize("more", [{}, {"extrasamples": ["unassalpha"]}])
def test_a_slide_of_72_dpi_is_reported(tmp_path: Path, more: dict[str, Any]) -> None:
    pixels = stained()
    if more:  # four channels, which OpenSlide reads
        pixels = np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])
    tiled(tmp_path / "in" / "a.tif", pixels, None, resolution=(72, 72), resolutionunit="INCH", **more)
    manifest = register(RegisterOptions(tmp_path / "in", "s", tmp_path / "out", "slides"))
    reason = manifest.quarantine[0].reason
    assert "72 pixels per inch, which software writes by default" in reason
    assert "does not say its resolution" in reason


def test_resolutions_of_scanners_are_taken() -> None:
    assert math.isclose(of_tags(40_000, 40_000, 3).mpp, 0.25)
    assert math.isclose(of_tags(50_800, 50_800, 2).mpp, 0.5)
    assert of_tags(20_000, 20_000, 1).why == "its XResolution has no unit"
    assert of_aperio("Aperio|AppMag = 20|MPP = 0.4990").mpp == 0.499
    assert of_aperio("Aperio|MPP = 0,2520").mpp == 0.252
    assert of_aperio("Aperio|AppMag = 20").why == "its description has no MPP"
    assert "MPP = 0" in of_aperio("Aperio|MPP = 0").why


def test_tags_are_used_if_ome_states_nothing(tmp_path: Path) -> None:
    more = {"metadata": {"axes": "YXS"}, "ome": True}
    assert _shapes(tiled(tmp_path / "a.ome.tif", stained(), 0.25, **more)) == [(640, 512, 0.25)]


# --- words


@pytest.mark.wild("openslide#656", "of several readers the last one's words are told")
@pytest.mark.parametrize(
    ("pixels", "options", "words"),
    [
        (np.stack([stained()[..., 0].astype(np.uint16)] * 4), {"photometric": "minisblack"}, "4 channels of uint16"),
        (stained()[..., 0], {"photometric": "minisblack"}, "1 channel of uint8, stored as BlackIsZero"),
        (np.dstack([stained()] * 2), {"photometric": "minisblack", "planarconfig": "contig"}, "6 channels of uint8"),
        (stained(), {"photometric": "rgb", "tile": None, "rowsperstrip": 16}, "is stored in strips, expected tiles"),
        (stained().astype(np.float32), {"photometric": "rgb"}, "3 channels of float32"),
    ],
)
def test_images_other_than_colour_slides_are_described(
    tmp_path: Path, pixels: np.ndarray, options: dict[str, Any], words: str
) -> None:
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "a.ome.tif"
    axes = "CYX" if pixels.ndim == 3 and pixels.shape[0] == 4 else "YXS" if pixels.ndim == 3 else "YX"
    sizes = {"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5, **MICRON}
    tifffile.imwrite(path, pixels, ome=True, metadata={"axes": axes, **sizes}, **{"tile": (256, 256), **options})
    manifest = register(RegisterOptions(tmp_path / "in", "s", tmp_path / "out", "slides"))
    assert [words in case.reason for case in manifest.quarantine] == [True], manifest.quarantine


@pytest.mark.wild("openslide#656", "of several readers the last one's words are told")
@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.svs", b"", "is empty (0 bytes)"),
        ("a.ndpi", b"no slide" * 99, "its first bytes are those of no slide. Expected SVS"),
        ("a.svs", b"\x89PNG\r\n\x1a\n" * 99, "it looks like a PNG image. Expected SVS"),
        ("a.mrxs", b"\xff\xd8\xff\xe0" * 99, "there is no folder a beside it"),
        ("a.tif", b"II*\0\x08\0\0\0" + b"\0" * 99, "is damaged or cut off"),
    ],
    ids=["empty", "garbage", "png", "mrxs", "tiff"],
)
def test_files_without_a_slide_are_refused_in_words(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as refused:
        open_slide(tmp_path / name)
    assert words in str(refused.value)


def test_a_slide_that_is_cut_off_is_refused_in_words(tmp_path: Path) -> None:
    content = tiled(tmp_path / "a.tif", stained(1024, 1024), compression="jpeg").read_bytes()
    (tmp_path / "a.tif").write_bytes(content[: len(content) // 3])
    with (
        pytest.raises(DataError, match=r"is (damaged|cut off)"),
        TileReader(tmp_path / "a.tif", TileSpec(256)) as tiles,
    ):
        tiles.overview()


def test_an_mrxs_slide_owns_its_files(tmp_path: Path) -> None:
    (tmp_path / "in" / "a").mkdir(parents=True)
    for name in ("a.mrxs", "a/Slidedat.ini", "a/Data0000.dat"):
        (tmp_path / "in" / name).write_bytes(b"\xff\xd8\xff\xe0 no slide")
    (tmp_path / "in" / "b.dat").write_bytes(b"of nobody")
    register(RegisterOptions(tmp_path / "in", "s", tmp_path / "out", "slides"))
    with (tmp_path / "out" / "files.csv").open() as file:
        cases = {row["path"]: row["case"] for row in csv.DictReader(file)}
    assert cases == {"a.mrxs": "a", "a/Slidedat.ini": "a", "a/Data0000.dat": "a", "b.dat": ""}
