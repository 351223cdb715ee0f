"""Read an image file of any format.

NIfTI, NRRD, MetaImage, PNG, JPEG, WebP, BMP, TIFF.

MONAI's ``LoadImage`` tries other readers if the requested one fails. Here a file is read in the format of its name, or
refused with what it looks like instead.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from oncofed.data.formats.common import LoadedImage, looks_like, require_memory, unreadable
from oncofed.data.formats.itk import ITK, read_itk
from oncofed.data.formats.nifti import NIFTI, open_nifti, read_nifti
from oncofed.data.formats.raster import RASTER, read_raster
from oncofed.errors import DataError

__all__ = [
    "ITK",
    "NIFTI",
    "RASTER",
    "LoadedImage",
    "image_format",
    "looks_like",
    "open_nifti",
    "read_image",
    "read_stored",
    "require_memory",
    "stem",
]

_READERS = {"nifti": read_nifti, "itk": read_itk, "raster": read_raster}
_NAMES = {"nifti": "NIfTI", "itk": "NRRD or MetaImage", "raster": "an image"}


def image_format(path: Path) -> str | None:
    """Return the family of a file's format: "nifti", "itk", "raster"."""
    name = path.name.lower()
    for suffixes, kind in ((NIFTI, "nifti"), (ITK, "itk"), (RASTER, "raster")):
        if name.endswith(suffixes):
            return kind
    return None


def stem(path: Path) -> str:
    """Return a file's name without its suffix, .nii.gz too."""
    name = path.name
    for suffix in (*NIFTI[::-1], *ITK, *RASTER):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return path.stem


def read_image(path: Path) -> LoadedImage:
    """Read an image file as it is displayed.

    Colours in place of a palette's numbers, upright, without opacity.

    Raises:
        DataError: it is missing, broken, or not what its name says; the message names neither path nor file.
    """
    image = read_stored(path)
    if image.palette is not None:
        image = replace(image, values=image.palette[image.values[..., 0]], palette=None, colour=True, stored="uint8")
    return replace(image, values=image.values[..., :-1], alpha=False) if image.alpha else image


def read_stored(path: Path) -> LoadedImage:
    """Read an image file as it is stored.

    A palette's numbers, and opacity as the last channel.

    Raises:
        DataError: as of ``read_image``.
    """
    kind = image_format(path)
    if kind is None:
        known = ", ".join((*NIFTI, *ITK, *RASTER))
        raise DataError(f"has no suffix of an image ({path.suffix or 'none'}), expected one of {known}")
    if not path.is_file() and path.is_symlink():
        raise DataError("is a link that leads nowhere. Bring the file that it stands for, or remove the link")
    if not path.is_file():
        raise DataError("is missing. Copy it there again, or register the folder anew")
    if path.stat().st_size == 0:
        raise DataError("is empty (0 bytes). Copy it again")
    try:
        image = _READERS[kind](path)
    except (DataError, MemoryError):
        raise
    except OSError as error:
        why = error.strerror or "its disk or network does not answer"
        raise DataError(f"cannot be read ({why})") from None
    except Exception:  # noqa: BLE001 - readers raise many types for a broken file
        raise unreadable(path, _NAMES[kind], "its header or its data are damaged. Copy it again") from None
    if not image.values.size:
        raise DataError(f"has no voxels: its size is {image.values.shape}. Export it again")
    return image
