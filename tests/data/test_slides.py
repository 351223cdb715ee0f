"""Whole slides: readers, tissue, tiles and regions."""

from __future__ import annotations

import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import tifffile
from PIL import Image

from dicoms import make_wsi
from oncofed.data.register import RegisterOptions, parse_labels, register
from oncofed.data.slides import (
    DicomSlideFile,
    OpenSlideFile,
    TiffSlideFile,
    TileReader,
    TileSpec,
    open_slide,
    tissue_mask,
)
from oncofed.errors import DataError


def make_slide(path: Path, compression: str | None = None, mpp: float = 0.5, levels: int = 3) -> np.ndarray:
    """Write a slide, and return its pixels.

    A pyramid of 2048 x 1536 pixels: white glass with round tissue.
    """
    y, x = np.mgrid[:1536, :2048]
    pixels = np.full((1536, 2048, 3), 244, np.uint8)
    tissue = (x - 700) ** 2 + (y - 600) ** 2 < 420**2
    texture = np.random.default_rng(0).integers(-20, 20, (1536, 2048, 1))
    pixels[tissue] = (np.array([180, 90, 160]) + texture).clip(0, 255)[tissue]
    path.parent.mkdir(parents=True, exist_ok=True)
    with tifffile.TiffWriter(path) as writer:
        for level in range(levels):
            shrunk = np.asarray(Image.fromarray(pixels).reduce(2**level)) if level else pixels
            writer.write(
                shrunk,
                tile=(256, 256),
                photometric="rgb",
                compression=compression,
                resolution=(1e4 / mpp / 2**level,) * 2,
                resolutionunit="CENTIMETER",
                subfiletype=1 if level else 0,
                metadata=None,
            )
    return pixels


def test_both_readers_see_the_same_pixels(tmp_path: Path) -> None:
    pixels = make_slide(tmp_path / "a.tif")
    readers = [TiffSlideFile(tmp_path / "a.tif"), OpenSlideFile(tmp_path / "a.tif")]
    for reader in readers:
        assert [round(level.mpp, 3) for level in reader.levels] == [0.5, 1.0, 2.0]
        np.testing.assert_array_equal(reader.read(0, 512, 256, 256, 256), pixels[256:512, 512:768])
        np.testing.assert_array_equal(reader.read(0, 300, 411, 500, 333), pixels[411:744, 300:800])
        outside = reader.read(0, 1990, 1500, 100, 100)
        np.testing.assert_array_equal(outside[:36, :58], pixels[1500:, 1990:])
        assert (outside[40:, 60:] == 255).all()
        reader.close()


def test_an_aligned_tile_takes_the_fast_path_with_equal_pixels(tmp_path: Path) -> None:
    make_slide(tmp_path / "a.tif", "jpeg")
    slide = open_slide(tmp_path / "a.tif")
    assert isinstance(slide, TiffSlideFile)
    whole = slide.read(0, 0, 0, 2048, 1536)
    np.testing.assert_array_equal(slide.read(0, 768, 512, 256, 256), whole[512:768, 768:1024])
    slide.close()


@pytest.mark.parametrize("mpp", [0.5, 0.75, 1.0, 1.3])
def test_tiles_have_the_requested_resolution(tmp_path: Path, mpp: float) -> None:
    pixels = make_slide(tmp_path / "a.tif")
    with TileReader(tmp_path / "a.tif", TileSpec(128, mpp)) as tiles:
        assert tiles.step == pytest.approx(128 * mpp / 0.5)
        tile = tiles.read(400, 300)
    assert tile.shape == (128, 128, 3)
    side = round(128 * mpp / 0.5)
    expected = Image.fromarray(pixels[300 : 300 + side, 400 : 400 + side]).resize((128, 128), Image.Resampling.BOX)
    assert np.abs(tile.astype(float) - np.asarray(expected)).mean() < 6


def test_a_missing_resolution_is_refused(tmp_path: Path) -> None:
    make_slide(tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"has at most 0\.500 microns per pixel, the tiles ask for 0\.25"):
        TileReader(tmp_path / "a.tif", TileSpec(128, 0.25))
    tifffile.imwrite(tmp_path / "b.tif", np.zeros((512, 512, 3), np.uint8), tile=(256, 256), photometric="rgb")
    with pytest.raises(DataError, match="does not say its resolution"):
        TileReader(tmp_path / "b.tif", TileSpec(128, 0.5))


def test_coloured_areas_are_tissue(tmp_path: Path) -> None:
    pixels = make_slide(tmp_path / "a.tif")
    pixels[:100, 1000:] = 0  # the scanner's fill
    truth = pixels[..., 1] < 150
    truth[:100, 1000:] = False
    mask = tissue_mask(pixels)
    assert (mask == truth).mean() > 0.98


def test_slides_are_registered_with_tiles_on_tissue_and_a_tables_labels(tmp_path: Path) -> None:
    for number in range(3):
        make_slide(tmp_path / "in" / f"TCGA-AB-000{number}-01Z.tif", "jpeg")
    rows = [f"TCGA-AB-000{number}-01Z.tif,{('benign', 'tumour')[number % 2]}" for number in range(3)]
    (tmp_path / "in" / "labels.csv").write_text("image,label\n" + "\n".join(rows))
    manifest = register(
        RegisterOptions(tmp_path / "in", "s", tmp_path / "out", "slides", tiles=TileSpec(128, 1.0, 0.5))
    )
    assert [entry.label for entry in manifest.entries] == [0, 1, 0]
    assert manifest.labels == {"0": "benign", "1": "tumour"}
    assert len({entry.patient for entry in manifest.entries}) == 3
    entry = manifest.entries[0]
    assert (entry.shape, entry.modality) == ([2048, 1536], "SM")
    np.testing.assert_allclose(entry.spacing, [0.0005, 0.0005])  # type: ignore[arg-type]
    grid = np.load(tmp_path / "out" / str(entry.tiles))
    assert 5 < len(grid["x"]) < 15
    with TileReader(tmp_path / "out" / entry.images[0], TileSpec(128, 1.0)) as tiles:
        for x, y, share in zip(grid["x"], grid["y"], grid["tissue"], strict=True):
            covered = (tiles.read(int(x), int(y))[..., 1] < 150).mean()
            assert abs(covered - share) < 0.08


def test_a_table_of_slides_needs_no_task(tmp_path: Path) -> None:
    make_slide(tmp_path / "in" / "a.svs", "jpeg")
    (tmp_path / "in" / "t.csv").write_text("image,label\na.svs,benign\n")
    request = RegisterOptions(tmp_path / "in", "s", tmp_path / "out", table=tmp_path / "in" / "t.csv")
    manifest = register(request)
    assert (manifest.task, [entry.modality for entry in manifest.entries]) == ("slides", ["SM"])


@pytest.mark.parametrize("kind", ["mask", "geojson"])
def test_regions_label_the_tiles_that_they_cover(tmp_path: Path, kind: str) -> None:
    make_slide(tmp_path / "in" / "a.tif")
    if kind == "mask":
        mask = np.zeros((384, 512), np.uint8)
        mask[:, 175:] = 2
        Image.fromarray(mask).save(tmp_path / "in" / "region.png")
        label = "region.png"
    else:
        ring = [[700, 0], [2048, 0], [2048, 1536], [700, 1536], [700, 0]]
        feature = {
            "type": "Feature",
            "properties": {"classification": {"name": "tumour"}},
            "geometry": {"type": "Polygon", "coordinates": [ring]},
        }
        (tmp_path / "in" / "region.geojson").write_text(
            json.dumps({"type": "FeatureCollection", "features": [feature]})
        )
        label = "region.geojson"
    (tmp_path / "in" / "t.csv").write_text(f"image,label\na.tif,{label}\n")
    names = parse_labels("2=tumour")
    spec = TileSpec(64, 0.5, 0.9)
    manifest = register(
        RegisterOptions(tmp_path / "in", "s", tmp_path / "out", "slides", names, tmp_path / "in" / "t.csv", spec)
    )
    assert not manifest.quarantine, manifest.quarantine
    grid = np.load(tmp_path / "out" / str(manifest.entries[0].tiles))
    middle = grid["x"] + 32
    np.testing.assert_array_equal(grid["label"], np.where(middle > 700, 2, 0))


def test_bad_slides_are_set_aside(tmp_path: Path) -> None:
    make_slide(tmp_path / "in" / "good.tif")
    (tmp_path / "in" / "garbage.svs").write_bytes(b"no slide" * 100)
    (tmp_path / "in" / "empty.ndpi").write_bytes(b"")
    blank = np.full((1024, 1024, 3), 243, np.uint8)
    tifffile.imwrite(
        tmp_path / "in" / "blank.tif",
        blank,
        tile=(256, 256),
        photometric="rgb",
        resolution=(2e4, 2e4),
        resolutionunit=3,
    )
    content = (tmp_path / "in" / "good.tif").read_bytes()
    (tmp_path / "in" / "cut.tif").write_bytes(content[: len(content) // 3])
    manifest = register(RegisterOptions(tmp_path / "in", "s", tmp_path / "out", "slides"))
    assert [entry.name for entry in manifest.entries] == ["good"]
    reasons = {bad.name: bad.reason for bad in manifest.quarantine}
    assert set(reasons) == {"garbage", "empty", "blank", "cut"}
    assert "shows no tissue" in reasons["blank"]
    assert all(str(tmp_path) not in reason for reason in reasons.values())


def test_dicom_slides_in_one_folder_are_separated(tmp_path: Path) -> None:
    pixels = make_slide(tmp_path / "a.tif", levels=1)
    for number in range(2):
        make_wsi(tmp_path / "in", np.roll(pixels, 100 * number, axis=1), patient=f"P{number}")
    manifest = register(RegisterOptions(tmp_path / "in", "s", tmp_path / "out", tiles=TileSpec(256, 1.0, 0.5)))
    assert not manifest.quarantine, manifest.quarantine
    assert manifest.task == "slides"
    assert [entry.shape for entry in manifest.entries] == [[2048, 1536]] * 2
    assert len({entry.patient for entry in manifest.entries}) == 2
    slide = open_slide(tmp_path / "out" / manifest.entries[0].images[0])
    assert isinstance(slide, DicomSlideFile)
    region = slide.read(0, 100, 200, 700, 500)
    assert any(np.array_equal(region, np.roll(pixels, 100 * number, axis=1)[200:700, 100:800]) for number in range(2))
    slide.close()
    for file in (tmp_path / "in").iterdir():
        if b"P1" in file.read_bytes()[:4000]:
            file.unlink()
    assert len(register(RegisterOptions(tmp_path / "in", "s", tmp_path / "out")).entries) == 1
    assert len(list((tmp_path / "out" / "slides").iterdir())) == 1


def test_an_ome_tiff_has_resolution_levels_and_white_outside(tmp_path: Path) -> None:
    pixels = np.full((1024, 1024, 3), 120, np.uint8)
    options = {"tile": (256, 256), "photometric": "rgb", "compression": "jpeg"}
    size = {"PhysicalSizeX": 0.25, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": 0.25, "PhysicalSizeYUnit": "µm"}
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as writer:
        writer.write(pixels, subifds=1, metadata={"axes": "YXS", **size}, **options)
        writer.write(pixels[::4, ::4], subfiletype=1, **options)
    slide = open_slide(tmp_path / "a.ome.tif")
    assert [(level.width, level.mpp) for level in slide.levels] == [(1024, 0.25), (256, 1.0)]
    assert (slide.read(0, 900, 900, 256, 256)[130:, 130:] == 255).all()
    slide.close()


def test_a_gpu_does_not_change_a_slides_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_slide(tmp_path / "a.tif", "jpeg")
    cucim = ModuleType("cucim")
    cucim.__spec__ = ModuleSpec("cucim", None)
    cucim.CuImage = lambda path: pytest.fail("cuCIM reads other pixels")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cucim", cucim)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    slide = open_slide(tmp_path / "a.tif")
    assert isinstance(slide, TiffSlideFile)
    slide.close()
