"""Reading one image file, whatever its format."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from oncofed.data.images import read_image
from oncofed.errors import DataError

VALUES = np.arange(-60, 60, dtype=np.int16).reshape(4, 5, 6)
AFFINE = np.array([[0, -2.0, 0, 5], [1.5, 0, 0, -7], [0, 0, 3.0, 9], [0, 0, 0, 1]])


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_every_kind_of_nifti_reads_as_nibabel_reads_it(kind: type, order: str, suffix: str, tmp_path: Path) -> None:
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


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    content = bytearray(gzip.compress(nib.Nifti1Image(VALUES, AFFINE).to_bytes()))
    content[-6] ^= 1  # in the checksum of what is packed
    path.write_bytes(content)

    with pytest.raises(DataError, match="cannot be read as NIfTI"):
        read_image(path)


def test_text_in_a_header_is_named_and_not_shown(tmp_path: Path) -> None:
    image = nib.Nifti1Image(VALUES, AFFINE)
    image.header["descrip"] = b"Doe, Jane"
    image.header["db_name"] = b"1234567"
    nib.save(image, tmp_path / "a.nii")

    assert read_image(tmp_path / "a.nii").texts == ("descrip", "db_name")
