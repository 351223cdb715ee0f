"""Mirrored or shifted masks come first, right ones not."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from oncofed.data.images import LoadedImage
from oncofed.data.look import look
from oncofed.data.placement import place
from oncofed.data.register import RegisterOptions, register
from oncofed.errors import DataError
from synthetic import make_nuclei, make_textures

LABELS = {0: "background", 1: "liver", 2: "left kidney", 3: "right kidney"}
# From stored voxels to RAS+: the first axis to the left, the second to the back, as DICOM's axial slices lie.
AFFINE = np.diag([-3.0, -3, 5, 1])


def make_trunk(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return image and label of a body in air.

    The liver is on the right, a kidney on either side of the spine.
    """
    rng = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n) for n in (48, 48, 24)], indexing="ij")

    def ellipsoid(centre: tuple[float, ...], radii: tuple[float, ...]) -> np.ndarray:
        at = np.array(centre) + rng.normal(0, 0.02, 3)
        return sum(((a - c) / r) ** 2 for a, c, r in zip((x, y, z), at, radii, strict=True)) < 1

    image = np.where((x / 0.85) ** 2 + (y / 0.65) ** 2 < 1, 0.0, -1000)
    label = np.zeros(image.shape, np.uint8)
    image[ellipsoid((0, -0.4, 0), (0.12, 0.12, 3))] = 400
    for value, centre, radii, grey in (
        (1, (0.35, 0.1, 0.2), (0.35, 0.35, 0.5), 90),
        (2, (-0.35, -0.3, -0.3), (0.12, 0.14, 0.35), 160),
        (3, (0.35, -0.35, -0.5), (0.12, 0.14, 0.35), 160),
    ):
        organ = ellipsoid(centre, radii)
        image[organ], label[organ] = grey, value
    # Coils, tables and arms differ from scan to scan, so that none looks like another's copy.
    image += 300 * (x * rng.normal() + y * rng.normal() + z * rng.normal()) * (image < -500)
    return ndimage.gaussian_filter(image, 0.6) + rng.normal(0, 15, image.shape), label


def write_trunks(folder: Path, changed: dict[int, np.ndarray] | None = None, count: int = 12) -> Path:
    """Write trunks as stored, and return the folder.

    Some have another label (in RAS+).
    """
    for sub in ("images", "labels"):
        (folder / sub).mkdir(parents=True)
    for number in range(count):
        image, label = make_trunk(number)
        label = (changed or {}).get(number, label)
        for sub, values in (("images", image.astype(np.int16)), ("labels", label.astype(np.uint8))):
            nib.save(nib.Nifti1Image(values[::-1, ::-1], AFFINE), folder / sub / f"case_{number:02d}.nii.gz")
    return folder


def registered(source: Path, folder: Path, labels: dict[int, str] | None = None) -> Path:
    """Register a folder and return the dataset's."""
    register(RegisterOptions(source, "set", folder, labels=labels or {}, workers=1))
    return folder


def kinds(found: object, name: str) -> set[str]:
    """Return kinds of suspicion, except from header and copies."""
    own = {"mask lies better elsewhere", "label lies elsewhere than others'", "left and right exchanged"}
    own |= {"class on the other side", "mask outside the body", "contour off the edges", "label of an unusual size"}
    own |= {"class is missing", "very few voxels", "mask touches the image's edge", "mask in many pieces", "unreadable"}
    return {r.kind for seen in found.suspicious if seen.name == name for r in seen.reasons} & own  # type: ignore[attr-defined]


@pytest.mark.wild("spinalcordtoolbox#2106, LST-AI#45", "a mask that was written mirrored, turned or shifted")
def test_mirrored_and_shifted_masks_come_first(tmp_path: Path) -> None:
    moved = {
        2: np.flip(make_trunk(2)[1], 0),
        5: np.flip(make_trunk(5)[1], 2),
        7: np.roll(make_trunk(7)[1], 6, 0),
        9: np.swapaxes(make_trunk(9)[1], 0, 1),
    }
    folder = registered(write_trunks(tmp_path / "in", moved), tmp_path / "set", LABELS)
    found = look(folder, workers=1)
    assert {seen.name for seen in found.suspicious[:4]} == {f"case_{number:02d}" for number in moved}
    assert "left and right exchanged" in kinds(found, "case_02")
    whats = {s.name: " ".join(r.what for r in s.reasons) for s in found.suspicious}
    assert "mirrored left to right, its contour would follow the image's edges" in whats["case_02"]
    assert "mirrored head to feet, its contour would follow" in whats["case_05"]
    assert "of the image to the left, its contour would follow" in whats["case_07"]
    assert "rows for columns" in whats["case_09"]
    for number in set(range(12)) - set(moved):
        assert not kinds(found, f"case_{number:02d}")
    assert (found.examined, found.masked) == (12, 12)


@pytest.mark.wild("standard: Exif 2.32, tag Orientation", "a mask drawn on a picture that Exif turns by 180 degrees")
@pytest.mark.parametrize("background", [90, None])
def test_flat_masks_turned_by_180_degrees_are_found_also_on_a_plain_background(
    tmp_path: Path, background: int | None
) -> None:
    rng = np.random.default_rng(0)
    for sub in ("images", "masks"):
        (tmp_path / "in" / sub).mkdir(parents=True)
    for number in range(4):
        image = np.full((40, 60, 3), 90, np.uint8) if background else rng.integers(80, 99, (40, 60, 3)).astype(np.uint8)
        image[5:15, 5 + number : 25] = (200, 60, 40)
        mask = np.where(image[..., 0] == 200, 255, 0).astype(np.uint8)
        Image.fromarray(image).save(tmp_path / "in" / "images" / f"f{number}.png")
        turned = mask[::-1, ::-1] if number == 1 else mask
        Image.fromarray(turned).save(tmp_path / "in" / "masks" / f"f{number}.png")
    found = look(registered(tmp_path / "in", tmp_path / "set"), workers=1)
    own = [s.name for s in found.suspicious if kinds(found, s.name)]
    assert own == ["f1"]
    assert "mirrored left to right and upside down, its contour would follow" in found.suspicious[0].reasons[0].what


@pytest.mark.wild("standard: NIfTI-1, qform and sform", "a volume's mask that is turned by 180 degrees")
def test_volumes_masks_turned_by_180_degrees_are_found(tmp_path: Path) -> None:
    turned = np.flip(make_trunk(1)[1], (0, 1))
    found = look(registered(write_trunks(tmp_path / "in", {1: turned}, count=3), tmp_path / "set", LABELS), workers=1)
    assert found.suspicious[0].name == "case_01"
    assert "mirrored left to right and front to back, its contour would follow" in " ".join(
        r.what for r in found.suspicious[0].reasons
    )


def test_right_masks_are_not_suspected_even_in_small_datasets(tmp_path: Path) -> None:
    moved = {1: np.flip(make_trunk(1)[1], 1)}
    folder = registered(write_trunks(tmp_path / "in", moved, count=3), tmp_path / "set", LABELS)
    found = look(folder, workers=1)
    assert kinds(found, "case_01")
    assert not kinds(found, "case_00") | kinds(found, "case_02")
    assert len(found.shown) == 3


def test_masks_that_are_all_mirrored_give_one_remark(tmp_path: Path) -> None:
    moved = {number: np.flip(make_trunk(number)[1], 0) for number in range(9)}
    folder = registered(write_trunks(tmp_path / "in", moved, count=9), tmp_path / "set", LABELS)
    remarks = " ".join(look(folder, workers=1).remarks)
    assert "In 9 of 9 cases the label lies better on its image when it is mirrored left to right." in remarks
    assert "In 9 of 9 cases left kidney lies to the right of right kidney." in remarks


def test_small_missing_and_large_labels_are_found_without_reading_pixels(tmp_path: Path) -> None:
    tiny, missing, large = (make_trunk(number)[1] for number in (0, 1, 2))
    tiny = np.where(np.cumsum(tiny.ravel() > 0).reshape(tiny.shape) <= 5, tiny, 0)
    missing = np.where(missing == 1, 0, missing)
    large = np.where(ndimage.binary_dilation(large == 2, iterations=7), 2, large)
    changed = {0: tiny, 1: missing, 2: large}
    folder = registered(write_trunks(tmp_path / "in", changed, count=24), tmp_path / "set", LABELS)
    found = look(folder, examine=1, workers=1)
    assert found.examined == 1
    assert "very few voxels" in kinds(found, "case_00")
    assert "class is missing" in kinds(found, "case_01")
    assert "label of an unusual size" in kinds(found, "case_02")


def test_a_deleted_mask_is_shown_as_missing(tmp_path: Path) -> None:
    folder = registered(write_trunks(tmp_path / "in", count=3), tmp_path / "set", LABELS)
    (tmp_path / "in" / "labels" / "case_01.nii.gz").write_bytes(b"")
    found = look(folder, workers=1)
    assert kinds(found, found.suspicious[0].name) == {"unreadable"}
    assert found.suspicious[0].name == "case_01"


def test_flat_images_with_numbered_objects(tmp_path: Path) -> None:
    source = make_nuclei(tmp_path / "in")
    path = source / "masks" / "f4.png"
    Image.fromarray(np.asarray(Image.open(path))[::-1]).save(path)
    found = look(registered(source, tmp_path / "set"), workers=1)
    assert found.suspicious[0].name == "f4"
    assert "mask lies better elsewhere" in kinds(found, "f4")
    assert "mirrored upside down" in found.suspicious[0].reasons[0].what


def test_unsuspicious_cases_are_spread_over_classes_reproducibly(tmp_path: Path) -> None:
    source = make_textures(tmp_path / "in", ["benign", "malign", "other"], each=10)
    folder = registered(source, tmp_path / "set")
    found = look(folder, most=6, workers=1)
    unsuspicious = [seen for seen in found.shown if not seen.suspicious]
    assert len(found.shown) == 6
    assert found.examined == found.masked == 0
    assert [s.name for s in found.shown] == [s.name for s in look(folder, most=6, workers=1).shown]
    assert len({seen.entry.label for seen in unsuspicious}) == min(3, len(unsuspicious))


def test_some_cases_are_shown_for_comparison(tmp_path: Path) -> None:
    moved = {number: np.flip(make_trunk(number)[1], 0) for number in range(5)}
    folder = registered(write_trunks(tmp_path / "in", moved, count=16), tmp_path / "set", LABELS)
    found = look(folder, most=6, workers=1)
    assert len(found.suspicious) >= 5
    assert len(found.shown) == 6
    assert sum(not seen.suspicious for seen in found.shown) == 1


def test_a_dataset_without_a_readable_case_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text('{"training": [{"image": "a.nii", "label": "b.nii"}]}')
    with pytest.raises(DataError, match="none of its 1 cases can be read"):
        look(tmp_path)


def test_a_constant_image_and_an_empty_mask_are_no_error() -> None:
    image = LoadedImage(np.zeros((8, 8, 8, 1)), np.eye(4), "float64")
    label = LoadedImage(np.zeros((8, 8, 8, 1), np.uint8), np.eye(4), "uint8")
    assert place("a", image, label).problem.startswith("its label is empty: no voxel of any class")
    label.values[3:5, 3:5, 3:5] = 1
    assert place("a", image, label).fit == {}


def test_mirrored_real_masks_come_first(tmp_path: Path, real_data: Path) -> None:
    source = tmp_path / "in"
    for sub in ("images", "labels"):
        (source / sub).mkdir(parents=True)
    names = sorted(path.name for path in (real_data / "hippocampus" / "imagesTr").glob("hippo*"))[:40]
    mirrored = {names[4]: 0, names[11]: 1, names[23]: 2, names[30]: 0}
    for name in names:
        (source / "images" / name).symlink_to(real_data / "hippocampus" / "imagesTr" / name)
        label = nib.load(real_data / "hippocampus" / "labelsTr" / name)
        values = np.asarray(label.dataobj)
        if name in mirrored:
            values = np.flip(values, mirrored[name])
        nib.save(nib.Nifti1Image(values, label.affine), source / "labels" / name)
    found = look(registered(source, tmp_path / "set"), workers=1)
    first = {seen.name for seen in found.suspicious[:6]}
    assert {name.partition(".")[0] for name in mirrored} <= first
