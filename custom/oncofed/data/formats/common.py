"""Code shared by the readers of all formats."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import psutil
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray

from oncofed.errors import DataError

Values = NDArray[Any]
Affine = NDArray[np.float64]

# From DICOM's and ITK's coordinates (left, posterior, superior) to NIfTI's (right, anterior, superior), and back.
LPS_TO_RAS: Affine = np.diag([-1.0, -1.0, 1.0, 1.0])

# Exif and TIFF tag 0x0112: 1 is upright; these swap rows and columns.
SWAPPED = (5, 6, 7, 8)

_MAGIC = (
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"II*\0", "a TIFF image"),
    (b"MM\0*", "a TIFF image"),
    (b"II+\0", "a TIFF image"),
    (b"MM\0+", "a TIFF image"),
    (b"GIF8", "a GIF image"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000 image"),
    (b"NRRD000", "an NRRD file"),
    (b"ObjectType", "a MetaImage file"),
    (b"\x5c\x01\0\0", "a NIfTI or Analyze file"),
    (b"\0\0\x01\x5c", "a NIfTI or Analyze file"),
    (b"PK\x03\x04", "a zip archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (b"Rar!", "a RAR archive"),
    (b"\x1f\x8b", "gzip data"),
    (b"BZh", "bzip2 data"),
    (b"\xfd7zXZ", "xz data"),
    (b"\x28\xb5\x2f\xfd", "Zstandard data"),
    (b"%PDF", "a PDF document"),
    (b"\x89HDF", "an HDF5 file"),
    (b"<!DOCTYPE", "a web page"),
    (b"<!doctype", "a web page"),
    (b"<html", "a web page"),
    (b"version https://git-lfs", "a Git LFS pointer (git lfs pull fetches the file)"),
    (b"Salted__", "an encrypted file"),
    (b"-----BEGIN PGP", "an encrypted file"),
    (b"age-encryption.org", "an encrypted file"),
)
# Least volume of a voxel, as a share of a box with its sides; below it axes coincide in float32.
_LEAST_VOLUME = 1e-5


@dataclass(frozen=True)
class LoadedImage:
    """An image file's contents.

    Attributes:
        values: (x, y, z, channel) of a volume, (x, y, channel) of a flat image; scale and intercept are applied.
        affine: (4, 4), from voxels to RAS+ in mm; of a flat image only the first two axes count.
        stored: type in the file, such as "int16".
        calibrated: whether the file states the size of its pixels.
        oriented: whether the file states the directions of a volume's axes in the patient.
        placed: whether the file states where its voxels lie; otherwise by convention.
        texts: header fields with text beyond what software writes by itself.
        notes: observations while reading, for people.
        palette: (n, 3) uint8: colour table indexed by ``values``; None: they are no indices.
        colour: the channels are red, green and blue.
        alpha: the last channel is opacity.
        lossy: name of a compression that changed the values, such as "JPEG"; None: none.
        exif: the file's Exif orientation, from which it was turned upright; 1: upright.
        colours: of a mask read from a palette: label value -> "#rrggbb".
        by_colour: the mask's values stand for colours of the palette, not for its numbers.
    """

    values: Values
    affine: Affine
    stored: str
    calibrated: bool = True
    oriented: bool = True
    placed: bool = True
    texts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    palette: NDArray[np.uint8] | None = None
    colour: bool = False
    alpha: bool = False
    lossy: str | None = None
    exif: int = 1
    colours: tuple[tuple[int, str], ...] = ()
    by_colour: bool = False

    @property
    def turned(self) -> bool:
        """Whether Exif swapped the axes x and y."""
        return self.exif in SWAPPED

    @property
    def dimensions(self) -> int:
        """2 for a flat image, 3 for a volume."""
        return self.values.ndim - 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Size along each axis, without channels."""
        return self.values.shape[:-1]

    @property
    def spacing(self) -> tuple[float, ...] | None:
        """Voxel or pixel sizes in mm; None: not stated."""
        return tuple(float(s) for s in voxel_sizes(self.affine)[: self.dimensions]) if self.calibrated else None

    @property
    def orientation(self) -> str | None:
        """Where a volume's axes point, such as "RAS"; else None."""
        if self.dimensions != 3 or not self.oriented:
            return None
        return "".join(a or "?" for a in nib.aff2axcodes(self.affine))


def farthest_corner(one: LoadedImage, other: LoadedImage) -> float:
    """Return the largest distance between corners of two grids.

    In voxels of the first.

    Args:
        one: with an invertible affine.
        other: has as many voxels along each axis.
    """
    return farthest(one.affine, other.affine, one.shape)


def farthest(one: Affine, other: Affine, shape: tuple[int, ...]) -> float:
    """Return ``farthest_corner`` of two affines (4, 4).

    For grids of size ``shape``.
    """
    if np.array_equal(one, other):
        return 0.0
    corners = [(*corner, *[0] * (3 - len(shape)), 1) for corner in product(*((0, side - 1) for side in shape))]
    places = np.array(corners, dtype=np.float64).T
    moved = np.linalg.solve(one, other @ places)
    return float(np.abs(moved - places).max())


def is_invertible(affine: Affine) -> bool:
    """Return whether a grid's axes are independent."""
    sides = voxel_sizes(affine)
    if not np.isfinite(affine).all() or not (sides > 0).all():
        return False
    return bool(abs(np.linalg.det(affine[:3, :3] / sides)) > _LEAST_VOLUME)


def looks_like(path: Path) -> str | None:
    """Return a file's type by its first bytes, if known."""
    with path.open("rb") as file:
        return kind_of(file.read(132))


def kind_of(head: bytes) -> str | None:
    """Return a file's type by 132 bytes, if known."""
    if head[128:132] == b"DICM":
        return "a DICOM file"
    if not head:
        return "an empty file"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "a WebP image"
    return next((words for magic, words in _MAGIC if head.startswith(magic)), None)


def unreadable(path: Path, name: str, reason: str, expected: tuple[str, ...] = ()) -> DataError:
    """Return the error of a misnamed or damaged file.

    Args:
        path: of the file.
        name: of the format, such as "NIfTI".
        reason: what is wrong and, in a further sentence, what to do.
        expected: results of ``looks_like`` that fit the format.
    """
    found = looks_like(path)
    seen = f"; it looks like {found}" if found and found not in expected else ""
    what = reason.partition(". ")
    return DataError(f"cannot be read as {name}: {what[0]}{seen}{''.join(what[1:])}")


def require_memory(size: int, what: str = "declares") -> None:
    """Refuse an image larger than half of the memory.

    Args:
        size: bytes.
        what: verb of the message.

    Raises:
        DataError: it is too large.
    """
    limit = _memory() // 2
    if size > limit:
        raise DataError(
            f"{what} {size / 2**30:.1f} GiB of pixels, more than half of this machine's memory. Register it on a "
            "larger one; copy it again if it is smaller"
        )


@cache
def _memory() -> int:
    return int(psutil.virtual_memory().total)
