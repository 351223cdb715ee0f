"""Regions are matched with slides by name, or reported."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from oncofed.data.folder import find_files
from oncofed.data.layouts import FolderLayout, find_layout
from oncofed.data.register import RegisterOptions, register
from oncofed.data.slides import TileSpec
from slide_files import noisy, tiled

_NO_SLIDE = "regions of no slide: "


def regions(x: int) -> str:
    ring = [[x, 0], [x + 256, 0], [x + 256, 512], [x, 512], [x, 0]]
    feature = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}}
    properties = {"objectType": "annotation", "classification": {"name": "Tumour"}}
    return json.dumps({"type": "FeatureCollection", "features": [{**feature, "properties": properties}]})


def layout_of(folder: Path, names: list[str], task: str | None = "slides") -> FolderLayout:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(regions(0) if name.endswith("json") else "")
    return find_layout(folder, find_files(folder).files, None, task)


@pytest.mark.wild("standard: RFC 7946", "regions beside a slide that are passed over")
@pytest.mark.parametrize(
    ("slide", "drawn"),
    [
        ("S1.svs", "S1.geojson"),
        ("A.ome.tif", "A.ome.geojson"),
        ("A.ome.tif", "A.geojson"),
        ("A.ome.tif", "A.ome.tif.geojson"),
        ("S1.svs", "S1.svs.json"),
        ("images/S1.tif", "labels/S1.geojson"),
        ("images/S1.tif", "annotations/S1.GEOJSON"),
        ("slides/p/S1.ndpi", "annotations/p/S1.geojson"),
        ("S1.svs", "S1_annotations.geojson"),
        ("Fall 1/slide.svs", "Fall 1/annotations.geojson"),
        ("b/S 1 (HE).tiff", "b/S 1 (HE).geojson"),
    ],
)
def test_regions_find_their_slide(tmp_path: Path, slide: str, drawn: str) -> None:
    layout = layout_of(tmp_path, [slide, drawn, "Z9.svs"])
    assert {item.images[0]: item.label for item in layout.items} == {slide: drawn, "Z9.svs": None}
    assert not layout.left_out


@pytest.mark.wild("standard: RFC 7946", "regions of one slide on another")
def test_regions_of_no_slide_or_several_are_reported(tmp_path: Path) -> None:
    names = ["S1.svs", "S1_2.geojson", "T.geojson", "p/U.svs", "q/U.svs", "labels/U.geojson", "meta.json", "V.svs"]
    names += ["V.geojson", "labels/V.geojson"]
    layout = layout_of(tmp_path, names)
    (tmp_path / "meta.json").write_text("{}")
    layout = find_layout(tmp_path, find_files(tmp_path).files, None, "slides")
    assert all(item.label is None for item in layout.items)
    told = {path: reason.split(":")[0] for path, reason in layout.left_out.items()}
    assert told == {
        "S1_2.geojson": "regions of no slide",
        "T.geojson": "regions of no slide",
        "labels/U.geojson": "regions that may be of several slides",
        "V.geojson": "regions of a slide that is set aside for them",
        "labels/V.geojson": "regions of a slide that is set aside for them",
    }
    assert [bad.source for bad in layout.bad] == ["V.svs"]


def test_regions_belong_to_the_slide_with_the_same_name(tmp_path: Path) -> None:
    layout = layout_of(tmp_path, ["A.svs", "A.ome.tif", "A.ome.geojson"])
    assert {item.images[0]: item.label for item in layout.items} == {"A.svs": None, "A.ome.tif": "A.ome.geojson"}


def test_unused_regions_are_reported_in_other_tasks(tmp_path: Path) -> None:
    layout = layout_of(tmp_path, ["A.tif", "A.geojson"], task=None)
    assert "register with --task slides" in layout.left_out["A.geojson"]


def test_regions_next_to_slides_become_labels_without_a_table(tmp_path: Path) -> None:
    pixels = noisy(np.full((512, 512, 3), (200, 90, 160)))
    pixels[:64] = 245
    for name in ("A.ome", "B", "C"):
        tiled(tmp_path / "in" / f"{name}.tif", pixels)
    for name, x in (("A.ome", 0), ("B", 256), ("D", 0)):
        (tmp_path / "in" / f"{name}.geojson").write_text(regions(x))
    manifest = register(
        RegisterOptions(tmp_path / "in", "s", tmp_path / "out", "slides", tiles=TileSpec(128), workers=1)
    )
    assert manifest.labels == {"0": "background", "1": "Tumour"}
    assert {entry.source: entry.label for entry in manifest.entries} == {
        "A.ome.tif": "source/A.ome.geojson",
        "B.tif": "source/B.geojson",
        "C.tif": None,
    }
    assert manifest.files == {"image": 3, "regions": 2, "left out": 1}
    assert [reason.startswith(_NO_SLIDE) for reason in manifest.left_out] == [True]
