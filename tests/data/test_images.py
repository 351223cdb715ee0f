"""Reading one image file, whatever its format."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from oncofed.data.images import read_image
from oncofed.errors import DataError

VALUES = np.arange(-60, 60, dtype=np.int16).reshape(4, 5, 6)
AFFINE = np.array([[0, -2.0, 0, 5], [1.5, 0, 0, -7], [0, 0, 3.0, 9], [0, 0, 0, 1]])


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_every_kind_of_nifti_reads_as_with_nibabel(kind: type, order: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    header = kind.header_class(endianness=order)
    header.set_data_dtype(np.int16)
    image = kind(VALUES, AFFINE, header)
    image.header.set_slope_inter(0.5, 3)
    nib.save(image, path)

    read = read_image(path)

    expected = nib.load(path)
    assert np.array_equal(read.values[..., 0], expected.get_fdata())
    assert np.allclose(read.affine, expected.affine)
    assert read.texts == ()


def test_gzip_of_several_members_reads_as_one(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    plain = nib.Nifti1Image(VALUES, AFFINE).to_bytes()
    path.write_bytes(gzip.compress(plain[:400]) + gzip.compress(plain[400:]))

    assert np.array_equal(read_image(path).values[..., 0], VALUES)


def test_a_flipped_bit_is_detected(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    content = bytearray(gzip.compress(nib.Nifti1Image(VALUES, AFFINE).to_bytes()))
    content[-6] ^= 1  # in gzip's checksum of the content
    path.write_bytes(content)

    with pytest.raises(DataError, match="cannot be read as NIfTI"):
        read_image(path)


def test_text_in_a_header_is_named_and_not_shown(tmp_path: Path) -> None:
    image = nib.Nifti1Image(VALUES, AFFINE)
    image.header["descrip"] = b"Doe, Jane"
    image.header["db_name"] = b"1234567"
    nib.save(image, tmp_path / "a.nii")

    assert read_image(tmp_path / "a.nii").texts == ("descrip", "db_name")


def _nrrd(**changes: str) -> bytes:
    header = {
        "type": "short",
        "dimension": "3",
        "space": "left-posterior-superior",
        "sizes": "4 5 6",
        "space directions": "(2,0,0) (0,1,0) (0,0,1)",
        "endian": "little",
        "encoding": "raw",
    }
    lines = [f"{name}: {value}" for name, value in (header | changes).items()]
    return "\n".join(["NRRD0004", *lines, "", ""]).encode() + VALUES.tobytes()


def _meta(**changes: str) -> bytes:
    header = {
        "ObjectType": "Image",
        "NDims": "3",
        "ElementSpacing": "2 1 1",
        "DimSize": "4 5 6",
        "ElementType": "MET_SHORT",
    }
    lines = [f"{name} = {value}" for name, value in (header | changes | {"ElementDataFile": "LOCAL"}).items() if value]
    return "\n".join([*lines, ""]).encode() + VALUES.tobytes()


@pytest.mark.parametrize(("suffix", "content"), [(".nrrd", _nrrd()), (".mha", _meta())], ids=["nrrd", "mha"])
def test_itks_formats_read_with_their_spacing(suffix: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    read = read_image(path)
    assert np.array_equal(read.values[..., 0], sitk.GetArrayFromImage(sitk.ReadImage(str(path))).T)
    assert read.spacing == (2.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("suffix", "content", "said"),
    [
        (".nrrd", _nrrd(**{"space directions": "none none none"}), "its header has no spacing"),
        (".mha", _meta(ElementSpacing=""), "its header has no spacing"),
        (
            ".nrrd",
            _nrrd(sizes="4 5 7"),
            "cannot be read as NRRD: it ends early: it holds 240 of 280 bytes of voxels",
        ),
        (".nrrd", _nrrd(type="quux"), "cannot be read as NRRD: its header says type 'quux', which does not exist"),
        (".mha", _meta(DimSize="4 5 7"), "cannot be read as MetaImage: it ends early: it holds 240 of 280 bytes"),
        (".mha", _meta(ElementType="MET_QUUX"), "cannot be read as MetaImage: its header says type 'MET_QUUX', which"),
        (".mha", _meta(ElementNumberOfChannels="100000000"), "GiB of pixels, more than half of this machine's memory"),
    ],
    ids=["nrrd spacing", "mha spacing", "nrrd size", "nrrd type", "mha size", "mha type", "mha channels"],
)
def test_faults_of_itk_formats_are_described_briefly(suffix: str, content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    with pytest.raises(DataError, match=said) as error:
        read_image(path)
    assert str(tmp_path) not in str(error.value)


def test_a_slice_needs_no_thickness(tmp_path: Path) -> None:
    image = nib.Nifti1Image(VALUES[..., :1], None)
    content = bytearray(image.to_bytes())
    content[88:92], content[252:256] = bytes(4), bytes(4)  # pixdim[3]; qform_code, sform_code
    (tmp_path / "a.nii").write_bytes(content)
    assert read_image(tmp_path / "a.nii").shape == (4, 5, 1)
