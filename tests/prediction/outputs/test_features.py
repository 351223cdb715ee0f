"""Attention of features from elsewhere: on their slide, or on an empty plane."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from made import COLOURS, made_model, made_source
from oncofed.data.case import Case
from oncofed.data.features import FeatureBag
from oncofed.data.patients import join
from oncofed.data.slides import TileReader, TileSpec
from oncofed.data.spec import DataSpec
from oncofed.prediction.case_prediction import CasePrediction
from oncofed.prediction.model import TrainedModel
from oncofed.prediction.outputs.slides import write_slide
from oncofed.tasks.canvas import TiledSlide, open_canvas
from oncofed.tasks.inferred import UNPLACED, SlideScores
from slide_features import MPP, STEP, TILE, made_bag, made_slide
from slide_files import stained, tiled

pytest.importorskip("h5py")
openslide = pytest.importorskip("openslide")

TASK = "{type: slide_classification, classes: {0: normal, 1: tumour}, encoder: {network: lab-encoder, features: 8}}"
COLOURED = DataSpec(dataset="slides", modality="microscopy", channels=("r", "g", "b"), patch=(TILE, TILE))
MIL = "{network: attention_mil, arguments: {hidden: 8, attention: 4}}"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    return made_model(tmp_path_factory.mktemp("run"), TASK, MIL, f"{COLOURS}, patch: [{TILE}, {TILE}]")


def predicted(
    case: Case, attention: np.ndarray, places: np.ndarray, slides: np.ndarray | None = None
) -> CasePrediction:
    scores = SlideScores(np.array([0.0, 1.0]), attention.astype(np.float32), places, slides)
    source = replace(made_source(case.image), case=case)
    return CasePrediction(source, scores, scores.probabilities())


def features_of(path: Path) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(path.read_text())["features"]
    return found


def test_without_a_slide_attention_lies_on_an_empty_plane_of_its_size(model: TrainedModel, tmp_path: Path) -> None:
    bag = made_bag()
    assert bag.places is not None
    attention = np.full(12, 0.01)
    attention[5] = 0.89
    case = made_slide(tmp_path, bag)
    paths = write_slide(predicted(case, attention, bag.places), model, tmp_path)
    assert [path.name for path in paths] == [
        "case_slide.geojson",
        "case_attention.png",
        "case_attention.tif",
        "case_tiles.csv",
    ]
    whole, *tiles = features_of(paths[0])
    assert whole["geometry"]["coordinates"][0][2] == [4 * STEP, 3 * STEP]  # type: ignore[index]
    assert len(tiles) == 12
    best = next(csv.DictReader(paths[3].open()))
    assert (best["x"], best["y"], best["size_px"], best["picture"]) == ("128", "128", "128", "")
    with openslide.OpenSlide(paths[2]) as overlay:
        assert float(overlay.properties["openslide.mpp-x"]) * overlay.dimensions[0] == pytest.approx(4 * STEP * 0.5)
        pixels = np.asarray(overlay.read_region((0, 0), 0, overlay.dimensions).convert("RGB")).astype(int)
    coloured = np.abs(pixels - pixels[0, 0]).sum(axis=-1) > 60
    rows, columns = np.nonzero(coloured)
    side = pixels.shape[1] / 4
    assert (columns.min() // side, rows.min() // side) == (1, 1)
    assert columns.max() < 2 * side + 2


def test_without_a_resolution_there_is_a_map_without_a_scale(model: TrainedModel, tmp_path: Path) -> None:
    bag = replace(made_bag(), mpp=None, step=None, tile=None)
    assert bag.places is not None
    paths = write_slide(predicted(made_slide(tmp_path, bag), np.full(12, 1 / 12), bag.places), model, tmp_path)
    whole = features_of(paths[0])[0]
    assert whole["geometry"]["coordinates"][0][2] == [4 * STEP, 3 * STEP]  # type: ignore[index]
    assert Image.open(paths[1]).size[0] > 100
    with openslide.OpenSlide(paths[2]) as overlay:
        assert "openslide.mpp-x" not in overlay.properties


@pytest.mark.parametrize("offset", [(5003, 7), (5003, 2048), (1030, 0)])
def test_tiles_of_contours_with_their_own_grids_have_the_side_that_most_show(
    offset: tuple[int, int], tmp_path: Path
) -> None:
    # CLAM begins a grid at each contour, and writes neither a tile's side nor its resolution.
    one = np.stack(np.meshgrid(np.arange(4), np.arange(4)), -1).reshape(-1, 2) * 512
    places = np.concatenate([one, one + offset]).astype(np.int32)
    bag = FeatureBag(np.ones((32, 8), np.float32), places, tile=256, encoder="lab-encoder")
    with open_canvas(made_slide(tmp_path, bag), COLOURED) as canvas:
        assert canvas is not None
        assert canvas.step == 512


def test_of_tiles_without_neighbours_nothing_is_drawn(tmp_path: Path) -> None:
    places = (np.array([(0, 0), (700, 0), (1900, 3), (44, 500), (44, 3000)]) * 3).astype(np.int32)
    bag = FeatureBag(np.ones((5, 8), np.float32), places, tile=256, encoder="lab-encoder")
    case = made_slide(tmp_path, bag)
    for slide in (case, replace(case, image=tiled(tmp_path / "slide.tif", stained(512, 640), 0.5))):
        with open_canvas(slide, COLOURED) as canvas:
            assert canvas is None


def test_beside_a_slide_attention_lies_on_it_with_tiles_as_the_encoder_saw_them(
    model: TrainedModel, tmp_path: Path
) -> None:
    bag = made_bag()
    assert bag.places is not None
    slide = tiled(tmp_path / "slide.tif", stained(512, 640), 0.5)
    case = replace(made_slide(tmp_path, bag), image=slide)
    paths = write_slide(predicted(case, np.linspace(0, 1, 12), bag.places), model, tmp_path)
    whole = features_of(paths[0])[0]
    assert whole["geometry"]["coordinates"][0][2] == [640, 512]  # type: ignore[index]
    best = next(csv.DictReader((tmp_path / "case_tiles.csv").open()))
    with TileReader(slide, TileSpec(TILE, MPP)) as reader:
        expected = TiledSlide(reader).tile(int(best["x"]), int(best["y"]))
    assert expected is not None
    assert (np.asarray(Image.open(tmp_path / best["picture"])) == expected).all()


def test_each_slide_of_a_patient_has_its_own_map_and_all_share_one_scale(model: TrainedModel, tmp_path: Path) -> None:
    made = made_bag(4)
    assert made.places is not None
    first, second = (made_slide(tmp_path, made, f"s{n}") for n in range(2))
    attention, places = np.full(8, 0.1), np.concatenate([made.places] * 2)
    attention[0] = 0.3
    numbers = np.repeat([0, 1], 4).astype(np.int16)
    write_slide(predicted(join([first, second]), attention, places, numbers), model, tmp_path)
    rows = [list(csv.DictReader((tmp_path / f"case_s{n}_tiles.csv").open())) for n in range(2)]
    assert [sum(float(row["attention"]) for row in found) for found in rows] == pytest.approx([0.6, 0.4])
    pictures = [np.asarray(Image.open(tmp_path / f"case_s{n}_attention.tif")).astype(int) for n in range(2)]
    tile = len(pictures[0])  # all tiles in one row
    assert np.abs(pictures[0][:, tile:] - pictures[1][:, tile:]).max() < 40, "what counts alike looks alike"
    assert np.abs(pictures[0][:, :tile] - pictures[1][:, :tile]).mean() > 40
    identifiers = [feature["id"] for n in (0, 1) for feature in features_of(tmp_path / f"case_s{n}_slide.geojson")]
    assert len(set(identifiers)) == len(identifiers)


def test_one_vector_of_a_slide_has_a_class_and_no_map(model: TrainedModel, tmp_path: Path) -> None:
    vector = FeatureBag(np.ones((1, 8), np.float32), encoder="lab-encoder", level="slide")
    case = made_slide(tmp_path, vector)
    assert not write_slide(predicted(case, np.ones(1), np.full((1, 2), UNPLACED, np.int32)), model, tmp_path)
    with_slide = replace(case, image=tiled(tmp_path / "slide.tif", stained(512, 640), 0.5))
    paths = write_slide(predicted(with_slide, np.ones(1), np.full((1, 2), UNPLACED, np.int32)), model, tmp_path)
    assert [path.name for path in paths] == ["case_slide.geojson"]
    (whole,) = features_of(paths[0])
    assert whole["geometry"]["coordinates"][0][2] == [640, 512]  # type: ignore[index]
