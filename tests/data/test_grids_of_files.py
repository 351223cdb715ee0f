"""Labels match images by their corners, in voxels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

from oncofed.data.case_facts import measure, read_case
from oncofed.data.cases import read_cases
from oncofed.data.masks import read_mask
from oncofed.data.register import RegisterOptions, register
from oncofed.data.spec import DataSpec, SplitSpec
from oncofed.data.transforms import load_pair
from oncofed.errors import DataError

SHAPE = (20, 16, 12)
VALUES = np.random.default_rng(0).integers(1, 900, SHAPE).astype(np.int16)
MASK = (VALUES > 700).astype(np.uint8)


def _problem(folder: Path, image: np.ndarray, label: np.ndarray) -> str | None:
    nib.save(nib.Nifti1Image(VALUES, image), folder / "i.nii")
    nib.save(nib.Nifti1Image(MASK, label), folder / "l.nii")
    return measure(*read_case([folder / "i.nii"], folder / "l.nii")).get("label_problem")


@pytest.mark.wild("standard: nifti1.h", "a label that lies elsewhere, by the size of its voxels alone")
@settings(max_examples=30, deadline=None)
@given(
    exponent=st.floats(-5, 2), axis=st.integers(0, 2), kind=st.sampled_from(["shift", "stretch"]), sign=st.booleans()
)
def test_half_a_voxel_at_a_corner_differs_and_rounding_does_not(
    exponent: float, axis: int, kind: str, sign: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("g")
    image = np.diag([*np.array([1.0, 0.7, 2.0]) * 10.0**exponent, 1.0])
    for off in (1e-5, 0.5):
        label = image.copy()
        if kind == "shift":
            label[:3, 3] += image[:3, axis] * off * (1 if sign else -1)
        else:
            label[:3, axis] *= 1 + off / (SHAPE[axis] - 1) * (1 if sign else -1)
        problem = _problem(folder, image, label)
        assert (problem is None) == (off < 0.1), problem
        if problem:
            assert "lies elsewhere in space, by 0.5 voxels at a corner" in problem


@pytest.mark.wild("spinalcordtoolbox#2106", "a label whose axes are turned about its image's middle")
def test_a_rotation_that_moves_only_corners_is_detected(tmp_path: Path) -> None:
    angle = 0.06
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    middle = np.eye(4)
    middle[:3, 3] = (np.array(SHAPE) - 1) / 2
    assert "elsewhere" in str(_problem(tmp_path, np.eye(4), middle @ turn @ np.linalg.inv(middle)))


@pytest.mark.wild("spinalcordtoolbox#2106", "channels of one case that do not lie on each other")
@pytest.mark.parametrize("size", [1e-4, 1.0])
def test_channels_are_compared_the_same_way(size: float, tmp_path: Path) -> None:
    for number, off in enumerate((0.0, 1e-5, 0.5)):
        affine = np.diag([size, size, size, 1.0])
        affine[0, 3] = off * size
        nib.save(nib.Nifti1Image(VALUES, affine), tmp_path / f"{number}.nii")
    assert read_case([tmp_path / "0.nii", tmp_path / "1.nii"], None)[0].values.shape == (*SHAPE, 2)
    with pytest.raises(
        DataError, match=r"do not lie on one grid: that of 2.nii lies elsewhere in space, by 0.5 voxels"
    ):
        read_case([tmp_path / "0.nii", tmp_path / "2.nii"], None)


@pytest.mark.wild("standard: MetaImage, Offset", "a flat label that lies elsewhere")
@pytest.mark.parametrize(("off", "right"), [(0.0, True), (5.0, False)])
def test_flat_images_with_a_place_are_compared(off: float, right: bool, tmp_path: Path) -> None:
    for name, origin in (("i.mha", 0.0), ("l.mha", off)):
        image = sitk.GetImageFromArray(VALUES[..., 0] if name == "i.mha" else MASK[..., 0])
        image.SetSpacing((0.5, 0.5))
        image.SetOrigin((origin, 1.0))
        sitk.WriteImage(image, str(tmp_path / name))
    found = measure(*read_case([tmp_path / "i.mha"], tmp_path / "l.mha"))
    assert ("label_problem" not in found) == right
    assert found["spacing"] == [0.5, 0.5]


def test_sizes_in_microns_are_kept(tmp_path: Path) -> None:
    assert _problem(tmp_path, np.diag([2.5e-4, 2.5e-4, 1e-3, 1]), np.diag([2.5e-4, 2.5e-4, 1e-3, 1])) is None
    found = measure(*read_case([tmp_path / "i.nii"], None))
    assert found["spacing"] == pytest.approx([2.5e-4, 2.5e-4, 1e-3], rel=1e-5)


# --- files of one grid in another order


def _stored(values: np.ndarray, affine: np.ndarray, order: tuple[int, ...], flips: tuple[bool, ...]) -> nib.Nifti1Image:
    """Return a volume with permuted and mirrored axes.

    Its affine is computed voxel by voxel.
    """
    matrix = np.zeros((4, 4))
    matrix[3, 3] = 1
    for axis, (source, flip) in enumerate(zip(order, flips, strict=True)):
        matrix[source, axis] = -1 if flip else 1
        matrix[source, 3] = values.shape[source] - 1 if flip else 0
    shape = [values.shape[source] for source in order]
    index = np.indices(shape).reshape(3, -1)
    at = (matrix[:3, :3] @ index + matrix[:3, 3:]).astype(int)
    return nib.Nifti1Image(values[tuple(at)].reshape(shape), affine @ matrix)


def _oblique(angle: float) -> np.ndarray:
    affine = np.eye(4)
    affine[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    affine[:3, 3] = [10, -20, 30]
    return affine @ np.diag([-0.8, 0.8, 2.5, 1])


@pytest.mark.wild("standard: nifti1.h, METHOD 3", "a mask that is stored with its axes in another order, or mirrored")
@settings(max_examples=12, deadline=None)
@given(
    order=st.permutations(range(3)),
    flips=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    angle=st.sampled_from([0.0, 0.3, -0.6]),
    cubic=st.booleans(),
    registered=st.booleans(),
)
def test_a_mask_in_another_axis_order_gives_the_same_label(
    order: list[int],
    flips: tuple[bool, ...],
    angle: float,
    cubic: bool,
    registered: bool,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("g")
    part = np.s_[:12, :12, :12] if cubic else np.s_[:]
    for kind in ("images", "labels"):
        (folder / "in" / kind).mkdir(parents=True)
    for name in "abc":
        nib.save(nib.Nifti1Image(VALUES[part], _oblique(angle)), folder / "in" / "images" / f"{name}.nii")
        mask = _stored(MASK[part], _oblique(angle), tuple(order), flips)
        nib.save(mask, folder / "in" / "labels" / f"{name}.nii")
    manifest = register(RegisterOptions(folder / "in", "demo", folder / "out", workers=1))
    assert not manifest.quarantine
    is_same = tuple(order) == (0, 1, 2) and not any(flips)
    for entry in manifest.entries:
        assert entry.label_values == {"0": int((MASK[part] == 0).sum()), "1": int(MASK[part].sum())}
        assert ("its label is stored in another order of axes: turned" in entry.notes) != is_same
    for case in read_cases(folder / "out", SplitSpec(), 1):
        asked = case if registered else replace(case, entry=None)
        image, label = asked.read()
        alone = asked.read_label()
        for read in (label, alone):
            assert np.array_equal(read.values[..., 0], MASK[part])
            assert np.allclose(read.affine, image.affine, atol=1e-4)
        spec = DataSpec(dataset="any", spacing=None, patch=(8, 8, 8), orientation="RAS")
        loaded = load_pair(spec)(asked)
        turned = nib.orientations.apply_orientation(MASK[part], nib.io_orientation(image.affine))
        assert np.array_equal(loaded["label"][0].numpy(), turned)


@pytest.mark.wild("standard: nifti1.h, METHOD 3", "channels of one case that are stored in another order")
def test_a_channel_in_another_axis_order_is_reordered(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(VALUES, _oblique(0.2)), tmp_path / "0.nii")
    nib.save(_stored(VALUES, _oblique(0.2), (2, 0, 1), (True, False, True)), tmp_path / "1.nii")
    image, _ = read_case([tmp_path / "0.nii", tmp_path / "1.nii"], None)
    assert np.array_equal(image.values[..., 0], image.values[..., 1])
    assert image.notes == ("one of its channels is stored in another order of axes: turned",)


@pytest.mark.wild("standard: nifti1.h, METHOD 3", "masks of one case, each stored in an order of its own")
def test_each_mask_of_a_case_is_reordered(tmp_path: Path) -> None:
    (tmp_path / "in" / "a").mkdir(parents=True)
    nib.save(nib.Nifti1Image(VALUES, _oblique(0)), tmp_path / "in" / "a" / "ct.nii.gz")
    (tmp_path / "in" / "a" / "segmentations").mkdir()
    halves = {"liver": MASK * (np.arange(SHAPE[0]) < 9)[:, None, None], "spleen": MASK}
    halves["spleen"] = MASK - halves["liver"]
    orders = {"liver": (1, 0, 2), "spleen": (2, 1, 0)}
    for name, half in halves.items():
        mask = _stored(half.astype(np.uint8), _oblique(0), orders[name], (True, False, True))
        nib.save(mask, tmp_path / "in" / "a" / "segmentations" / f"{name}.nii.gz")
    manifest = register(RegisterOptions(tmp_path / "in", "demo", tmp_path / "out", workers=1))
    (entry,) = manifest.entries
    label = read_mask(tmp_path / "out" / str(entry.label)).values[..., 0]
    by_name = {name: int(value) for value, name in manifest.labels.items()}
    assert all(np.array_equal(label == by_name[name], half > 0) for name, half in halves.items())
    assert any("another order of axes" in note for note in entry.notes)


@pytest.mark.wild("standard: nifti1.h", "a mask that lies elsewhere, of which something false is said")
def test_grid_differences_are_described_correctly(tmp_path: Path) -> None:
    affine = _oblique(0)
    shifted, mirrored = affine.copy(), np.diag([-1.0, -1, 1, 1]) @ affine
    shifted[:3, 3] += 3 * affine[:3, 1]
    larger = affine @ np.diag([2.0, 2, 2, 1])
    assert "does not say where it lies (its affine is the identity)" in str(_problem(tmp_path, affine, np.eye(4)))
    assert "the image's header does not say where it lies" in str(_problem(tmp_path, np.eye(4), affine))
    assert "shifted by 3 voxels along the second axis" in str(_problem(tmp_path, affine, shifted))
    assert "another order of axes and, turned" not in str(_problem(tmp_path, affine, shifted))
    assert "its axes point RPS, expected LAS" in str(_problem(tmp_path, affine, mirrored))
    assert "voxels are 1.6 x 1.6 x 5 mm, expected 0.8 x 0.8 x 2.5" in str(_problem(tmp_path, affine, larger))
    nib.save(nib.Nifti1Image(MASK[::2, ::2, ::2], larger), tmp_path / "l.nii")
    problem = measure(*read_case([tmp_path / "i.nii"], tmp_path / "l.nii"))["label_problem"]
    assert "has shape (10, 8, 6), expected the image's (20, 16, 12), and voxels of 1.6 x 1.6 x 5 mm" in problem


@pytest.mark.wild("standard: nifti1.h, METHOD 1", "a place that a convention gives, taken for one that the header says")
def test_a_mask_without_a_place_is_not_reordered(tmp_path: Path) -> None:
    centred = nib.Nifti1Image(MASK, None)
    assert int(centred.header["sform_code"]) == int(centred.header["qform_code"]) == 0
    nib.save(centred, tmp_path / "l.nii")
    affine = np.diag([-1.0, 1, 1, 1]) @ centred.header.get_best_affine()  # the same box, from its other side
    nib.save(nib.Nifti1Image(VALUES, affine), tmp_path / "i.nii")
    problem = measure(*read_case([tmp_path / "i.nii"], tmp_path / "l.nii")).get("label_problem")
    assert "does not say where it lies (neither sform nor qform)" in str(problem)
