"""Written images hold the real values, within float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from dicoms import make_series, make_xray, volume
from oncofed.data.cases import read_cases
from oncofed.data.images import read_image
from oncofed.data.label_mapping import Supervision
from oncofed.data.manifest import Manifest
from oncofed.data.mixtures import mixtures
from oncofed.data.profile import make_profile
from oncofed.data.register import RegisterOptions, register
from oncofed.data.spec import SplitSpec
from oncofed.report.profile import write_profile_page

REPORTS = "cornerstone3D#1925, ImageMagick#477, ImageMagick#485"


def read(tmp_path: Path, **settings: Any) -> Manifest:
    return register(RegisterOptions(tmp_path / "in", "demo", tmp_path / "out", workers=1, **settings))


def values_of(tmp_path: Path, manifest: Manifest, number: int = 0) -> np.ndarray:
    """Return what training reads of a flat image, (row, column)."""
    return read_image(tmp_path / "out" / manifest.entries[number].images[0]).values[..., 0].T


@pytest.mark.wild(REPORTS, "real values that are fractions, large or negative")
@settings(max_examples=30, deadline=None)
@given(
    slope=st.sampled_from(["0.001", "0.0002442", "1e-5", "0.5", "1", "40", "1e4", "-10", "-0.003", "2.5"]),
    intercept=st.sampled_from(["0", "-1024", "0.25", "1e3", "-0.0002442", "-3"]),
    bits=st.sampled_from([8, 12, 16]),
    photometric=st.sampled_from(["MONOCHROME1", "MONOCHROME2"]),
)
def test_flat_images_keep_their_real_values(
    tmp_path_factory: pytest.TempPathFactory, slope: str, intercept: str, bits: int, photometric: str
) -> None:
    tmp_path = tmp_path_factory.mktemp("values")
    stored = np.random.default_rng(1).integers(0, 1 << bits, (12, 20)).astype(np.uint16)
    stored[0, :2] = 0, (1 << bits) - 1
    meant = {"RescaleSlope": slope, "RescaleIntercept": intercept, "BitsStored": bits, "HighBit": bits - 1}
    make_xray(tmp_path / "in", stored, PhotometricInterpretation=photometric, **meant)
    found = values_of(tmp_path, read(tmp_path))
    shown = stored.astype(float) if photometric == "MONOCHROME2" else (1 << bits) - 1 - stored.astype(float)
    expected = shown * float(slope) + float(intercept)
    np.testing.assert_allclose(found, expected, rtol=2**-23, atol=2**-23 * np.abs(expected).max())


@pytest.mark.wild(REPORTS, "a flat image whose slope was mended: the file of another format stays behind")
def test_a_format_change_leaves_one_readable_file(tmp_path: Path) -> None:
    stored = np.arange(240, dtype=np.uint16).reshape(12, 20)
    for slope, suffix in ((1, ".png"), (0.5, ".tif"), (1, ".png")):
        make_xray(tmp_path / "in", stored, RescaleSlope=slope, RescaleIntercept=0, SOPInstanceUID="1.2.3")
        make_xray(tmp_path / "in", stored, "y.dcm", RescaleSlope=slope, RescaleIntercept=0, PatientID="2")
        (tmp_path / "t.csv").write_text("patient,label\nMRN-0002,a\n2,b\n")
        manifest = read(tmp_path, table=tmp_path / "t.csv", task="classification")
        assert {path.suffix for path in (tmp_path / "out" / "images").iterdir()} == {suffix}
        assert len(list((tmp_path / "out" / "images").iterdir())) == 2
        np.testing.assert_array_equal(values_of(tmp_path, manifest), stored * slope)
        again = read(tmp_path, table=tmp_path / "t.csv", task="classification")
        assert again.entries == manifest.entries
    cases = read_cases(tmp_path / "out", SplitSpec(), 0, Supervision("class"))
    assert {case.read_image().values.dtype.kind for case in cases} == {"u"}


@pytest.mark.wild("dwv#222, vtk-dicom#173", "padding that is the brightest of an inverted image")
@pytest.mark.parametrize(
    ("photometric", "padding", "limit"),
    [("MONOCHROME1", 0, None), ("MONOCHROME1", 0, 5), ("MONOCHROME2", 4095, None), ("MONOCHROME2", 4000, 4095)],
)
def test_padding_is_never_bright(tmp_path: Path, photometric: str, padding: int, limit: int | None) -> None:
    stored = np.full((20, 30), 1000, np.uint16)
    stored[5:15, 8:22] = 2500
    stored[:, :4] = padding
    if limit is not None:
        stored[:, 2:4] = limit
    more = {} if limit is None else {"PixelPaddingRangeLimit": limit}
    bits = {"BitsStored": 12, "HighBit": 11, "PixelPaddingValue": padding}
    make_xray(tmp_path / "in", stored, PhotometricInterpretation=photometric, **bits, **more)
    manifest = read(tmp_path)
    found = values_of(tmp_path, manifest)
    dark = {"MONOCHROME1": 4095 - 2500, "MONOCHROME2": 1000}[photometric]
    assert set(np.unique(found[:, :4])) == {dark}
    expected = stored.astype(int) if photometric == "MONOCHROME2" else 4095 - stored.astype(int)
    np.testing.assert_array_equal(found[:, 4:], expected[:, 4:])
    assert any("PixelPaddingValue: 13% of it is padding" in note for note in manifest.entries[0].notes)


@pytest.mark.wild("dwv#222", "padding below tissue, as in CT, is as it was")
def test_dark_padding_is_left_alone(tmp_path: Path) -> None:
    values = volume()
    values[:2] = -2000

    def pad(number: int, dataset: Dataset) -> None:
        dataset.add_new("PixelPaddingValue", "SS", -2000)

    make_series(tmp_path / "in", values, modality="CT", change=pad)
    (entry,) = read(tmp_path).entries
    np.testing.assert_array_equal(np.asarray(nib.load(tmp_path / "out" / entry.images[0]).dataobj), values)


def _philips(number: int, dataset: Dataset, scale: float, block: int = 0x10, slope: float | None = 2.0) -> None:
    dataset.Manufacturer = "Philips Medical Systems"
    dataset.add_new((0x2005, block), "LO", "Philips MR Imaging DD 001")
    dataset.add_new((0x2005, block << 8 | 0x0E), "FL", scale)
    if slope is not None:
        dataset.RescaleSlope, dataset.RescaleIntercept = slope, -6


@pytest.mark.wild(
    "standard: Chenevert et al., Translational Oncology 7 (2014) 65", "Philips MR whose slices are scaled differently"
)
@pytest.mark.parametrize("block", [0x10, 0x12])
def test_philips_private_scaling_is_read(tmp_path: Path, block: int) -> None:
    make_series(tmp_path / "in", change=lambda k, d: _philips(k, d, 0.01 * (k + 1), block))
    (entry,) = read(tmp_path).entries
    found = np.asarray(nib.load(tmp_path / "out" / entry.images[0]).dataobj)
    scales = np.array([0.01 * (k + 1) for k in range(8)], np.float32).astype(float)
    np.testing.assert_allclose(found, (volume() * 2.0 - 6) / (2.0 * scales), rtol=1e-6)
    assert "values as measured: Philips' private ScaleSlope was read" in entry.notes


@pytest.mark.wild(
    "standard: Chenevert et al., Translational Oncology 7 (2014) 65", "Philips scaling that cannot be read"
)
@pytest.mark.parametrize(
    ("scale", "slope", "message"),
    [
        (lambda k: 0.0 if k == 3 else 1.0, 2.0, "ScaleSlope of 0, expected a positive number"),
        (lambda k: 0.01 * (k + 1), None, "no RescaleSlope to read it by"),
    ],
)
def test_philips_scaling_that_cannot_be_read_is_refused(tmp_path: Path, scale: Any, slope: Any, message: str) -> None:
    make_series(tmp_path / "in", change=lambda k, d: _philips(k, d, scale(k), slope=slope))
    (bad,) = read(tmp_path).quarantine
    assert message in bad.reason


@pytest.mark.wild("z-rad#140, MOOSE#230, Slicer-PETDICOMExtension#4", "PET in several units in one folder")
def test_units_of_pet_are_kept_and_compared(tmp_path: Path) -> None:
    for number, units in enumerate(("BQML", "BQML", "CNTS", "GML")):
        make_series(
            tmp_path / "in" / str(number),
            volume(seed=number),
            patient=f"P{number}",
            change=lambda k, d, u=units: (setattr(d, "Modality", "PT"), setattr(d, "Units", u)),
        )
    manifest = read(tmp_path)
    assert sorted(note for entry in manifest.entries for note in entry.notes) == [
        "units BQML",
        "units BQML",
        "units CNTS",
        "units GML",
    ]
    ((kind, what),) = mixtures(manifest)
    assert kind == "mixed units"
    assert "2 in BQML, 1 in CNTS, 1 in GML" in what


@pytest.mark.wild("standard: PS3.3 C.8.11.7.1.1", "raw mammograms beside processed ones")
def test_raw_next_to_processed_images_is_reported(tmp_path: Path) -> None:
    for number, intent in enumerate(("FOR PROCESSING", "FOR PRESENTATION")):
        values = volume(seed=number)[..., 2].astype(np.uint16)
        make_xray(tmp_path / "in", values, f"{number}.dcm", Modality="MG", PresentationIntentType=intent)
    manifest = read(tmp_path)
    ((kind, what),) = mixtures(manifest)
    assert kind == "raw images"
    assert "1 MG images are raw (FOR PROCESSING), 1 are processed" in what


def test_a_page_shows_flat_images_of_fractions(tmp_path: Path) -> None:
    stored = np.arange(600, dtype=np.uint16).reshape(20, 30)
    make_xray(tmp_path / "in", stored, RescaleSlope="0.001", RescaleIntercept="-0.25")
    read(tmp_path)
    profile, manifest = make_profile(tmp_path / "out")
    page = write_profile_page(profile, manifest, tmp_path / "out", tmp_path / "page.html")
    assert page.read_text().count("data:image/png") >= 1
    assert pydicom.dcmread(next((tmp_path / "in").iterdir())).RescaleSlope == 0.001
