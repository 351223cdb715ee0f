"""Structure sets: contour types, holes, planes of any direction."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items

from dicoms import OBLIQUE, item, make_rtstruct, make_series, volume
from oncofed.data.dicom.contours import Outline, Region
from oncofed.data.manifest import Manifest
from oncofed.data.register import RegisterOptions, register

SHAPE = (40, 30, 10)
ORIGIN = np.array([-20.0, -30, 5])
STEP = 2.0
few = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def box(x0: float, x1: float, y0: float, y1: float, depth: float) -> np.ndarray:
    """Return a rectangle of whole voxels at a slice depth.

    From voxel x0 to x1 and y0 to y1, inclusive; LPS in mm.
    """
    corners = [(x0 - 0.5, y0 - 0.5), (x1 + 0.5, y0 - 0.5), (x1 + 0.5, y1 + 0.5), (x0 - 0.5, y1 + 0.5)]
    return np.array([(x, y, depth * STEP) for x, y in corners]) + ORIGIN


ONE = box(5, 24, 5, 20, 3)  # 20 x 16 voxels of slice 3


def _draw(tmp_path: Path, regions: dict[str, list[np.ndarray]], **more: object) -> tuple[np.ndarray, list[str]]:
    """Return a structure set's mask and its case's notes."""
    manifest = _register(tmp_path, regions, **more)
    assert [case.reason for case in manifest.quarantine] == []
    (entry,) = manifest.entries
    return np.asarray(nib.load(tmp_path / "out" / str(entry.label)).dataobj), entry.notes


def _register(tmp_path: Path, regions: dict[str, list[np.ndarray]], **more: object) -> Manifest:
    files = make_series(tmp_path / "in", volume(SHAPE), spacing=(1, 1, STEP), origin=ORIGIN, modality="CT")
    make_rtstruct(tmp_path / "in" / "rs.dcm", files, regions, **more)  # type: ignore[arg-type]
    return register(RegisterOptions(tmp_path / "in", "demo", tmp_path / "out"))


def _by_slice(mask: np.ndarray) -> list[int]:
    return (mask > 0).sum(axis=(0, 1)).tolist()


@pytest.mark.wild("–", "a region without a contour, which gets a label value unsaid")
def test_a_region_without_a_contour_is_named(tmp_path: Path) -> None:
    mask, notes = _draw(tmp_path, {"Liver": [ONE], "Spleen": []})
    assert mask.max() == 1
    assert "named without a contour, not drawn: Spleen" in notes


# --- contours of one plane


@pytest.mark.wild("open-vv/vv#117, e0404/matRad#910", "a contour stored twice")
@pytest.mark.parametrize("again", ["same", "turned", "backwards", "rounded", "finer"])
def test_a_duplicate_contour_is_drawn_once(tmp_path: Path, again: str) -> None:
    middle = np.repeat((ONE + np.roll(ONE, -1, axis=0)) / 2, 1, axis=0)
    second = {
        "same": ONE,
        "turned": np.roll(ONE, 2, axis=0),
        "backwards": ONE[::-1],
        "rounded": ONE + np.array([0.04, -0.03, 0.01]),
        "finer": np.stack([ONE, middle], axis=1).reshape(-1, 3),
    }[again]
    mask, notes = _draw(tmp_path, {"Liver": [ONE, second]})
    assert _by_slice(mask) == [0, 0, 0, 320, 0, 0, 0, 0, 0, 0]
    assert "Liver: contours that are there twice, drawn once: 1" in notes


@pytest.mark.wild("open-vv/vv#117", "contours that overlap, or touch")
@pytest.mark.parametrize(("second", "voxels"), [((15, 29), 400), ((25, 29), 400), ((30, 34), 400), ((15, 24), 320)])
def test_overlapping_contours_are_one_region(tmp_path: Path, second: tuple[int, int], voxels: int) -> None:
    other = box(*second, 5, 20, 3) if second != (15, 24) else box(15, 24, 5, 20, 3) + np.array([0.3, 0, 0])
    mask, _ = _draw(tmp_path, {"Liver": [ONE, other]})
    assert _by_slice(mask)[3] == voxels


@pytest.mark.wild("platipy#244, platipy#271, dcmrtstruct2nii#32, dcmrtstruct2nii#37", "a hole by a second contour")
def test_nested_contours_are_holes_and_islands(tmp_path: Path) -> None:
    hole, island = box(8, 19, 8, 17, 3), box(11, 14, 11, 14, 3)
    mask, _ = _draw(tmp_path, {"Liver": [island, ONE, hole]})
    expected = np.zeros(SHAPE, bool)
    expected[5:25, 5:21, 3] = True
    expected[8:20, 8:18, 3] = False
    expected[11:15, 11:15, 3] = True
    np.testing.assert_array_equal(mask > 0, expected)


@pytest.mark.wild("platipy#244", "a hole of two organs, a hole that is there twice, a hole at the border")
@pytest.mark.parametrize(
    ("contours", "voxels"),
    [
        ([ONE, ONE, box(8, 13, 8, 13, 3), box(8, 13, 8, 13, 3)], 320 - 36),  # both twice
        ([ONE, box(8, 13, 8, 13, 3), box(11, 16, 8, 13, 3)], 320 - 54),  # two holes that overlap
        ([ONE, box(5, 10, 8, 13, 3)], 320 - 36),  # one that shares a piece of the outline
        ([ONE, box(15, 34, 5, 20, 3), box(17, 22, 8, 13, 3)], 480 - 36),  # in both of two that overlap
        ([ONE, box(8, 13, 8, 13, 3), box(12, 34, 8, 10, 3)], 320 + 10 * 3 - 36 + 2 * 3),  # another organ over a hole
    ],
)
def test_holes_in_overlapping_or_duplicate_outlines(tmp_path: Path, contours: list[np.ndarray], voxels: int) -> None:
    mask, _ = _draw(tmp_path, {"Liver": contours})
    assert _by_slice(mask)[3] == voxels


@pytest.mark.wild("SlicerRT#171", "a keyhole")
@pytest.mark.parametrize("channel", [12.0, 12.5])
def test_a_keyhole_is_a_hole(tmp_path: Path, channel: float) -> None:
    hole = [(8.5, 8.5), (8.5, 14.5), (14.5, 14.5), (14.5, 8.5)]  # 36 voxels
    points = [(4.5, 4.5), (channel, 4.5), (channel, 8.5), *hole, (channel, 8.5), (channel, 4.5), (24.5, 4.5)]
    points += [(24.5, 20.5), (4.5, 20.5)]
    contour = np.array([(x, y, 3 * STEP) for x, y in points]) + ORIGIN
    mask, _ = _draw(tmp_path, {"Liver": [contour]})
    assert _by_slice(mask)[3] == 284


@pytest.mark.wild("standard: PS3.3 C.8.8.6.3", "exclusive or, where CLOSEDPLANAR_XOR says so")
def test_exclusive_or_is_for_closedplanar_xor(tmp_path: Path) -> None:
    contours = [ONE, box(15, 29, 5, 20, 3)]  # they share 10 x 16 voxels
    mask, _ = _draw(tmp_path, {"Xor": contours, "Union": contours}, kinds={"Xor": "CLOSEDPLANAR_XOR"})
    assert [int((mask == value).sum()) for value in (1, 2)] == [160, 240]  # the higher value, Xor, lies over Union
    mask, _ = _draw(tmp_path / "alone", {"Xor": contours}, kinds={"Xor": "CLOSEDPLANAR_XOR"})
    assert _by_slice(mask)[3] == 400 - 160


@pytest.mark.wild("SlicerRT#45, rt-utils#16, rt-utils#60, dcmrtstruct2nii#4", "open contours filled")
@pytest.mark.filterwarnings("ignore:Invalid value for VR CS")
@pytest.mark.parametrize("kind", ["OPEN_PLANAR", "OPEN_NONPLANAR", "POINT", "open_planar "])
def test_open_contours_and_points_have_no_area(tmp_path: Path, kind: str) -> None:
    mask, notes = _draw(tmp_path, {"Liver": [ONE], "Wire": [box(5, 30, 5, 25, 3)]}, kinds={"Wire": kind})
    assert (_by_slice(mask)[3], int((mask == 2).sum())) == (320, 0)
    assert any(note.startswith("Wire: without area, not drawn: 1 ") for note in notes)


@pytest.mark.wild("standard: PS3.3 C.8.8.6.1", "a structure set of points alone")
def test_a_structure_set_with_only_points_is_reported(tmp_path: Path) -> None:
    manifest = _register(tmp_path, {"Marker": [ONE[:1]]}, kinds={"Marker": "POINT"})
    assert "points or open contours alone" in manifest.quarantine[0].reason


@pytest.mark.wild("rt-utils#67, pydicom#1206, dcmrtstruct2nii#4", "a region without contours")
def test_a_region_without_contours_does_not_affect_others(tmp_path: Path) -> None:
    def change(dataset: Dataset) -> None:
        del dataset.ROIContourSequence[1].ContourSequence
        dataset.ROIContourSequence[1].ROIDisplayColor = [255, 0, 0]

    mask, _ = _draw(tmp_path, {"Liver": [ONE], "Nothing": []}, change=change)
    assert _by_slice(mask)[3] == 320


@pytest.mark.wild("–", "two regions of one name")
def test_two_regions_of_one_name_are_one(tmp_path: Path) -> None:
    def change(dataset: Dataset) -> None:
        dataset.StructureSetROISequence[1].ROIName = "Liver"

    mask, _ = _draw(tmp_path, {"Liver": [ONE], "Other": [box(15, 29, 5, 20, 3)]}, change=change)
    assert (int(mask.max()), _by_slice(mask)[3]) == (1, 400)


def _corners(x0: float, x1: float, y0: float, y1: float) -> np.ndarray:
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], float)


@few
@given(
    st.lists(
        st.tuples(st.integers(0, 20), st.integers(1, 15), st.integers(0, 20), st.integers(1, 15)),
        min_size=1,
        max_size=5,
    )
)
def test_regions_equal_a_count_of_nested_rectangles(rectangles: list[tuple[int, int, int, int]]) -> None:
    """Compare with a count by hand.

    A voxel is inside if the number of nested rectangles around it is odd, in some chain.
    """
    outlines = [Outline(_corners(x, x + w, y, y + h) - 0.5, 0) for x, w, y, h in rectangles]
    region = Region(outlines)
    points = np.array([(x, y) for x in range(40) for y in range(40)], float)
    found = np.logical_or.reduce(list(region.parts(points)))
    boxes = [*dict.fromkeys(rectangles)]

    def around(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
        return a != b and a[0] <= b[0] and a[0] + a[1] >= b[0] + b[1] and a[2] <= b[2] and a[2] + a[3] >= b[2] + b[3]

    def holds(a: tuple[int, ...], point: np.ndarray) -> bool:
        inside = a[0] <= point[0] < a[0] + a[1] and a[2] <= point[1] < a[2] + a[3]
        direct = [b for b in boxes if around(a, b) and not any(around(a, c) and around(c, b) for c in boxes)]
        return inside and not any(holds(b, point) for b in direct)

    outer = [a for a in boxes if not any(around(b, a) for b in boxes)]
    expected = np.array([any(holds(a, point) for a in outer) for point in points])
    np.testing.assert_array_equal(found, expected)


# --- planes


@pytest.mark.wild("GDCM#57", "planes finer than slices")
@pytest.mark.parametrize("planes", [2, 3, 4, 5])
@pytest.mark.parametrize("shift", [0.0, 0.25])
def test_planes_finer_than_slices_leave_no_slice_empty(tmp_path: Path, planes: int, shift: float) -> None:
    depths = [2 + shift + n / planes for n in range(4 * planes + 1)]  # from slice 2 to slice 6
    mask, _ = _draw(tmp_path, {"Liver": [box(5, 24, 5, 20, depth) for depth in depths]})
    assert _by_slice(mask) == [0, 0, 320, 320, 320, 320, 320, 0, 0, 0]


@pytest.mark.wild("GDCM#57", "a cone on planes finer than slices: the plane of each slice counts, not all of them")
def test_the_nearest_of_finer_planes_counts(tmp_path: Path) -> None:
    contours = [box(5, 34 - 2 * n, 5, 20, 2 + n / 2) for n in range(9)]
    mask, _ = _draw(tmp_path, {"Liver": contours})
    assert _by_slice(mask) == [0, 0, *[(30 - 4 * n) * 16 for n in range(5)], 0, 0, 0]


@pytest.mark.wild("GDCM#57", "a piece that only a plane between slices shows")
def test_a_part_between_slices_does_not_vanish(tmp_path: Path) -> None:
    lesion = box(30, 33, 22, 25, 3.45)
    mask, _ = _draw(tmp_path, {"Liver": [ONE, box(5, 24, 5, 20, 4), lesion]})
    assert _by_slice(mask) == [0, 0, 0, 320 + 16, 320, 0, 0, 0, 0, 0]


@pytest.mark.wild("GDCM#57", "planes off the slices")
@few
@given(st.floats(-0.45, 0.45), st.floats(0, 0.04))
def test_planes_off_the_slices_fill_one_slice_each(
    tmp_path_factory: pytest.TempPathFactory, off: float, jitter: float
) -> None:
    depths = [k + off + (jitter if k % 2 else -jitter) for k in range(2, 8)]
    mask, _ = _draw(tmp_path_factory.mktemp("planes"), {"Liver": [box(5, 24, 5, 20, depth) for depth in depths]})
    assert _by_slice(mask) == [0, 0, *[320] * 6, 0, 0]


@pytest.mark.wild("GDCM#57", "planes half way between slices")
def test_planes_half_way_between_slices_fill_the_same_number(tmp_path: Path) -> None:
    mask, _ = _draw(tmp_path, {"Liver": [box(5, 24, 5, 20, k + 0.5) for k in range(2, 7)]})
    assert sorted(_by_slice(mask)) == [0] * 5 + [320] * 5


@pytest.mark.wild("GDCM#57", "two pieces of one slice at depths that differ by rounding")
def test_pieces_of_one_slice_need_not_be_at_one_depth(tmp_path: Path) -> None:
    mask, _ = _draw(tmp_path, {"Liver": [ONE, box(28, 31, 5, 20, 3.03), box(8, 13, 8, 13, 2.98)]})
    assert _by_slice(mask)[2:5] == [0, 320 + 64 - 36, 0]


@pytest.mark.wild("standard: PS3.3 C.8.8.6", "contours on every third slice")
def test_contours_on_every_third_slice_are_noted(tmp_path: Path) -> None:
    mask, notes = _draw(tmp_path, {"Liver": [box(5, 24, 5, 20, k) for k in (1, 4, 7)]})
    assert _by_slice(mask) == [0, 320, 0, 0, 320, 0, 0, 320, 0, 0]
    assert "Liver: contours lie 3 slices apart, those between are empty" in notes


@pytest.mark.wild("z-rad#252, dcmrtstruct2nii#28", "contours that leave the image")
def test_contours_beyond_the_image_are_cut_with_a_note(tmp_path: Path) -> None:
    contours = [box(30, 60, 5, 14, 3), box(5, 24, 5, 20, 30), box(-30, -20, 5, 14, 4)]
    mask, notes = _draw(tmp_path, {"Liver": contours})
    assert _by_slice(mask) == [0, 0, 0, 100, 0, 0, 0, 0, 0, 0]
    assert "Liver: contours that leave the image, cut at its border: 1" in notes
    assert "Liver: contours outside the image, not drawn: 2" in notes


@pytest.mark.wild("z-rad#252", "a structure set beside its image")
def test_contours_wholly_outside_set_the_case_aside(tmp_path: Path) -> None:
    manifest = _register(tmp_path, {"Liver": [box(5, 24, 5, 20, 30)]})
    assert "its label lies outside the image, with all of its contours (1)" in manifest.quarantine[0].reason


@pytest.mark.wild("dcmrtstruct2nii#28", "an oblique image of other rows than columns")
def test_contours_of_an_oblique_image(tmp_path: Path) -> None:
    values = volume((40, 26, 6))
    files = make_series(tmp_path / "in", values, orientation=OBLIQUE, spacing=(0.9, 0.6, 3), origin=ORIGIN)
    row, column = np.array(OBLIQUE[:3]), np.array(OBLIQUE[3:])
    to_lps = np.stack([row * 0.9, column * 0.6, np.cross(row, column) * 3])
    contours = []
    for depth in range(1, 6):
        corners = [(1.5, 2.5), (4.5, 2.5), (4.5, 8.5), (1.5, 8.5)]
        contours.append(np.array([(x, y, depth) for x, y in corners]) @ to_lps + ORIGIN)
    make_rtstruct(tmp_path / "in" / "rs.dcm", files, {"Block": contours})
    (entry,) = register(RegisterOptions(tmp_path / "in", "demo", tmp_path / "out")).entries
    mask = np.asarray(nib.load(tmp_path / "out" / str(entry.label)).dataobj)
    np.testing.assert_array_equal(mask > 0, values >= 500)


# --- contours across the slices


def _across(axes: Sequence[int], low: Sequence[float], high: Sequence[float], depth: float) -> np.ndarray:
    """Return a rectangle in voxels across the slices.

    From low to high along two axes, at a depth along the third; in LPS.
    """
    third = 3 - sum(axes)
    points = np.zeros((4, 3))
    points[:, axes[0]] = [low[0] - 0.5, high[0] + 0.5, high[0] + 0.5, low[0] - 0.5]
    points[:, axes[1]] = [low[1] - 0.5, low[1] - 0.5, high[1] + 0.5, high[1] + 0.5]
    points[:, third] = depth
    return points * [1, 1, STEP] + ORIGIN


@pytest.mark.wild("standard: PS3.3 C.8.8.6", "sagittal and coronal contours on axial slices")
@pytest.mark.parametrize("axes", [(1, 2), (0, 2)])
@pytest.mark.parametrize("every", [0.5, 1, 2])
def test_contours_across_the_slices_are_cut_by_the_volume(tmp_path: Path, axes: tuple[int, int], every: float) -> None:
    depths = np.arange(6, 16 + every / 2, every)
    mask, notes = _draw(tmp_path, {"Liver": [_across(axes, (5, 2), (20, 7), depth) for depth in depths]})
    expected = np.zeros(SHAPE, bool)
    index: list[slice] = [slice(0), slice(0), slice(2, 8)]
    index[axes[0]] = slice(5, 21)
    reach = max(every, 1) / 2  # half way to the next plane, the lower end inclusive
    first, last = int(np.ceil(6 - reach)), int(np.ceil(depths[-1] + reach)) - 1
    index[3 - sum(axes)] = slice(first, last + 1)
    expected[tuple(index)] = True
    np.testing.assert_array_equal(mask > 0, expected)
    assert any("across the slices (Liver)" in note for note in notes)


@pytest.mark.wild("standard: PS3.3 C.8.8.6", "contours of oblique planes")
def test_contours_of_tilted_planes_are_cut_by_the_volume(tmp_path: Path) -> None:
    """A cuboid in planes tilted by 30 degrees about x.

    The planes are 1 mm apart, the cuboid is parallel to them.
    """
    angle = np.deg2rad(30)
    axes = np.array([[1, 0, 0], [0, np.cos(angle), np.sin(angle)], [0, -np.sin(angle), np.cos(angle)]])
    middle = ORIGIN + np.array([20, 15, 9])
    low, high = np.array([-8.3, -6.3, -4]), np.array([8.3, 6.3, 4])
    contours = []
    for depth in np.arange(low[2], high[2] + 0.5):
        corners = [(low[0], low[1]), (high[0], low[1]), (high[0], high[1]), (low[0], high[1])]
        contours.append(np.array([(u, v, depth) for u, v in corners]) @ axes + middle)
    mask, _ = _draw(tmp_path, {"Liver": contours})
    centres = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1) * [1, 1, STEP] + ORIGIN - middle
    places = centres @ axes.T
    inside = (places > low - [0, 0, 1]).all(axis=-1) & (places < np.add(high, [0, 0, 1])).all(axis=-1)
    surely = (places > low).all(axis=-1) & (places < high).all(axis=-1)
    assert not ((mask > 0) & ~inside).any()
    assert not (surely & (mask == 0)).any()


@pytest.mark.wild("standard: PS3.3 C.8.8.6", "closed contours that lie in no plane, or in planes of many directions")
def test_nonplanar_contours_are_refused_in_words(tmp_path: Path) -> None:
    bent = ONE + np.array([[0, 0, 0], [0, 0, 5], [0, 0, 0], [0, 0, 5]])
    assert "lies in no plane" in _register(tmp_path / "bent", {"Liver": [bent]}).quarantine[0].reason
    fan = []
    for angle in np.linspace(0, np.pi, 8, endpoint=False):
        across = np.array([np.cos(angle), np.sin(angle), 0])
        corners = [(-6, -4), (6, -4), (6, 4), (-6, 4)]
        fan.append(np.array([u * across + np.array([0, 0, v]) for u, v in corners]) + ORIGIN + [20, 15, 9])
    reason = _register(tmp_path / "fan", {"Liver": fan}).quarantine[0].reason
    assert "planes of 8 directions" in reason


@pytest.mark.wild("standard: PS3.3 C.8.8.6", "contour data that is broken")
@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        (["1"] * 11, "a contour of Liver of 11 numbers"),
        (["inf"] * 9, "finite"),
        (["1", "x", *["2"] * 7], "ContourData are not all numbers"),
    ],
)
def test_broken_contour_data_is_refused_in_words(tmp_path: Path, numbers: list[str], said: str) -> None:
    def change(dataset: Dataset) -> None:
        element = dataset.ROIContourSequence[0].ContourSequence[0]["ContourData"]
        element.VR, element._value = "LO", numbers  # as text, which pydicom does not look into

    reason = _register(tmp_path, {"Liver": [ONE]}, change=change).quarantine[0].reason
    assert said in reason


# --- names


@pytest.mark.wild("rt-utils#87, rt-utils#61", "more than 255 names")
def test_270_names_are_270_classes(tmp_path: Path) -> None:
    regions = {f"Region {n:03d}": [box(n % 20, n % 20, n // 20, n // 20, 3)] for n in range(270)}
    manifest = _register(tmp_path, regions)
    assert [case.reason for case in manifest.quarantine] == []
    (entry,) = manifest.entries
    mask = np.asarray(nib.load(tmp_path / "out" / str(entry.label)).dataobj)
    assert (manifest.label_kind, len(manifest.labels), len(entry.label_values or {})) == ("classes", 271, 271)
    for n in (0, 100, 269):
        assert mask[n % 20, n // 20, 3] == n + 1
        assert manifest.labels[str(n + 1)] == f"Region {n:03d}"


@pytest.mark.wild("rt-utils#87", "a hundred organs taken for a hundred objects of one class")
def test_a_hundred_organs_are_classes(tmp_path: Path) -> None:
    manifest = _register(tmp_path, {f"organ {n:03d}": [box(n % 20, n % 20, n // 20, n // 20, 3)] for n in range(104)})
    assert (manifest.label_kind, len(manifest.labels)) == ("classes", 105)
    assert len(manifest.entries[0].label_values or {}) == 105


@pytest.mark.wild("fo-dicom#2029, Slicer#3688", "names in other alphabets")
@pytest.mark.parametrize("encoding", ["ISO_IR 100", "ISO_IR 192"])
def test_names_are_read_in_their_encoding(tmp_path: Path, encoding: str) -> None:
    def change(dataset: Dataset) -> None:
        dataset.SpecificCharacterSet = encoding

    manifest = _register(tmp_path, {"Hüftkopf": [ONE]}, change=change)
    assert manifest.labels["1"] == "Hüftkopf"


@pytest.mark.wild("fo-dicom#2029", "names asked for in another case")
def test_the_users_names_match_in_any_case(tmp_path: Path) -> None:
    files = make_series(tmp_path / "in", volume(SHAPE), spacing=(1, 1, STEP), origin=ORIGIN, modality="CT")
    make_rtstruct(tmp_path / "in" / "rs.dcm", files, {"LIVER ": [ONE], "Other": [box(1, 2, 1, 2, 5)]})
    manifest = register(
        RegisterOptions(tmp_path / "in", "demo", tmp_path / "out", labels={0: "background", 7: "liver"})
    )
    assert manifest.entries[0].label_values == {"0": 12000 - 320, "7": 320}


# --- several files, several spaces


@pytest.mark.wild("–", "two structure sets of one image")
def test_two_structure_sets_of_an_image_are_joined_with_a_note(tmp_path: Path) -> None:
    files = make_series(tmp_path / "in", volume(SHAPE), spacing=(1, 1, STEP), origin=ORIGIN, modality="CT")
    make_rtstruct(tmp_path / "in" / "rs1.dcm", files, {"Liver": [ONE]})
    make_rtstruct(tmp_path / "in" / "rs2.dcm", files, {"Liver": [box(15, 29, 5, 20, 3)]})
    (entry,) = register(RegisterOptions(tmp_path / "in", "demo", tmp_path / "out")).entries
    mask = np.asarray(nib.load(tmp_path / "out" / str(entry.label)).dataobj)
    assert int((mask > 0).sum()) == 400
    assert any("rs1.dcm, rs2.dcm" in note and "Liver" in note for note in entry.notes)


@pytest.mark.wild("dcmqi#518", "regions that overlap")
def test_overlapping_regions_are_noted(tmp_path: Path) -> None:
    mask, notes = _draw(tmp_path, {"Liver": [ONE], "Tumour": [box(15, 29, 5, 20, 3)]})
    assert ((mask == 1).sum(), (mask == 2).sum()) == (160, 240)
    assert "Liver and Tumour overlap in 160 voxels: they count as Tumour" in notes


@pytest.mark.wild("standard: PS3.3 C.8.8.5", "regions of one structure set in several frames of reference")
def test_regions_of_another_space_are_not_drawn(tmp_path: Path) -> None:
    def change(dataset: Dataset) -> None:
        other = item(FrameOfReferenceUID="1.2.3.4")
        dataset.ReferencedFrameOfReferenceSequence = Items([*dataset.ReferencedFrameOfReferenceSequence, other])
        dataset.StructureSetROISequence[1].ReferencedFrameOfReferenceUID = "1.2.3.4"

    mask, _ = _draw(tmp_path, {"Liver": [ONE], "OfTheMR": [box(1, 30, 1, 20, 5)]}, change=change)
    assert _by_slice(mask) == [0, 0, 0, 320, 0, 0, 0, 0, 0, 0]
