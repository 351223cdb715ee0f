"""NRRD and MetaImage: units, compression, detached files, errors."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from oncofed.data.images import read_image
from oncofed.errors import DataError

VALUES = np.arange(-60, 60, dtype=np.int16).reshape(4, 5, 6)


def _nrrd(*more: str, data: bytes = VALUES.tobytes(), **changes: str) -> bytes:
    header = {
        "type": "short",
        "dimension": "3",
        "space": "left-posterior-superior",
        "sizes": "4 5 6",
        "space directions": "(2,0,0) (0,1,0) (0,0,1)",
        "space origin": "(10,20,30)",
        "endian": "little",
        "encoding": "raw",
    }
    lines = [*(f"{name}: {value}" for name, value in (header | changes).items()), *more]
    return "\n".join(["NRRD0004", *lines, "", ""]).encode() + data


@pytest.mark.wild("zarrnii#180, standard: NRRD, space units", "NRRD in microns or metres: sizes wrong by a thousand")
@pytest.mark.parametrize(("unit", "factor"), [("mm", 1), ("um", 1e-3), ("microns", 1e-3), ("m", 1e3), ("???", 1)])
def test_nrrds_units_become_millimetres(unit: str, factor: float, tmp_path: Path) -> None:
    path = tmp_path / "a.nrrd"
    path.write_bytes(_nrrd(f'space units: "{unit}" "{unit}" "{unit}"'))
    read = read_image(path)
    assert read.spacing == pytest.approx((2 * factor, factor, factor))
    assert read.affine[:3, 3] == pytest.approx((-10 * factor, -20 * factor, 30 * factor))
    assert bool(read.notes) == (factor != 1)


@pytest.mark.wild("nibabel#966", "NRRD compressed as a whole")
@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_a_file_that_is_compressed_as_a_whole_is_unpacked(suffix: str, tmp_path: Path) -> None:
    meta = "ObjectType = Image\nNDims = 3\nElementSpacing = 2 1 1\nDimSize = 4 5 6\nElementType = MET_SHORT\n"
    content = _nrrd() if suffix == ".nrrd" else f"{meta}ElementDataFile = LOCAL\n".encode() + VALUES.tobytes()
    (tmp_path / f"a{suffix}").write_bytes(gzip.compress(content))
    (tmp_path / f"b{suffix}").write_bytes(content)
    one, two = (read_image(tmp_path / f"{name}{suffix}") for name in "ab")
    assert np.array_equal(one.values, two.values)
    assert np.array_equal(one.affine, two.affine)
    (tmp_path / f"a{suffix}").write_bytes(gzip.compress(content)[:-20])
    with pytest.raises(DataError, match="compressed data that are damaged or end early"):
        read_image(tmp_path / f"a{suffix}")


@pytest.mark.wild("openslide#656", "a broken NRRD or MetaImage: the last library's words")
@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.nhdr", _nrrd("data file: b.raw", data=b""), "its data file b.raw is not beside it"),
        ("a.nrrd", b"\x89PNG" + bytes(90), "does not begin with an NRRD header; it looks like a PNG image"),
        ("a.mha", b"\x89PNG" + bytes(90), "no header of a MetaImage"),
        ("a.nrrd", _nrrd(sizes="4 5 x"), "does not say how many voxels it has"),
        (
            "a.nrrd",
            _nrrd(encoding="gzip", data=gzip.compress(VALUES.tobytes())[:60]),
            "its compressed data are damaged",
        ),
        (
            "a.nrrd",
            _nrrd(**{"space directions": "(1,0,0) (1,0,0) (0,0,1)"}),
            "axes that do not point in different|damaged",
        ),
    ],
)
def test_faults_are_described_in_words(name: str, content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said) as error:
        read_image(tmp_path / name)
    assert not any(word in str(error.value) for word in ("Error", "0x", "itk", str(tmp_path)))
