"""Outlines of objects hold exactly their pixels.

Whatever their form; other programs read the same.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from matplotlib.path import Path as Outline
from PIL import Image
from scipy import ndimage

from made import made_model, made_predictions, made_source
from oncofed.data.slides.regions import draw, read_regions
from oncofed.errors import DataError
from oncofed.prediction.case_prediction import CasePrediction
from oncofed.prediction.outputs import geojson
from oncofed.prediction.outputs.objects import measure, object_features, write_label_image, write_objects
from oncofed.prediction.outputs.polygons import Polygon, object_polygons
from oncofed.tasks.inferred import ObjectMap
from synthetic import make_nuclei

NUCLEI = "{type: objects, classes: {1: nucleus}}"
UNET = "{network: unet, channels: [4, 8], residual_units: 1}"
RING = np.array([[1, 1, 1, 1], [1, 0, 2, 1], [1, 0, 0, 1], [1, 1, 1, 1]])


def area(ring: list[list[int]]) -> float:
    """Return a ring's area by the shoelace formula."""
    (x, y), (after_x, after_y) = np.array(ring[:-1]).T, np.array(ring[1:]).T
    return float((x * after_y - after_x * y).sum() / 2)


def filled(polygons: list[Polygon], shape: tuple[int, ...]) -> np.ndarray:
    """Return which pixel centres are in polygons (x, y).

    By matplotlib.
    """
    centres = np.indices(shape).reshape(2, -1).T + 0.5
    inside = np.zeros(len(centres), bool)
    for rings in polygons:
        here = Outline(rings[0]).contains_points(centres)
        for hole in rings[1:]:
            here &= ~Outline(hole).contains_points(centres)
        inside |= here
    return inside.reshape(shape)


def require_exact(numbers: np.ndarray) -> None:
    found = object_polygons(numbers)
    assert set(found) == set(np.unique(numbers).tolist()) - {0}
    for number, polygons in found.items():
        assert (filled(polygons, numbers.shape) == (numbers == number)).all()
        assert sum(area(ring) for rings in polygons for ring in rings) == (numbers == number).sum()
        for rings in polygons:
            assert [area(ring) > 0 for ring in rings] == [True] + [False] * (len(rings) - 1)
            for ring in rings:
                assert ring[0] == ring[-1]
                assert len({tuple(point) for point in ring[1:]}) == len(ring) - 1  # it meets itself nowhere


few_values = st.integers(1, 3).flatmap(
    lambda most: arrays.arrays(
        np.int32, arrays.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(0, most)
    )
)


@settings(deadline=None, max_examples=200)
@given(few_values)
def test_outlines_of_anything_hold_exactly_its_pixels(numbers: np.ndarray) -> None:
    require_exact(numbers)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1))
def test_outlines_of_blobs_with_holes_that_touch_hold_exactly_their_pixels(seed: int) -> None:
    noise = np.random.default_rng(seed).normal(size=(40, 33))
    blobs, _ = ndimage.label(np.abs(ndimage.gaussian_filter(noise, 1.5)) > 0.08)
    blobs[blobs % 3 == 2] -= 1  # objects of several pieces, some within the others' holes
    require_exact(blobs)


@settings(deadline=None, max_examples=100)
@given(few_values)
def test_polygons_are_valid_to_another_library(numbers: np.ndarray) -> None:
    shapely = pytest.importorskip("shapely")
    for number, polygons in object_polygons(numbers).items():
        found = shapely.MultiPolygon([(rings[0], rings[1:]) for rings in polygons])
        assert found.is_valid, shapely.is_valid_reason(found)
        assert found.area == (numbers == number).sum()
        assert all(polygon.exterior.is_ccw for polygon in found.geoms)


def test_one_pixel_is_a_unit_square_at_its_place() -> None:
    numbers = np.zeros((4, 3), np.int32)
    numbers[3, 1] = 7  # column 3, row 1
    (ring,) = object_polygons(numbers)[7][0]
    assert sorted(map(tuple, ring[1:])) == [(3, 1), (3, 2), (4, 1), (4, 2)]


def test_a_surrounding_object_has_a_hole() -> None:
    found = object_polygons(RING)
    assert [len(rings) for rings in found[1]] == [2]
    assert [len(rings) for rings in found[2]] == [1]
    assert sorted(abs(area(ring)) for ring in found[1][0]) == [4, 16]


def test_an_image_without_objects_gives_an_empty_collection(tmp_path: Path) -> None:
    numbers = np.zeros((8, 5), np.int32)
    assert object_polygons(numbers) == {}
    table = measure(numbers, (0.001, 0.001))
    text = geojson.collection(object_features(numbers, table, "nucleus", "key"))
    assert json.loads(text) == {"type": "FeatureCollection", "features": []}
    said = table.summary("nucleus")
    assert (said["objects"], said["per_mm2"]) == (0, 0)
    write_label_image(numbers, None, tmp_path / "labels.tif")
    assert not np.asarray(Image.open(tmp_path / "labels.tif")).any()


def test_more_objects_than_sixteen_bits_can_number(tmp_path: Path) -> None:
    side = 265  # 70,225 objects of 2 x 2 pixels
    numbers = np.kron(np.arange(1, side**2 + 1, dtype=np.int32).reshape(side, side), np.ones((2, 2), np.int32))
    assert len(object_polygons(numbers)) == side**2
    write_label_image(numbers, None, tmp_path / "labels.tif")
    assert (numbers == np.asarray(Image.open(tmp_path / "labels.tif")).T).all()
    write_label_image(numbers[:200, :200], None, tmp_path / "few.tif")
    assert Image.open(tmp_path / "few.tif").mode == "I;16"


def test_places_and_forms_of_objects() -> None:
    numbers = np.zeros((20, 12), np.int32)
    numbers[2:12, 3] = 4  # a line of ten pixels along x
    numbers[14:18, 6:10] = 9  # a square
    table = measure(numbers, (0.0005, 0.0005))
    assert table.numbers.tolist() == [4, 9]
    assert table.sizes.tolist() == [10, 16]
    assert table.centres.tolist() == [[7.0, 3.5], [16.0, 8.0]]
    assert table.micron_sizes is not None
    assert table.micron_sizes == pytest.approx([2.5, 4.0])
    assert table.eccentricity == pytest.approx([np.sqrt(1 - 1 / 100), 0], abs=1e-6)
    said = table.summary("nucleus")
    assert said["per_mm2"] == pytest.approx(2 / (20 * 12 * 0.0005**2))
    assert said["area_mm2"] == pytest.approx(26 * 0.0005**2)


def test_without_a_pixel_size_objects_are_counted_per_megapixel() -> None:
    said = measure(RING, None).summary("nucleus")
    assert said["per_megapixel"] == pytest.approx(2 / 16 * 1e6)
    assert said["size_known"] is False
    assert not any("mm" in name or "um" in name for name in said)


def test_what_is_written_is_read_back_with_its_class(tmp_path: Path) -> None:
    model = made_model(tmp_path / "run", NUCLEI, UNET)
    numbers = np.zeros((30, 20), np.int32)
    numbers[3:9, 4:11] = 1
    numbers[5, 6] = 0
    numbers[25:30, 15:20] = 2  # at the image's edge
    predicted = CasePrediction(made_source(tmp_path / "a.png", spacing=[0.0005, 0.0005]), ObjectMap(numbers, np.eye(4)))
    paths = write_objects(predicted, model, tmp_path)
    by_end = {"".join(path.suffixes): path for path in paths}
    assert all(path.is_file() for path in paths)
    regions = read_regions(by_end[".geojson"])
    assert [region.name for region in regions] == ["nucleus", "nucleus"]
    drawn = draw(regions, {"nucleus": 1}, 1.0, (20, 30), (30, 20))
    assert ((numbers > 0) == drawn.cells.T).all()
    features = json.loads(by_end[".geojson"].read_text())["features"]
    assert features[0]["properties"]["objectType"] == "detection"
    assert features[0]["properties"]["measurements"]["Area px^2"] == 41
    assert features[0]["properties"]["measurements"]["Area µm^2"] == pytest.approx(41 * 0.25)
    labels = sitk.ReadImage(str(by_end[".tif"]))
    assert (numbers == sitk.GetArrayFromImage(labels).T).all()
    assert labels.GetSpacing() == pytest.approx((0.0005, 0.0005))
    rows = list(csv.DictReader(by_end[".csv"].open()))
    assert [(row["number"], row["area_px"], row["class"]) for row in rows] == [
        ("1", "41", "nucleus"),
        ("2", "25", "nucleus"),
    ]
    assert json.loads(by_end[".json"].read_text())["objects"] == 2
    again = write_objects(predicted, model, tmp_path)
    assert [f["id"] for f in json.loads(again[2].read_text())["features"]] == [f["id"] for f in features]


def test_a_volume_has_a_label_image_and_a_table_and_no_geojson(tmp_path: Path) -> None:
    model = made_model(tmp_path / "run", NUCLEI, UNET, "channels: [image], patch: [16, 16, 16]")
    numbers = np.zeros((6, 5, 4), np.int32)
    numbers[1:3, 1:3, 1:3] = 1
    affine = np.diag([0.5, 0.5, 2.0, 1.0])
    nib.save(nib.Nifti1Image(numbers.astype(np.int16), affine), tmp_path / "a.nii")
    predicted = CasePrediction(made_source(tmp_path / "a.nii", spacing=[0.5, 0.5, 2.0]), ObjectMap(numbers, affine))
    paths = write_objects(predicted, model, tmp_path)
    assert [path.name for path in paths] == ["case_objects.csv", "case_objects.json", "case_labels.nii.gz"]
    read = nib.load(paths[2])
    assert (np.asarray(read.dataobj) == numbers).all()
    assert read.affine == pytest.approx(affine)
    assert json.loads(paths[1].read_text())["volume_mm3"] == pytest.approx(8 * 0.5)
    with pytest.raises(DataError, match="objects of a volume have no GeoJSON"):
        object_polygons(numbers)


def test_objects_of_a_folder_of_images_are_written_and_counted(tmp_path: Path) -> None:
    model = made_model(tmp_path / "run", NUCLEI, UNET)
    found = made_predictions(model, make_nuclei(tmp_path / "in", 2, 96), tmp_path / "out")
    assert len(found.made) == 2
    rows = list(csv.DictReader((tmp_path / "out" / "measurements.csv").open()))
    for name, row in zip(sorted(found.made), rows, strict=True):
        folder = tmp_path / "out" / "cases" / name
        labels = np.asarray(Image.open(folder / f"{name}_labels.tif"))
        regions = read_regions(folder / f"{name}_objects.geojson")
        assert int(row["objects"]) == len(np.unique(labels[labels > 0])) == len(regions) > 50
        drawn = draw(regions, {"nucleus": 1}, 1.0, labels.shape, labels.T.shape).cells
        assert ((drawn > 0) == (labels > 0)).all()
