"""NIfTI: types, units, and errors in words."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

from oncofed.data.images import read_image
from oncofed.errors import DataError

VALUES = np.arange(-60, 60, dtype=np.int16).reshape(4, 5, 6)
_PER_MM = {"mm": 1.0, "micron": 1000.0, "meter": 0.001, "unknown": 1.0}


def _in_unit(unit: str, sizes: tuple[float, float, float], kind: type, coded: str) -> nib.Nifti1Image:
    affine = np.diag([*sizes, 1.0])
    affine[:3, 3] = (-7, 11, 3)
    affine[:3] *= _PER_MM[unit]
    image = kind(VALUES, affine)
    image.header.set_xyzt_units(unit)
    image.set_sform(affine, 1 if "s" in coded else 0)
    image.set_qform(affine, 1 if "q" in coded else 0)
    return image


@pytest.mark.wild(
    "ANTs#1114, ITK#4595, fmriprep#786, zarrnii#180", "NIfTI in microns or metres: sizes wrong by a thousand"
)
@pytest.mark.parametrize("coded", ["sq", "s", "q"])
@pytest.mark.parametrize("unit", _PER_MM)
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_lengths_become_millimetres_as_itk_reads_them(unit: str, kind: type, coded: str, tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    nib.save(_in_unit(unit, (0.5, 0.4, 1.0), kind, coded), path)
    read = read_image(path)
    assert read.spacing == pytest.approx((0.5, 0.4, 1.0), rel=1e-6)
    assert read.affine[:3, 3] == pytest.approx((-7, 11, 3), rel=1e-6)
    if kind is nib.Nifti1Image:  # ITK does not read the second version
        itk = sitk.ReadImage(str(path))
        assert read.spacing == pytest.approx(itk.GetSpacing(), rel=1e-5)
        assert (np.array(itk.GetOrigin()) * (-1, -1, 1)) == pytest.approx((-7, 11, 3), rel=1e-5)
    assert ["converted to millimetres" in note for note in read.notes] == [True] * (unit in {"micron", "meter"})


@pytest.mark.wild("zarrnii#180", "voxels of microns taken for an affine that cannot be inverted")
@settings(max_examples=20, deadline=None)
@given(exponent=st.floats(-6, 2), unit=st.sampled_from(sorted(_PER_MM)))
def test_voxels_of_any_size_can_be_used(exponent: float, unit: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("n") / "a.nii"
    size = 10.0**exponent
    nib.save(_in_unit(unit, (size, size, 2 * size), nib.Nifti1Image, "s"), path)
    assert read_image(path).spacing == pytest.approx((size, size, 2 * size), rel=1e-5)


@pytest.mark.wild("standard: nifti1.h", "an sform whose axes do not span space")
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e3])
def test_coplanar_axes_are_refused_at_any_length(size: float, tmp_path: Path) -> None:
    flat = np.array([[1, 0, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1 / size]]) * size
    image = nib.Nifti1Image(VALUES, np.eye(4))
    image.header.set_sform(flat, 1)
    (tmp_path / "a.nii").write_bytes(_with_header(image, "sform_code", 1))
    with pytest.raises(DataError, match="affine that is not invertible"):
        read_image(tmp_path / "a.nii")


def _with_header(image: nib.Nifti1Image, name: str, value: object) -> bytes:
    content = bytearray(nib.Nifti1Image(image.dataobj, None, image.header).to_bytes())
    header = image.header.copy()
    header[name] = value
    header["vox_offset"], header["magic"] = 352, b"n+1"
    content[:348] = header.binaryblock
    return bytes(content)


@pytest.mark.wild("spinalcordtoolbox#2106, LST-AI#45, ANTs#500", "sform and qform that place the image differently")
@pytest.mark.parametrize(
    ("change", "said"), [((1, 1, 1, 4), "by 4 voxels"), ((-1, 1, 1, 0), "mirror image"), ((1, 1, 1, 1e-4), None)]
)
def test_contradicting_sform_and_qform_are_noted(change: tuple[float, ...], said: str | None, tmp_path: Path) -> None:
    image = nib.Nifti1Image(VALUES, None)
    image.set_sform(np.eye(4), 1)
    other = np.diag([*change[:3], 1.0])
    other[0, 3] = change[3]
    image.set_qform(other, 1)
    nib.save(image, tmp_path / "a.nii")
    read = read_image(tmp_path / "a.nii")
    assert np.array_equal(read.affine, np.eye(4))
    assert [note for note in read.notes if said and said in note] if said else not read.notes


def test_a_header_without_a_place_is_noted(tmp_path: Path) -> None:
    image = nib.Nifti1Image(VALUES, None)
    image.header["sform_code"] = image.header["qform_code"] = 0
    nib.save(image, tmp_path / "a.nii")
    assert "neither sform nor qform" in " ".join(read_image(tmp_path / "a.nii").notes)


@pytest.mark.wild("nibabel#966, nibabel#898, kits19#39", "gzip by the name of a NIfTI instead of by its bytes")
@pytest.mark.parametrize("layers", range(4))
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_compression_is_recognised_by_the_bytes(layers: int, name: str, tmp_path: Path) -> None:
    content = nib.Nifti1Image(VALUES, np.eye(4)).to_bytes()
    for _ in range(layers):
        content = gzip.compress(content)
    (tmp_path / name).write_bytes(content)
    assert np.array_equal(read_image(tmp_path / name).values[..., 0], VALUES)


def _nifti() -> bytearray:
    return bytearray(nib.Nifti1Image(VALUES, np.eye(4)).to_bytes())


def _changed(start: int, content: bytes) -> bytes:
    image = _nifti()
    image[start : start + len(content)] = content
    return bytes(image)


@pytest.mark.wild("nibabel#966, nibabel#898", "a broken NIfTI is refused with a number or bytes of a library")
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (bytes(_nifti()[:200]), "ends after 200 bytes, inside its header"),
        (bytes(_nifti()[:-40]), "it ends early: it holds 200 of 240 bytes of voxels"),
        (gzip.compress(bytes(_nifti()[:-40])), "it ends early: it holds 200 of 240 bytes of voxels"),
        (gzip.compress(bytes(_nifti()))[:-30], "its compressed data end early"),
        (gzip.compress(b"\x89PNG" + bytes(600)), "unpacked it looks like a PNG image"),
        (b"BZh9" + bytes(600), "it looks like bzip2 data"),
        (b"PK\x03\x04" + bytes(600), "it looks like a zip archive"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (_changed(70, b"\x39\x30"), "its header says data type 12345, which does not exist"),
        (_changed(344, b"\0\0\0\0"), "its header is of Analyze 7.5"),
        (_changed(344, b"ni1\0"), r"one half of a pair \.hdr and \.img"),
        (nib.Nifti1Image(VALUES.astype(np.complex64), np.eye(4)).to_bytes(), "holds complex numbers, expected one"),
        (
            nib.Nifti1Image(np.zeros((4, 5, 6), [("R", "u1"), ("G", "u1"), ("B", "u1")]), np.eye(4)).to_bytes(),
            "holds colours, expected one number a voxel",
        ),
    ],
)
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_faults_are_described_in_words(content: bytes, said: str, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said) as error:
        read_image(tmp_path / name)
    assert not any(word in str(error.value) for word in ("Error", "0x", "b'", "dtype", str(tmp_path)))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_bytes_are_read_or_refused(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    content = _nifti()
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("n") / "a.nii"
    path.write_bytes(bytes(content[: data.draw(st.integers(0, len(content)))]))
    said = ""
    try:
        read_image(path)
    except DataError as error:
        said = str(error)
    assert "Error" not in said
