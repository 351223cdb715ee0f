"""Regions and objects of whole slides, as QuPath reads them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from made import COLOURS, made_model
from oncofed.data.slides.canvas import SlideCanvas
from oncofed.data.slides.regions import draw, read_regions
from oncofed.data.spec import DataSpec
from oncofed.prediction.model import TrainedModel
from oncofed.prediction.outputs.slide_outlines import Piece, on_slide, pieces, simplified
from oncofed.prediction.run import Options, predict
from oncofed.prediction.sources import gather
from oncofed.tasks.slide_strips import SlideObjectMap, SlideRegions, Strip
from oncofed.tasks.whole_slide.labelling import labelled
from oncofed.tasks.whole_slide.stitching import Stitching
from slide_files import drawn_slides, stained, tiled

pytest.importorskip("tifffile")
shapely = pytest.importorskip("shapely")
pytest.importorskip("shapely.affinity")

CPU = torch.device("cpu")
UNET = "{network: unet, channels: [4, 8], residual_units: 1}"
AT_2_MICRONS = f"{COLOURS}, patch: [64, 64], spacing: [0.002, 0.002]"
DRAWN = "type: slide_segmentation, classes: {1: tumour, 2: stroma}, undrawn: background, tolerance: 0"
REGIONS = f"{{{DRAWN}, least_area: 0}}"

NUCLEI = "{type: objects, classes: {1: nucleus}}"
# Strips of 40 rows.
ROWS = 40


def strips(values: np.ndarray, heat: bool = False) -> tuple[Strip, ...]:
    """Return values (row, column) cut into strips."""
    cuts = range(0, len(values), ROWS)
    return tuple(Strip.of(n, values[n : n + ROWS], np.zeros((1, 1), np.uint8)) for n in cuts)


def regions_of(values: np.ndarray, pixel: float = 2.0) -> SlideRegions:
    rows, columns = values.shape
    finest = (round(columns * pixel), round(rows * pixel))
    return SlideRegions(strips(values), (columns, rows), pixel, finest, 4e-6, 1.0)


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    """Labels with holes, islands within these, and pieces that many strips cut."""
    y, x = np.mgrid[:150, :170]
    values = np.zeros((150, 170), np.uint8)
    values[np.hypot(x - 80, y - 75) < 70] = 1
    values[np.hypot(x - 80, y - 75) < 45] = 0
    values[np.hypot(x - 80, y - 75) < 25] = 2
    values[:, 160:165] = 2
    values[38:42, :3] = 1
    return values


def test_likelihood_of_several_tissues_is_that_of_the_likeliest(tmp_path: Path) -> None:
    path = tiled(tmp_path / "one.tif", stained(128, 128), 2.0)
    parts = torch.tensor([0.1, 0.5, 0.4])[:, None, None].expand(3, 64, 64)
    stitching = Stitching(64, 0.25, False, lambda output: parts.expand(len(output), -1, -1, -1))
    data = DataSpec(
        dataset="d",
        modality="microscopy",
        channels=["red", "green", "blue"],
        patch=(64, 64),
        spacing=(0.002, 0.002),
    )
    with SlideCanvas(path, data, 64) as canvas:
        found = labelled(stitching, torch.nn.Identity(), canvas, CPU)
    assert found.heat.max() == round(0.5 * 255)  # not the 0.9 of any class


def test_outlines_over_strips_cover_what_was_found(labels: np.ndarray) -> None:
    found = list(pieces(regions_of(labels)))
    assert sorted(piece.value for piece in found) == [1, 1, 2, 2]
    for value in (1, 2):
        of_value = [piece for piece in found if piece.value == value]
        assert sum(piece.area for piece in of_value) == (labels == value).sum()
    ring = max((piece for piece in found if piece.value == 1), key=lambda piece: piece.area)
    assert len(ring.outline.interiors) == 1
    assert all(piece.outline.is_valid for piece in found)
    y, x = np.mgrid[:150, :170] + 0.5
    drawn = np.zeros_like(labels)
    for piece in found:
        drawn[shapely.contains_xy(piece.outline, x, y)] = piece.value
    assert np.array_equal(drawn, labels)


def test_a_simpler_outline_is_off_by_no_more_than_the_tolerance(labels: np.ndarray) -> None:
    for piece in pieces(regions_of(labels)):
        simple = simplified(piece, 3.0, 0.0)
        assert simple is not None
        assert simple.outline.is_valid
        assert shapely.get_num_coordinates(simple.outline) <= shapely.get_num_coordinates(piece.outline)
        assert piece.outline.boundary.hausdorff_distance(simple.outline.boundary) <= 3.0
        assert simple.area == piece.area  # areas are those of the pixels


def test_small_pieces_and_holes_are_left_out() -> None:
    values = np.zeros((60, 60), np.uint8)
    values[5:50, 5:50] = 1
    values[20:22, 20:22] = 0
    values[55:57, 55:57] = 1
    kept = [simplified(piece, 0.0, 5.0) for piece in pieces(regions_of(values))]
    (only,) = [piece for piece in kept if piece]
    assert not only.outline.interiors
    assert only.area == 45 * 45 - 4


def test_rings_lie_in_pixels_of_the_slide_and_not_beyond_it() -> None:
    square = Piece(1, 4.0, shapely.box(8, 0, 10, 2))
    assert on_slide(square, 2.51, (25, 100)) == [[[[25, 0], [25, 5.02], [20.08, 5.02], [20.08, 0], [25, 0]]]]


def test_outlines_are_valid_where_the_slide_ends_within_a_pixel() -> None:
    """Points that the edge of the slide takes with it may make lines meet."""
    jagged = shapely.Polygon([(0, 0), (10, 0), (9.6, 1), (10, 2), (9.4, 3), (10, 4), (9.6, 5), (9.9, 6), (0, 6)])
    size = (19, 100)
    (rings, *more) = on_slide(Piece(1, jagged.area, jagged), 2.0, size)
    assert not more
    assert shapely.Polygon(*rings).is_valid

    folded = shapely.Polygon([(5, 0), (10, 0), (10, 8), (5, 8), (5, 7), (9.8, 5), (5, 3)])
    (one, *others) = on_slide(Piece(1, folded.area, folded), 2.0, size)
    parts = [shapely.Polygon(rings[0], rings[1:]) for rings in (one, *others)]
    assert all(part.is_valid for part in parts)
    expected = shapely.intersection(shapely.affinity.scale(folded, 2, 2, origin=(0, 0)), shapely.box(0, 0, *size))
    assert sum(part.area for part in parts) == pytest.approx(expected.area, abs=0.1)
    assert max(part.bounds[2] for part in parts) == size[0]

    beyond = shapely.box(9.5, 0, 10, 3)
    assert on_slide(Piece(1, beyond.area, beyond), 2.0, size) == []


def test_objects_that_strips_cut_are_one_each() -> None:
    numbers = np.zeros((100, 50), np.int32)
    numbers[30:50, 5:15] = 1
    numbers[10:90, 20:22] = 2
    numbers[39:42, 30:40] = 3
    found = SlideObjectMap(strips(numbers), (50, 100), 1.0, (50, 100), 1e-6, 1.0, np.array([0, 1, 1, 2], np.uint8))
    areas = {piece.value: piece.area for piece in pieces(found, whole=True)}
    assert areas == {1: 200, 2: 160, 3: 30}


# --- predictions


@pytest.fixture
def model(tmp_path: Path) -> TrainedModel:
    return made_model(tmp_path / "run", REGIONS, UNET, AT_2_MICRONS)


def _predicted(model: TrainedModel, images: Path, out: Path, within: object = None) -> dict[str, object]:
    sources = gather([images], out, model.job, out.parent / "datasets", workers=1)
    found = predict(model, sources, out, CPU, Options(), None, within)  # type: ignore[arg-type]
    assert not found.set_aside
    (record,) = found.now
    return dict(record)


def test_a_slide_becomes_regions_that_open_in_qupath(model: TrainedModel, tmp_path: Path) -> None:
    drawn_slides(tmp_path / "in", 1, side=320)
    told: list[tuple[str, int, int]] = []
    record = _predicted(model, tmp_path / "in", tmp_path / "out", lambda *one: told.append(one))
    folder = tmp_path / "out" / "cases" / "P0"
    names = ["P0_regions.geojson", "P0_regions.json", "P0_classes.png", "P0_likelihood.png"]
    assert record["files"] == {"regions": names}
    assert told[-1][0] == "P0"
    assert told[-1][1] == told[-1][2]
    content = json.loads((folder / names[0]).read_text())
    summary = json.loads((folder / names[1]).read_text())
    assert summary["tolerance_um"] == 0
    rows = {row["name"]: row for row in summary["classes"]}
    for name, row in rows.items():
        own = [f for f in content["features"] if f["properties"]["classification"]["name"] == name]
        assert len(own) == row["pieces"]
        areas = sum(f["properties"]["measurements"]["Area mm^2"] for f in own)
        assert areas == pytest.approx(row["area_mm2"], rel=1e-4, abs=1e-9)
        assert row["share_of_tissue"] == pytest.approx(row["area_mm2"] / row["tissue_mm2"])
    # Three quarters of each side are tissue: 240² µm.
    assert rows["tumour"]["tissue_mm2"] == pytest.approx(0.24**2, rel=0.1)
    regions = read_regions(folder / names[0])
    cells = draw(regions, {"tumour": 1, "stroma": 2}, 1.0, (320, 320), (320, 320)).cells
    found_mm2 = sum(row["area_mm2"] for row in rows.values())
    assert (cells > 0).sum() * 1e-6 == pytest.approx(found_mm2, rel=1e-6)
    assert not cells[:30].any()  # glass


def test_confetti_is_counted_and_not_outlined_by_default(tmp_path: Path) -> None:
    drawn_slides(tmp_path / "in", 1, side=320)
    model = made_model(tmp_path / "run", f"{{{DRAWN}}}", UNET, AT_2_MICRONS)
    _predicted(model, tmp_path / "in", tmp_path / "out")
    folder = tmp_path / "out" / "cases" / "P0"
    features = json.loads((folder / "P0_regions.geojson").read_text())["features"]
    summary = json.loads((folder / "P0_regions.json").read_text())
    assert summary["least_area_um2"] == 500
    assert all(feature["properties"]["measurements"]["Area mm^2"] >= 500e-6 for feature in features)
    assert sum(row["pieces"] for row in summary["classes"]) == len(features)
    assert sum(row["pieces_not_outlined"] for row in summary["classes"]) > 0


def test_a_broken_prediction_of_a_slide_goes_on_where_it_was(
    model: TrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("oncofed.tasks.slide_strips.STRIP_ROWS", 32)
    drawn_slides(tmp_path / "in", 1, side=320)
    whole = _predicted(model, tmp_path / "in", tmp_path / "whole")
    blocks, seen = Stitching.blocks, list[int]()

    def breaking(self: Stitching, *arguments: object, **more: object) -> object:
        for block in blocks(self, *arguments, **more):  # type: ignore[arg-type]
            if block.y not in seen:
                seen.append(block.y)
            if len(seen) == 3:
                raise KeyboardInterrupt
            yield block

    monkeypatch.setattr(Stitching, "blocks", breaking)
    with pytest.raises(KeyboardInterrupt):
        _predicted(model, tmp_path / "in", tmp_path / "out")
    kept = list((tmp_path / "out").rglob("*.npz"))
    kept = [path for path in kept if "strips" in path.parts]
    assert kept
    monkeypatch.setattr(Stitching, "blocks", lambda *a, **m: (seen.append(b.y) or b for b in blocks(*a, **m)))
    resumed = _predicted(model, tmp_path / "in", tmp_path / "out")
    assert seen[3] >= 32 * len(kept)
    assert not [path for path in (tmp_path / "out").rglob("*.npz") if "strips" in path.parts]
    texts = [(tmp_path / out / "cases" / "P0" / "P0_regions.geojson").read_text() for out in ("whole", "out")]
    assert texts[0] == texts[1]
    assert whole["figures"] == resumed["figures"]


def test_a_slide_that_breaks_in_the_middle_does_not_stop_the_others(
    model: TrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("broken", "whole"):
        tiled(tmp_path / "in" / f"{name}.svs", stained(128, 160), 1.0)
    read = SlideCanvas.read

    def breaking(self: SlideCanvas, x: int, y: int) -> np.ndarray:
        if self._reader.path.name == "broken.svs":
            raise ValueError("no JPEG marker")
        return read(self, x, y)

    sources = gather([tmp_path / "in"], tmp_path / "out", model.job, tmp_path / "datasets", workers=1)
    monkeypatch.setattr(SlideCanvas, "read", breaking)
    found = predict(model, sources, tmp_path / "out", CPU)
    assert found.made == ["whole"]
    assert [bad.name for bad in found.set_aside] == ["broken"]
    assert "pixels are damaged" in found.set_aside[0].reason


def test_nuclei_of_tiles_are_counted_on_a_whole_slide(tmp_path: Path) -> None:
    model = made_model(tmp_path / "run", NUCLEI, UNET, AT_2_MICRONS)
    tiled(tmp_path / "in" / "one.svs", stained(256, 320), 1.0)
    record = _predicted(model, tmp_path / "in", tmp_path / "out")
    folder = tmp_path / "out" / "cases" / "one"
    (row,) = record["figures"]  # type: ignore[misc]
    content = json.loads((folder / "one_objects.geojson").read_text())
    with (folder / "one_objects.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert len(content["features"]) == len(table) == row["objects"] > 0
    assert {f["properties"]["objectType"] for f in content["features"]} == {"detection"}
    assert {line["class"] for line in table} == {"nucleus"}
    assert row["per_mm2"] == pytest.approx(row["objects"] / row["tissue_mm2"])
    assert sum(float(line["area_um2"]) for line in table) == pytest.approx(row["area_mm2"] * 1e6, rel=1e-4)
    assert (folder / "one_density.png").is_file()


def test_a_job_without_a_resolution_reads_no_whole_slide(tmp_path: Path) -> None:
    model = made_model(tmp_path / "run", NUCLEI, UNET)
    tiled(tmp_path / "in" / "one.svs", stained(256, 320), 0.5)
    sources = gather([tmp_path / "in"], tmp_path / "out", model.job, tmp_path / "datasets", workers=1)
    found = predict(model, sources, tmp_path / "out", CPU)
    ((bad,),) = [found.set_aside]
    assert "does not say at which resolution" in bad.reason
