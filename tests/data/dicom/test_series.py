"""DICOM against an independent reader, and faulty series."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset

from dicoms import AXIAL, CORONAL, OBLIQUE, SAGITTAL, make_series, make_xray, slice_header, volume
from oncofed.data.dicom.series import group_series
from oncofed.data.manifest import Entry, Manifest
from oncofed.data.quality import loose_slices
from oncofed.data.register import RegisterOptions, register
from oncofed.errors import DataError


def read(source: Path, tmp_path: Path) -> Manifest:
    return register(RegisterOptions(source, "demo", tmp_path / "out", workers=1))


def reference(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return SimpleITK's reading of a folder with one series.

    (x, y, z), and its affine in RAS+.
    """
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image).transpose(2, 1, 0), np.diag([-1.0, -1, 1, 1]) @ affine


def require_equal_in_space(entry: Entry, out: Path, values: np.ndarray, affine: np.ndarray) -> None:
    """Require equal values at equal places, for any axes."""
    image = nib.load(out / entry.images[0])
    mine = np.asarray(image.dataobj)
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in values.shape])).reshape(3, -1)
    inside = np.random.default_rng(0).integers(0, np.array(values.shape)[:, None], (3, 200))
    points = np.concatenate([corners, inside], axis=1)
    world = affine[:3, :3] @ points + affine[:3, 3:]
    inverse = np.linalg.inv(image.affine)
    there = inverse[:3, :3] @ world + inverse[:3, 3:]
    nearest = np.rint(there).astype(int)
    off = np.linalg.norm(image.affine[:3, :3] @ (there - nearest), axis=0)
    assert off.max() < 1e-3, f"{off.max()} mm off"
    np.testing.assert_array_equal(mine[tuple(nearest)], values[tuple(points)])


@pytest.mark.parametrize(
    "orientation", [AXIAL, SAGITTAL, CORONAL, OBLIQUE], ids=["axial", "sagittal", "coronal", "oblique"]
)
def test_a_series_has_the_place_that_simpleitk_gives(tmp_path: Path, orientation: tuple[float, ...]) -> None:
    make_series(tmp_path / "in", orientation=orientation)
    manifest = read(tmp_path / "in", tmp_path)
    (entry,) = manifest.entries
    require_equal_in_space(entry, tmp_path / "out", *reference(tmp_path / "in"))
    np.testing.assert_allclose(entry.spacing, (0.8, 0.7, 2.5), atol=1e-4)
    assert (entry.modality, entry.vendor, entry.dtype, entry.shape) == ("MR", "ACME", "int16", [12, 16, 8])


def test_real_series_have_the_place_that_simpleitk_gives(real_data: Path, tmp_path: Path) -> None:
    manifest = read(real_data / "dicom", tmp_path)
    assert len(manifest.entries) == 3
    assert len({entry.patient for entry in manifest.entries}) == 1
    text = (tmp_path / "out" / "dataset.json").read_text()
    assert "Dumbledore" not in text
    assert "PGBM" not in text
    for entry in manifest.entries:
        folder = real_data / "dicom" / str(entry.source).split("/")[0]
        require_equal_in_space(entry, tmp_path / "out", *reference(folder))


def test_names_and_numbers_of_files_do_not_matter(tmp_path: Path) -> None:
    order = list(range(8))
    random.Random(3).shuffle(order)
    make_series(tmp_path / "in", names=lambda n: f"{'abc'[n % 3]}/{order[n]:x}")
    plain = make_series(tmp_path / "plain")
    assert len(plain) == 8
    (entry,) = read(tmp_path / "in", tmp_path).entries
    require_equal_in_space(entry, tmp_path / "out", *reference(tmp_path / "plain"))


def test_mixed_series_in_one_folder_are_separated(tmp_path: Path) -> None:
    for number in range(3):
        make_series(
            tmp_path / "in", volume(seed=number), patient=f"P{number % 2}", names=lambda n, k=number: f"{n}_{k}"
        )
    manifest = read(tmp_path / "in", tmp_path)
    assert len(manifest.entries) == 3
    assert len({entry.patient for entry in manifest.entries}) == 2


def test_rescaling_per_slice_is_applied(tmp_path: Path) -> None:
    def scale(number: int, dataset: Dataset) -> None:
        dataset.RescaleSlope, dataset.RescaleIntercept = 1.0 + number, -1000

    make_series(tmp_path / "in", modality="CT", change=scale)
    (entry,) = read(tmp_path / "in", tmp_path).entries
    values = np.asarray(nib.load(tmp_path / "out" / entry.images[0]).dataobj)
    expected = volume().astype(np.int32) * (1 + np.arange(8)) - 1000
    np.testing.assert_array_equal(values, expected)
    assert entry.dtype == "int16"


def test_fractions_of_a_unit_are_kept(tmp_path: Path) -> None:
    def scale(number: int, dataset: Dataset) -> None:
        dataset.RescaleSlope, dataset.RescaleIntercept = 0.25, 0.5

    make_series(tmp_path / "in", modality="CT", change=scale)
    (entry,) = read(tmp_path / "in", tmp_path).entries
    values = np.asarray(nib.load(tmp_path / "out" / entry.images[0]).dataobj)
    np.testing.assert_allclose(values, volume() * 0.25 + 0.5)
    assert entry.dtype == "float32"


def _missing(files: list[Path]) -> None:
    files[3].unlink()


def _uneven(files: list[Path]) -> None:
    _edit(files[4], lambda d: _shift(d, 0.9))


def _truncated(files: list[Path]) -> None:
    files[2].write_bytes(files[2].read_bytes()[:-150])


def _no_spacing(files: list[Path]) -> None:
    for file in files:
        _edit(file, lambda d: delattr(d, "PixelSpacing"))


def _same_place(files: list[Path]) -> None:
    position = pydicom.dcmread(files[1]).ImagePositionPatient
    _edit(files[2], lambda d: setattr(d, "ImagePositionPatient", position))


def _mosaic(files: list[Path]) -> None:
    for file in files:
        _edit(file, lambda d: setattr(d, "ImageType", ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]))


def _philips(files: list[Path]) -> None:
    for number, file in enumerate(files):

        def change(dataset: Dataset, number: int = number) -> None:
            dataset.Manufacturer = "Philips Medical Systems"
            block = dataset.private_block(0x2005, "Philips MR Imaging DD 001", create=True)
            block.add_new(0x0E, "FL", 0.01 * (number + 1))

        _edit(file, change)


def _shift(dataset: Dataset, by: float) -> None:
    x, y, z = dataset.ImagePositionPatient
    dataset.ImagePositionPatient = [x, y, float(z) + by]


def _edit(file: Path, change: Callable[[Dataset], object]) -> None:
    dataset = pydicom.dcmread(file)
    change(dataset)
    dataset.save_as(file)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_missing, "lacks 1 of 8 slices, the first at 17.5 mm"),
        (_uneven, "has uneven spacing: 1.60 to 3.40 mm"),
        (_truncated, "its pixels cannot be read"),
        (_no_spacing, "has no PixelSpacing"),
        (_same_place, "has 1 of 8 slices at positions of others"),
        (_mosaic, "is a Siemens mosaic"),
        (_philips, "has Philips' private scaling that differs between slices"),
    ],
)
def test_each_fault_of_a_series_is_named_and_others_are_read(
    tmp_path: Path, damage: Callable[[list[Path]], None], message: str
) -> None:
    damage(make_series(tmp_path / "in" / "bad"))
    make_series(tmp_path / "in" / "good", volume(seed=5))
    manifest = read(tmp_path / "in", tmp_path)
    assert len(manifest.entries) == 1
    reasons = {bad.reason for bad in manifest.quarantine}
    assert len(reasons) == 1, reasons
    assert message in next(iter(reasons))
    assert str(tmp_path) not in next(iter(reasons))


def test_slices_without_a_place_are_flat_images_with_a_note(tmp_path: Path) -> None:
    def lose(number: int, dataset: Dataset) -> None:
        del dataset.ImagePositionPatient

    make_series(tmp_path / "in" / "lost", change=lose)
    make_series(tmp_path / "in" / "whole")
    manifest = read(tmp_path / "in", tmp_path)
    flat = [entry for entry in manifest.entries if len(entry.shape or ()) == 2]
    assert len(flat) == volume().shape[2] == len(manifest.entries) - 1
    assert all("ImagePositionPatient" in " ".join(entry.notes) for entry in flat)
    (found,) = loose_slices(manifest)
    assert found.what.startswith(f"{len(flat)} slices (MR) have no place in space")


def test_copies_of_a_slice_are_reported_and_used_once(tmp_path: Path) -> None:
    files = make_series(tmp_path / "in")
    (tmp_path / "in" / "copy.dcm").write_bytes(files[2].read_bytes())
    (entry,) = read(tmp_path / "in", tmp_path).entries
    assert entry.shape == [12, 16, 8]
    assert "1 files are copies of others of the series" in entry.notes


def test_volumes_at_one_place_are_separated_by_headers(tmp_path: Path) -> None:
    for echo in (10, 80):
        make_series(
            tmp_path / "in",
            volume(seed=echo),
            series="1.2.3.4",
            change=lambda _, d, e=echo: setattr(d, "EchoTime", e),
            names=lambda n, e=echo: f"{e}-{n}",
        )
    manifest = read(tmp_path / "in", tmp_path)
    assert len(manifest.entries) == 2
    assert all("its series holds 2 volumes, which differ in EchoTime" in entry.notes for entry in manifest.entries)


def test_localizers_and_mixed_orientations(tmp_path: Path) -> None:
    for number, orientation in enumerate((AXIAL, SAGITTAL, CORONAL)):
        make_series(
            tmp_path / "in",
            volume((12, 16, 3)),
            orientation=orientation,
            series="1.2.3.5",
            change=lambda _, d: setattr(d, "ImageType", ["ORIGINAL", "PRIMARY", "LOCALIZER"]),
            names=lambda n, k=number: f"loc-{k}-{n}",
        )
        make_series(
            tmp_path / "in", orientation=orientation, series="1.2.3.6", names=lambda n, k=number: f"mix-{k}-{n}"
        )
    manifest = read(tmp_path / "in", tmp_path)
    assert manifest.left_out["localizer"] == 9
    assert len(manifest.entries) == 3
    assert all("its series holds 3 orientations or sizes" in entry.notes for entry in manifest.entries)


def test_a_tilted_gantry_is_straightened(tmp_path: Path) -> None:
    values = np.zeros((20, 40, 10), np.int16)
    spacing, tilt = (1.0, 1.0, 3.0), 1.0
    # In tilted slices, a bar along the body's axis moves further back in each slice.
    for number in range(10):
        values[8:12, 20 - number : 24 - number, number] = 1000
    make_series(tmp_path / "in", values, spacing=spacing, modality="CT", tilt=tilt)
    (entry,) = read(tmp_path / "in", tmp_path).entries
    assert any(note.startswith("gantry tilt of 18.4 degrees") for note in entry.notes)
    image = nib.load(tmp_path / "out" / entry.images[0])
    straight = np.asarray(image.dataobj)
    axes = image.affine[:3, :3] / np.linalg.norm(image.affine[:3, :3], axis=0)
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-6)
    bars = [np.flatnonzero(straight[10, :, n] > 500) for n in range(10)]
    assert all(np.array_equal(bar, bars[0]) for bar in bars)


@pytest.mark.parametrize(
    ("orientation", "note"),
    [
        (["L", "F"], None),
        (["F", "L"], "was stored sideways"),
        (["L", "H"], "was stored upside down"),
        (["R", "F"], "was stored mirrored"),
        (["H", "R"], "was stored sideways"),
    ],
)
def test_projections_are_upright_for_any_orientation(tmp_path: Path, orientation: list[str], note: str | None) -> None:
    upright = np.zeros((30, 20), np.uint16)
    upright[2:5, 12:18] = 900  # above, on the patient's left
    upright[20, 3] = 50
    stored = upright
    if orientation[0] in "FH":
        stored = stored.T
        across, down = orientation[1], orientation[0]
        stored = stored[:, ::-1] if down == "H" else stored
        stored = stored[::-1] if across == "R" else stored
    else:
        stored = stored[::-1] if orientation[1] == "H" else stored
        stored = stored[:, ::-1] if orientation[0] == "R" else stored
    make_xray(tmp_path / "in", stored, PatientOrientation=orientation, PixelSpacing=[0.1, 0.1])
    (entry,) = read(tmp_path / "in", tmp_path).entries
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out" / entry.images[0])), upright)
    assert (note is None) == (not entry.notes)
    assert note is None or any(text.startswith(note) for text in entry.notes)


def test_monochrome1_is_inverted(tmp_path: Path) -> None:
    values = np.arange(600, dtype=np.uint16).reshape(30, 20)
    make_xray(tmp_path / "in", values, PhotometricInterpretation="MONOCHROME1", BitsStored=12, HighBit=11)
    (entry,) = read(tmp_path / "in", tmp_path).entries
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out" / entry.images[0])), 4095 - values)
    assert entry.spacing == [0.1, 0.2]


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(2, 30),
    angles=st.tuples(st.floats(-80, 80), st.floats(-80, 80)),
    gap=st.floats(0.3, 9),
    seed=st.integers(0, 999),
)
def test_slices_are_sorted_along_their_normal(count: int, angles: tuple[float, float], gap: float, seed: int) -> None:
    a, b = np.deg2rad(angles)
    row = np.array([np.cos(a), np.sin(a), 0])
    column = np.array([-np.sin(a) * np.cos(b), np.cos(a) * np.cos(b), np.sin(b)])
    normal = np.cross(row, column)
    headers = []
    for number in range(count):
        position = np.array([5.0, -7, 30]) + normal * gap * number
        headers.append((f"{number}", slice_header(position, (*row, *column))))
    random.Random(seed).shuffle(headers)
    (stack,) = group_series(headers).stacks
    assert stack.reason is None
    assert [int(item.path) for item in stack.slices] == list(range(count))


@pytest.mark.parametrize(
    "name",
    [
        "MR_small.dcm",
        "MR_small_RLE.dcm",
        "MR_small_jp2klossless.dcm",
        "MR_small_jpeg_ls_lossless.dcm",
        "MR_small_bigendian.dcm",
        "MR_small_implicit.dcm",
        "CT_small.dcm",
        "JPEG2000.dcm",
        "693_J2KI.dcm",
        "image_dfl.dcm",
        "SC_rgb_jpeg_dcmtk.dcm",
        "SC_rgb_rle.dcm",
        "SC_rgb_jpeg_gdcm.dcm",
        "examples_palette.dcm",
    ],
)
def test_pydicoms_test_files_are_read_in_every_syntax(tmp_path: Path, name: str) -> None:
    file = _pydicom_file(name)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(file.read_bytes())
    manifest = read(tmp_path / "in", tmp_path)
    assert [bad.reason for bad in manifest.quarantine] == []
    (entry,) = manifest.entries
    original = pydicom.dcmread(file, force=True)
    assert entry.shape is not None
    assert entry.shape[:2] == [original.Columns, original.Rows]


def test_the_lossless_syntaxes_give_the_same_voxels(tmp_path: Path) -> None:
    names = ("MR_small.dcm", "MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm")
    volumes = []
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_bytes(_pydicom_file(name).read_bytes())
        (entry,) = register(RegisterOptions(tmp_path / name, "demo", tmp_path / "out" / name)).entries
        volumes.append(np.asarray(nib.load(tmp_path / "out" / name / entry.images[0]).dataobj))
    assert all(np.array_equal(other, volumes[0]) for other in volumes[1:])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("MR_truncated.dcm", "its pixels cannot be read"),
        ("meta_missing_tsyntax.dcm", ""),
        ("no_meta.dcm", "is not DICOM"),
        ("JPGExtended.dcm", "12-bit precision"),
    ],
)
def test_pydicoms_broken_files_are_set_aside(tmp_path: Path, name: str, message: str) -> None:
    make_series(tmp_path / "in" / "good")
    (tmp_path / "in" / name).write_bytes(_pydicom_file(name).read_bytes())
    manifest = read(tmp_path / "in", tmp_path)
    assert len(manifest.entries) == 1
    assert len(manifest.quarantine) + sum(manifest.left_out.values()) == 1
    assert all(message in bad.reason for bad in manifest.quarantine)


def test_a_dicomdir_alone_is_explained(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "DICOMDIR").write_bytes(_pydicom_file("DICOMDIR").read_bytes())
    with pytest.raises(DataError, match=r"no image found \(found 1 DICOMDIR"):
        read(tmp_path / "in", tmp_path)


def _pydicom_file(name: str) -> Path:
    found = get_testdata_file(name, download=False)
    if not isinstance(found, str):
        pytest.skip(f"this pydicom does not bring {name}")
    return Path(found)
