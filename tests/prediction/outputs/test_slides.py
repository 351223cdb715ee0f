"""Attention maps of slides open in other programs.

At the right place.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import PowerNorm
from PIL import Image

from made import COLOURS, made_model, made_predictions, made_source
from oncofed.data.slides import TileReader, TileSpec
from oncofed.data.slides.regions import draw, read_regions
from oncofed.errors import DataError
from oncofed.prediction.case_prediction import CasePrediction
from oncofed.prediction.model import TrainedModel
from oncofed.prediction.outputs import geojson
from oncofed.prediction.outputs.heatmap import blended_colours, overlay_heatmap
from oncofed.prediction.outputs.slides import (
    TOP_TILES,
    TileHeat,
    slide_features,
    write_overlay,
    write_picture,
    write_slide,
    write_top_tiles,
)
from oncofed.prediction.sources import Source
from oncofed.tasks.canvas import EmptyCanvas, TiledSlide
from oncofed.tasks.inferred import SlideScores
from slide_files import stained, tiled
from synthetic import make_slides

openslide = pytest.importorskip("openslide")
tifffile = pytest.importorskip("tifffile")

SLIDES = "{type: slide_classification, classes: {0: normal, 1: tumour}}"
MIL = "{network: attention_mil, arguments: {hidden: 8, attention: 4}}"
CUT = f"{COLOURS}, patch: [64, 64], spacing: [0.001, 0.001]"
SIDE, BRIGHT = 1024, (640, 256)  # of the slide, and the corner of its bright region of 128 pixels


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slide with one bright square.

    Half a micron a pixel.
    """
    pixels = stained(SIDE, SIDE)
    x, y = BRIGHT
    pixels[y : y + 128, x : x + 128] = (30, 220, 40)
    return tiled(tmp_path_factory.mktemp("slide") / "slide.tif", pixels, 0.5)


@pytest.fixture
def canvas(slide: Path) -> Iterator[TiledSlide]:
    """The slide, with tiles of 64 pixels of one micron, 128 of the slide's."""
    with TileReader(slide, TileSpec(64, 1.0)) as tiles:
        yield TiledSlide(tiles)


def tile_heat(at: tuple[int, int] = BRIGHT) -> TileHeat:
    """Return attention to each tile, mostly to one."""
    places = np.array([(x, y) for y in range(0, SIDE, 128) for x in range(0, SIDE, 128)], np.int32)
    attention = np.where((places == at).all(axis=1), 0.9, 0.1 / (len(places) - 1)).astype(np.float32)
    return TileHeat(attention, places, 128.0)


@pytest.fixture
def model(tmp_path: Path) -> TrainedModel:
    return made_model(tmp_path / "run", SLIDES, MIL, CUT)


def cut_source(slide: Path, folder: Path, heat: TileHeat, mpp: float = 1.0) -> Source:
    """Return a registered slide, cut at a resolution."""
    tiles = folder / "tiles.npz"
    np.savez(tiles, x=heat.places[:, 0], y=heat.places[:, 1], size=np.int32(64), mpp=np.float32(mpp))
    source = made_source(slide)
    return replace(source, case=replace(source.case, tiles=tiles))


def test_tiles_lie_as_polygons_where_they_were_read(tmp_path: Path) -> None:
    heat, numbers = tile_heat(), {"Probability normal": 0.25, "Probability tumour": 0.75}
    features = list(slide_features(heat, (SIDE, SIDE), (2, "tumour"), numbers, "key"))
    assert features[0]["properties"]["classification"]["name"] == "tumour"
    assert not any("classification" in feature["properties"] for feature in features[1:])
    (tmp_path / "slide.geojson").write_text(geojson.collection(features))
    regions = read_regions(tmp_path / "slide.geojson")
    assert features[0]["properties"]["objectType"] == "annotation"
    assert features[0]["properties"]["measurements"] == numbers
    drawn = draw(regions[1:], {}, 1.0, (SIDE, SIDE), (SIDE, SIDE)).cells
    assert (drawn == 1).all()
    best = max(features[1:], key=lambda feature: feature["properties"]["measurements"]["Attention"])
    assert best["geometry"]["coordinates"][0][0] == list(BRIGHT)
    assert best["properties"]["measurements"] == {"Attention": 0.9, "Attention percentile": 100.0}
    assert best["properties"]["objectType"] == "detection"
    assert len({feature["id"] for feature in features}) == len(features) == 65


def test_a_tile_at_the_edge_ends_with_the_slide() -> None:
    heat = TileHeat(np.ones(1, np.float32), np.array([[96, 64]], np.int32), 64.0)
    tile = list(slide_features(heat, (130, 100), (1, "normal"), {"normal": 1.0}, "key"))[1]
    assert tile["geometry"]["coordinates"] == [[[96, 64], [130, 64], [130, 100], [96, 100], [96, 64]]]
    assert tile["properties"]["measurements"]["Attention percentile"] == 100


def test_the_overlay_opens_as_a_slide_of_the_same_size_and_place(
    canvas: TiledSlide, slide: Path, tmp_path: Path
) -> None:
    write_overlay(canvas, tile_heat(), tmp_path / "overlay.tif")
    with openslide.OpenSlide(tmp_path / "overlay.tif") as found, openslide.OpenSlide(slide) as original:
        assert found.level_count >= 2
        assert found.level_downsamples == pytest.approx([2**n for n in range(found.level_count)], rel=0.01)
        per_pixel = float(found.properties["openslide.mpp-x"]) / float(original.properties["openslide.mpp-x"])
        assert per_pixel == found.level_downsamples[0] * 2
        assert found.dimensions == (SIDE // per_pixel, SIDE // per_pixel)
        for level in range(found.level_count):
            size = found.level_dimensions[level]
            shown = np.asarray(found.read_region((0, 0), level, size).convert("RGB")).astype(float)
            plain = np.asarray(original.get_thumbnail(size).convert("RGB")).astype(float)
            changed = np.abs(shown - plain).mean(axis=-1)
            left, top, wide = (round(n * size[0] / SIDE) for n in (*BRIGHT, 128))
            assert changed[top + 1 : top + wide - 1, left + 1 : left + wide - 1].min() > 20
            changed[top - 2 : top + wide + 2, left - 2 : left + wide + 2] = 0
            assert np.median(changed) < 6
    with tifffile.TiffFile(tmp_path / "overlay.tif") as file:
        assert all(page.is_tiled for page in file.pages)
        assert [page.subfiletype & 1 for page in file.pages] == [0] + [1] * (len(file.pages) - 1)


def test_our_own_reader_takes_the_overlay_for_a_slide(canvas: TiledSlide, tmp_path: Path) -> None:
    write_overlay(canvas, tile_heat(), tmp_path / "overlay.tif")
    with TileReader(tmp_path / "overlay.tif", TileSpec(64, 2.0)) as tiles:
        assert tiles.levels[0].mpp == pytest.approx(1.0)
        assert tiles.levels[-1].mpp > 1.9


def test_the_picture_shows_attention_at_its_place(canvas: TiledSlide, tmp_path: Path) -> None:
    pictures = []
    for at in (BRIGHT, (256, 640)):
        write_picture(canvas, tile_heat(at), "tumour 0.750", tmp_path / "heat.png")
        pictures.append(np.asarray(Image.open(tmp_path / "heat.png").convert("RGB")).astype(int))
    differs = np.abs(pictures[0] - pictures[1]).sum(axis=-1) > 60
    rows, columns = np.nonzero(differs)
    # Two squares, the one up on the right and the other down on the left, alike and mirrored.
    middle = (rows.min() + rows.max()) / 2, (columns.min() + columns.max()) / 2
    upper, lower = rows < middle[0], rows > middle[0]
    assert columns[upper].min() > middle[1] > columns[lower].max()
    assert differs.mean() < 0.1


def test_nuclei_are_seen_through_the_hottest_tile_and_faint_attention_shows() -> None:
    cells = np.full((40, 40, 3), 220, np.uint8)
    cells[::2] = (90, 60, 130)  # nuclei
    hot = overlay_heatmap(cells, np.ones((40, 40), np.float32), 0.6).astype(int)
    kept = np.abs(hot[0] - hot[1]).sum() / np.abs(cells[0].astype(int) - cells[1]).sum()
    assert kept > 0.4
    glass = np.full((1, 3, 3), 255, np.uint8)
    shares = np.array([[0.0, 0.1, 1.0]], np.float32)
    shown = overlay_heatmap(glass, shares, 0.6).astype(int)
    assert np.abs(shown[0, 1] - 255).sum() > 60
    scale = PowerNorm(0.6, 0, 1)
    for share, colour in zip(shares[0], shown[0], strict=True):
        beside = np.array(blended_colours(0.6)(scale(share))[:3]) * 255
        assert np.abs(beside - colour).max() <= 4, "the scale has the picture's colours"


def test_the_bar_of_length_lies_below_the_tiles_of_a_plane(tmp_path: Path) -> None:
    places = np.array([(x, y) for y in range(0, 512, 64) for x in range(0, 512, 64)], np.int32)
    heat, pictures = TileHeat(np.ones(64, np.float32), places, 64.0), []
    for mpp in (0.5, None):
        write_picture(EmptyCanvas(places, 64.0, mpp), heat, "tumour", tmp_path / "heat.png")
        pictures.append(np.asarray(Image.open(tmp_path / "heat.png").convert("RGB")).astype(int))
    rows = np.nonzero(np.abs(pictures[0] - pictures[1]).sum(axis=(1, 2)))[0]
    tiles = np.nonzero((np.abs(pictures[1] - 255).sum(axis=2) > 30).mean(axis=1) > 0.5)[0]
    assert rows.min() > tiles.max()


def test_tiles_with_most_attention_are_written_as_the_network_saw_them(canvas: TiledSlide, tmp_path: Path) -> None:
    table, *pictures = write_top_tiles(canvas, tile_heat(), tmp_path, "case")
    rows = list(csv.DictReader(table.open()))
    assert len(rows) == 64
    assert [row["rank"] for row in rows] == [str(n) for n in range(1, 65)]
    assert (int(rows[0]["x"]), int(rows[0]["y"])) == BRIGHT
    assert float(rows[0]["attention"]) == pytest.approx(0.9)
    assert [row["picture"] for row in rows if row["picture"]] == [path.name for path in pictures]
    assert len(pictures) == TOP_TILES
    best = np.asarray(Image.open(pictures[0]))
    assert best.shape == (64, 64, 3)
    assert np.abs(best.mean(axis=(0, 1)) - (30, 220, 40)).max() < 12


def test_a_bag_of_one_tile(slide: Path, model: TrainedModel, tmp_path: Path) -> None:
    heat = TileHeat(np.ones(1, np.float32), np.array([BRIGHT], np.int32), 128.0)
    scores = SlideScores(np.array([0.0, 1.0]), heat.attention, heat.places)
    predicted = CasePrediction(cut_source(slide, tmp_path, heat), scores, scores.probabilities())
    paths = write_slide(predicted, model, tmp_path)
    assert all(path.is_file() for path in paths)
    ends = [path.name.removeprefix("case_") for path in paths]
    assert ends == ["slide.geojson", "attention.png", "attention.tif", "tiles.csv", "tile_01.png"]
    assert len(read_regions(paths[0])) == 2


def test_without_attention_the_class_alone_is_written(slide: Path, model: TrainedModel, tmp_path: Path) -> None:
    heat = tile_heat()
    scores = SlideScores(np.array([0.0, 1.0]), None, heat.places)
    predicted = CasePrediction(cut_source(slide, tmp_path, heat), scores, scores.probabilities())
    (path,) = write_slide(predicted, model, tmp_path)
    (feature,) = json.loads(path.read_text())["features"]
    assert feature["properties"]["classification"]["name"] == "tumour"


def test_a_slide_that_was_cut_at_another_resolution_is_refused(
    slide: Path, model: TrainedModel, tmp_path: Path
) -> None:
    heat = tile_heat()
    scores = SlideScores(np.array([0.0, 1.0]), heat.attention, heat.places)
    predicted = CasePrediction(cut_source(slide, tmp_path, heat, mpp=0.9), scores, scores.probabilities())
    with pytest.raises(DataError, match=r"its tiles have 0\.9 microns a pixel, expected 1"):
        write_slide(predicted, model, tmp_path)
    assert not list(tmp_path.glob("case_*"))


def test_nothing_is_left_of_a_slide_that_ends_early(
    slide: Path, model: TrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise DataError("is cut off: a tile's bytes are missing. Copy it again from its source")

    monkeypatch.setattr("oncofed.prediction.outputs.slides.write_top_tiles", fail)
    heat = tile_heat()
    scores = SlideScores(np.array([0.0, 1.0]), heat.attention, heat.places)
    predicted = CasePrediction(cut_source(slide, tmp_path, heat), scores, scores.probabilities())
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match="is cut off"):
        write_slide(predicted, model, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_finer_slides_are_cut_at_the_job_s_resolution_and_coarser_ones_are_set_aside(
    model: TrainedModel, tmp_path: Path
) -> None:
    tiled(tmp_path / "in" / "fine.tif", stained(512, 512), 0.5)
    tiled(tmp_path / "in" / "coarse.tif", stained(512, 512), 2.0)
    found = made_predictions(model, tmp_path / "in", tmp_path / "out")
    assert found.made == ["fine"]
    rows = list(csv.DictReader((tmp_path / "out" / "cases" / "fine" / "fine_tiles.csv").open()))
    assert {row["size_px"] for row in rows} == {"128"}
    (bad,) = found.set_aside
    assert bad.name == "coarse"
    assert "has at most 2.000 microns per pixel, the tiles ask for 1" in bad.reason


def test_slides_of_a_folder_are_cut_as_the_job_wants_them_and_written(model: TrainedModel, tmp_path: Path) -> None:
    make_slides(tmp_path / "in", 2, side=512)
    found = made_predictions(model, tmp_path / "in", tmp_path / "out")
    assert len(found.made) == 2
    for name in found.made:
        folder = tmp_path / "out" / "cases" / name
        rows = list(csv.DictReader((folder / f"{name}_tiles.csv").open()))
        assert sum(float(row["attention"]) for row in rows) == pytest.approx(1, abs=1e-3)
        assert {row["size_px"] for row in rows} == {"64"}
        assert len(read_regions(folder / f"{name}_slide.geojson")) == len(rows) + 1
        with openslide.OpenSlide(folder / f"{name}_attention.tif") as overlay:
            assert overlay.dimensions == (512, 512)
        said = json.loads((folder / f"{name}_classes.json").read_text())
        assert said["probability.normal"] + said["probability.tumour"] == pytest.approx(1)
