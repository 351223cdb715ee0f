"""Regions label tiles as drawn.

In any order, with holes; invalid features are named.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from oncofed.data.register import RegisterOptions, parse_labels, register
from oncofed.data.slides import TileSpec
from oncofed.data.slides.regions import Drawn, draw, label_values, read_regions
from oncofed.errors import DataError
from slide_files import noisy, tiled

NAMES = {"Stroma": 1, "Tumor": 2}
SIZE = (64, 48)  # width and height in pixels; a cell of 1 pixel


def ring(left: float, top: float, right: float, bottom: float) -> list[list[float]]:
    return [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]


def feature(geometry: Any, classification: Any = "absent", **properties: Any) -> dict[str, Any]:
    if classification != "absent":
        properties["classification"] = classification
    return {"type": "Feature", "geometry": geometry, "properties": {"objectType": "annotation", **properties}}


def polygon(*rings: Any) -> dict[str, Any]:
    return {"type": "Polygon", "coordinates": list(rings)}


def region(name: str, *rings: Any) -> dict[str, Any]:
    return feature(polygon(*rings), {"name": name, "color": [200, 0, 0]})


def drawn(folder: Path, content: Any, names: dict[str, int] | None = None) -> Drawn:
    path = folder / "r.geojson"
    path.write_text(json.dumps(content))
    return draw(read_regions(path), NAMES if names is None else names, 1.0, SIZE[::-1], SIZE)


def box(cells: np.ndarray, left: int, top: int, right: int, bottom: int, value: int) -> None:
    cells[top:bottom, left:right] = value


@pytest.mark.wild("qupath#972, HistoQC#258, HistoQC#306", "a hole that erases what was drawn before")
def test_a_hole_does_not_erase_other_regions(tmp_path: Path) -> None:
    tumour, stroma = region("Tumor", ring(20, 16, 40, 32)), region("Stroma", ring(8, 4, 56, 44), ring(20, 16, 40, 32))
    truth = np.zeros(SIZE[::-1], int)
    box(truth, 8, 4, 56, 44, 1)
    box(truth, 20, 16, 40, 32, 2)
    for features in ([tumour, stroma], [stroma, tumour]):
        np.testing.assert_array_equal(drawn(tmp_path, {"type": "FeatureCollection", "features": features}).cells, truth)


@pytest.mark.wild("qupath#972, HistoQC#258, HistoQC#306", "an island in the hole of another part of a MultiPolygon")
@settings(deadline=None, max_examples=6)
@given(st.permutations(range(3)))
def test_islands_in_holes_stay_in_any_order(tmp_path_factory: pytest.TempPathFactory, order: list[int]) -> None:
    parts = [
        [ring(4, 4, 60, 44), ring(12, 8, 52, 40)],
        [ring(20, 12, 44, 36), ring(28, 16, 36, 32)],
        [ring(30, 20, 34, 28)],
    ]
    geometry = {"type": "MultiPolygon", "coordinates": [parts[n] for n in order]}
    truth = np.zeros(SIZE[::-1], int)
    for left, top, right, bottom, value in [(4, 4, 60, 44, 2), (12, 8, 52, 40, 0), (20, 12, 44, 36, 2)]:
        box(truth, left, top, right, bottom, value)
    box(truth, 28, 16, 36, 32, 0)
    box(truth, 30, 20, 34, 28, 2)
    found = drawn(tmp_path_factory.mktemp("r"), feature(geometry, {"name": "Tumor"}))
    np.testing.assert_array_equal(found.cells, truth)


@settings(deadline=None, max_examples=25)
@given(st.randoms(use_true_random=False))
def test_regions_that_do_not_overlap_are_drawn_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, chance: random.Random
) -> None:
    """A chessboard whose cells lie in each other's holes."""
    features, truth = [], np.zeros(SIZE[::-1], int)
    for top in range(0, 48, 16):
        for left in range(0, 64, 16):
            outer, inner = chance.choice([("Stroma", "Tumor"), ("Tumor", "Stroma")])
            a, b = chance.randint(1, 6), chance.randint(9, 15)
            features.append(
                region(outer, ring(left, top, left + 16, top + 16), ring(left + a, top + a, left + b, top + b))
            )
            features.append(region(inner, ring(left + a, top + a, left + b, top + b)))
            box(truth, left, top, left + 16, top + 16, NAMES[outer])
            box(truth, left + a, top + a, left + b, top + b, NAMES[inner])
    chance.shuffle(features)
    found = drawn(tmp_path_factory.mktemp("r"), {"type": "FeatureCollection", "features": features})
    np.testing.assert_array_equal(found.cells, truth)
    assert not found.notes


def test_a_cell_belongs_to_the_region_with_its_centre(tmp_path: Path) -> None:
    triangle = [[0, 0], [40, 0], [0, 40], [0, 0]]
    cells = drawn(tmp_path, region("Tumor", triangle)).cells
    y, x = np.mgrid[:48, :64] + 0.5
    inside = x + y < 40
    np.testing.assert_array_equal(cells[np.abs(x + y - 40) > 0.01] == 2, inside[np.abs(x + y - 40) > 0.01])


def test_the_later_of_overlapping_regions_wins_with_a_note(tmp_path: Path) -> None:
    found = drawn(tmp_path, [region("Stroma", ring(0, 0, 20, 20)), region("Tumor", ring(10, 10, 30, 30))])
    assert (found.cells[15, 15], found.cells[5, 5]) == (2, 1)
    assert "regions of two classes overlap" in found.notes[0]


SQUARE = polygon(ring(8, 8, 40, 40))


@pytest.mark.wild("spatialdata-plot#430, HistoQC#180, pathology-whole-slide-data#42", "GeoJSON of other tools")
@pytest.mark.parametrize(
    "content",
    [
        {"type": "FeatureCollection", "features": [feature(SQUARE, {"name": "Tumor"})]},
        [feature(SQUARE, {"name": "Tumor"})],
        {"features": [feature(SQUARE, {"name": "Tumor"})]},
        feature(SQUARE, {"name": "Tumor", "colorRGB": -65536}),
        feature(SQUARE, "Tumor"),
        feature(SQUARE, "tumor "),
        feature(SQUARE, {"names": ["Tumor"], "color": [1, 2, 3]}),
        feature(SQUARE, name="Tumor"),
        feature(SQUARE, None, name="Tumor"),
        feature(SQUARE, label="Tumor"),
        feature(SQUARE, label={"name": "Tumor", "value": 7}),
        feature(SQUARE, label=2),
        feature(SQUARE, {"name": "Tumor"}, name="Annotation 3"),
        feature(
            {"type": "GeometryCollection", "geometries": [SQUARE, {"type": "Point", "coordinates": [1, 1]}]}, "Tumor"
        ),
        feature({"type": "MultiPolygon", "coordinates": [SQUARE["coordinates"]]}, "Tumor"),
        feature(polygon([[8, 8, 0], [8, 40, 0], [40, 40, 0], [40, 8, 0]]), "Tumor"),  # heights, not closed, clockwise
        {"type": "FeatureCollection", "features": [feature(None, "Tumor"), feature(SQUARE, "Tumor")]},
    ],
)
def test_files_of_other_tools_are_read(tmp_path: Path, content: Any) -> None:
    truth = np.zeros(SIZE[::-1], int)
    box(truth, 8, 8, 40, 40, 2)
    np.testing.assert_array_equal(drawn(tmp_path, content).cells, truth)


def test_a_bare_geometry_is_one_region(tmp_path: Path) -> None:
    assert drawn(tmp_path, SQUARE, {}).cells.sum() == 32 * 32


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_regions_are_read_in_any_encoding(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "r.geojson"
    path.write_bytes(json.dumps(feature(SQUARE, "Plattenepithel, Übergang"), ensure_ascii=False).encode(encoding))
    assert [region.name for region in read_regions(path)] == ["Plattenepithel, Übergang"]


@pytest.mark.wild(
    "spatialdata-plot#430, HistoQC#180, pathology-whole-slide-data#42", "regions without an area or a class"
)
def test_regions_without_area_or_class_are_left_out_and_counted(tmp_path: Path) -> None:
    odd = [
        feature({"type": "LineString", "coordinates": [[0, 0], [9, 9]]}, {"name": "Tumor"}),
        feature({"type": "MultiPoint", "coordinates": [[0, 0]]}, {"name": "Tumor"}),
        feature(polygon([[0, 0], [1, 1], [0, 0]]), {"name": "Tumor"}),
        feature({"type": "Polygon", "coordinates": []}, {"name": "Tumor"}),
        feature(SQUARE, None),
        feature(SQUARE, name="Annotation 3"),  # the title of an unclassified annotation of QuPath
    ]
    found = drawn(tmp_path, [*odd, region("Stroma", ring(0, 0, 10, 10))])
    assert found.cells.sum() == 100
    assert "1 line" in found.notes[0]
    assert "1 point" in found.notes[0]
    assert "2 without a class" in found.notes[0]


@pytest.mark.wild("spatialdata-plot#430, HistoQC#180, pathology-whole-slide-data#42", "a feature that cannot be read")
@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([SQUARE, feature(SQUARE, "Necrosis")], "region 2 is of the class 'Necrosis', expected one of Stroma, Tumor"),
        ([feature({"type": "Circle", "coordinates": [1, 1]}, "Tumor")], "region 1 has the geometry 'Circle', expected"),
        ([feature(polygon([["a", "b"]] * 4), "Tumor")], r"region 1 \(Polygon\) has coordinates that are no rings"),
        ([feature(polygon([[1, float("nan")]] * 4), "Tumor")], r"region 1 \(Polygon\) has coordinates"),
        ([3], "holds no feature, expected a GeoJSON"),
        ({"annotations": []}, "holds an object with annotations, expected a GeoJSON"),
        ({"type": "FeatureCollection"}, "a FeatureCollection without a list of features"),
        ([feature(SQUARE)], "none of its 1 regions has a class, expected one of Stroma, Tumor"),
        (region("Tumor", ring(900, 900, 990, 990)), "its regions lie beside the slide: from"),
    ],
)
def test_an_invalid_feature_is_named_by_number(tmp_path: Path, content: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        drawn(tmp_path, content)


@pytest.mark.parametrize("text", ["", "{", "<ASAP_Annotations/>", "[" * 100_000])
def test_invalid_json_is_refused_in_words(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.geojson").write_text(text)
    with pytest.raises(DataError, match=r"its file of regions is (no JSON text|nested too deeply)"):
        read_regions(tmp_path / "r.geojson")


def test_regions_beyond_the_slide_are_noted(tmp_path: Path) -> None:
    found = drawn(tmp_path, region("Tumor", ring(32, 0, 128, 48)))
    assert found.cells.sum() == 2 * 32 * 48
    assert "reach beyond the slide: from (32, 0) to (128, 48), the slide has 64 x 48" in found.notes[0]


# --- without names from the user


def _site(folder: Path, files: dict[str, list[dict[str, Any]]]) -> Path:
    pixels = noisy(np.full((512, 512, 3), (200, 90, 160)))
    pixels[:64] = 245
    rows = ["image,label"]
    for name, features in files.items():
        tiled(folder / f"{name}.tif", pixels)
        (folder / f"{name}.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
        rows.append(f"{name}.tif,{name}.geojson")
    (folder / "t.csv").write_text("\n".join(rows))
    return folder


@pytest.mark.wild("qupath#972", "two classes that both become value 1")
def test_classes_without_values_stay_separate_and_named(tmp_path: Path) -> None:
    files = {
        "a": [region("Tumor", ring(0, 0, 256, 512)), region("Stroma", ring(256, 0, 512, 512))],
        "b": [region("tumor", ring(0, 0, 512, 512)), region("Necrosis", ring(0, 256, 512, 512))],
    }
    source = _site(tmp_path / "in", files)
    manifest = register(
        RegisterOptions(source, "s", tmp_path / "out", "slides", table=source / "t.csv", tiles=TileSpec(128))
    )
    assert manifest.labels == {"0": "background", "1": "Necrosis", "2": "Stroma", "3": "Tumor"}
    counts = {entry.name: entry.label_values for entry in manifest.entries}
    assert counts == {"a": {"2": 8, "3": 8}, "b": {"1": 8, "3": 8}}


@pytest.mark.parametrize("labels", ["", "1=background,2=Tumor"])
def test_drawn_background_is_another_class_than_what_nobody_drew(tmp_path: Path, labels: str) -> None:
    files = {"a": [region("Tumor", ring(0, 0, 256, 512)), region("background", ring(256, 256, 512, 512))]}
    source = _site(tmp_path / "in", files)
    named = parse_labels(labels) if labels else {}
    options = RegisterOptions(source, "s", tmp_path / "out", "slides", named, source / "t.csv", TileSpec(128))
    manifest = register(options)
    assert manifest.labels == {"0": "unlabelled", "1": "background", "2": "Tumor"}
    assert manifest.remarks == []
    assert manifest.entries[0].label_values == {"0": 4, "1": 4, "2": 8}


def test_a_class_smaller_than_a_tile_is_drawn_and_not_forgotten(tmp_path: Path) -> None:
    large = [region("Tumor", ring(0, 0, 256, 512)), region("Stroma", ring(256, 0, 512, 512))]
    small = [region("Tumor", ring(0, 0, 256, 512)), region("Stroma", ring(300, 200, 303, 203))]
    without = [region("Tumor", ring(0, 0, 256, 512))]
    source = _site(tmp_path / "in", {"a": large, "b": large, "c": large, "d": small, "e": without})
    options = RegisterOptions(source, "s", tmp_path / "out", "slides", table=source / "t.csv", tiles=TileSpec(128))
    manifest = register(options)
    entry = next(entry for entry in manifest.entries if entry.name == "d")
    assert entry.label_values == {"0": 8, "1": 0, "2": 8}
    assert "drawn, and covers half of no tile with tissue: Stroma" in entry.notes
    assert [remark.partition(":")[0] for remark in manifest.remarks] == ["1 of 5 labelled images have no Stroma"]
    assert "no Stroma: e." in manifest.remarks[0]


def test_regions_without_any_class_are_one(tmp_path: Path) -> None:
    source = _site(tmp_path / "in", {"a": [feature(polygon(ring(0, 0, 256, 512)), None)]})
    manifest = register(
        RegisterOptions(source, "s", tmp_path / "out", "slides", table=source / "t.csv", tiles=TileSpec(128))
    )
    assert manifest.entries[0].label_values == {"0": 8, "1": 8}


def test_the_users_names_take_precedence_and_others_are_noted(tmp_path: Path) -> None:
    source = _site(tmp_path / "in", {"a": [region("Tumor", ring(0, 0, 256, 512)), feature(SQUARE, None)]})
    request = RegisterOptions(
        source, "s", tmp_path / "out", "slides", parse_labels("7=tumor"), source / "t.csv", TileSpec(128)
    )
    entry = register(request).entries[0]
    assert entry.label_values == {"0": 8, "7": 8}
    assert any("left out: 1 without a class" in note for note in entry.notes)


def test_unreadable_files_give_no_names(tmp_path: Path) -> None:
    (tmp_path / "a.geojson").write_text("{")
    (tmp_path / "b.geojson").write_text(json.dumps(region("Tumor", ring(0, 0, 9, 9))))
    assert label_values([tmp_path / "a.geojson", tmp_path / "b.geojson"]) == {"Tumor": 1}


def test_a_mask_of_another_shape_is_refused(tmp_path: Path) -> None:
    tiled(tmp_path / "in" / "a.tif", noisy(np.full((512, 512, 3), (200, 90, 160))))
    Image.fromarray(np.ones((64, 256), np.uint8)).save(tmp_path / "in" / "m.png")
    (tmp_path / "in" / "t.csv").write_text("image,label\na.tif,m.png\n")
    manifest = register(
        RegisterOptions(tmp_path / "in", "s", tmp_path / "out", "slides", table=tmp_path / "in" / "t.csv")
    )
    assert "its mask has 256 x 64 pixels, expected the shape of the slide of 512 x 512" in manifest.quarantine[0].reason
