"""Write DICOM images as NIfTI, PNG or TIFF.

Each file holds the real values, as far as float32 does.
"""

from __future__ import annotations

import io
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image

from oncofed.atomic import write_whole
from oncofed.data.images import LoadedImage

SUFFIXES = (".nii", ".gz", ".png", ".tif")
_MOST_OF_PNG = 65535


def fitting(path: str, image: LoadedImage) -> str:
    """Return a flat image's path with a fitting suffix.

    TIFF where PNG cannot hold its values.
    """
    return str(Path(path).with_suffix(".tif")) if path.endswith(".png") and not _is_png(image) else path


def is_there(path: Path) -> bool:
    """Return whether an image was written, in any format."""
    return path.is_file() or (path.suffix == ".png" and path.with_suffix(".tif").is_file())


def write_image(path: Path, image: LoadedImage) -> None:
    """Write an image in one step: NIfTI, PNG or TIFF."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if image.dimensions == 3:
        nifti = nib.Nifti1Image(image.values[..., 0], image.affine)
        nifti.header.set_xyzt_units("mm")
        unfinished = path.with_name(f".{path.name}")
        nib.save(nifti, unfinished)
        unfinished.replace(path)
        return
    values = np.ascontiguousarray(image.values.swapaxes(0, 1))
    values = values[..., 0] if values.shape[-1] == 1 else values
    buffer = io.BytesIO()
    if path.suffix == ".png":
        stored = values if values.dtype == np.uint8 else values.astype(np.uint16)
        Image.fromarray(stored).save(buffer, "PNG", compress_level=1)
    else:
        kind = np.int32 if np.issubdtype(values.dtype, np.integer) else np.float32
        Image.fromarray(values.astype(kind)).save(buffer, "TIFF")
    write_whole(path, buffer.getvalue())


def _is_png(image: LoadedImage) -> bool:
    """Return whether PNG holds the values: uint16."""
    values = image.values
    return bool(np.issubdtype(values.dtype, np.integer) and values.min() >= 0 and values.max() <= _MOST_OF_PNG)
