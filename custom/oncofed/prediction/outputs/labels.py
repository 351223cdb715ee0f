"""Writes segmentations on their image's grid, as NIfTI or PNG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from oncofed.data.converted import write_image
from oncofed.data.formats.nifti import beginning, nifti_header, open_nifti
from oncofed.data.images import LoadedImage, image_format
from oncofed.prediction.case_prediction import CasePrediction
from oncofed.prediction.model import TrainedModel
from oncofed.tasks.inferred import LabelMap

# NIfTI intent for label values (nifti1.h, NIFTI_INTENT_LABEL).
_LABELS = "label"
# NIfTI unit code -> millimetres.
_MM = {1: 1e3, 3: 1e-3}
_SAME_MM = 1e-4
_DESCRIPTION = b"oncofed; research only"
# Header fields of the geometry. Others are not copied, since their text may name a patient.
_PLACE = (
    "pixdim",
    "qform_code",
    "sform_code",
    "quatern_b",
    "quatern_c",
    "quatern_d",
    "qoffset_x",
    "qoffset_y",
    "qoffset_z",
    "srow_x",
    "srow_y",
    "srow_z",
    "xyzt_units",
)


def write_labels(prediction: CasePrediction, model: TrainedModel, folder: Path) -> list[Path]:
    """Write ``NAME_seg.nii.gz``, or ``NAME_seg.png`` for a flat image."""
    del model
    found = prediction.found
    assert isinstance(found, LabelMap)
    values = found.values.cpu().numpy()
    name = f"{prediction.source.name}_seg"
    if values.ndim == 2:
        path = folder / f"{name}.png"
        write_image(path, LoadedImage(values[..., None], found.affine, str(values.dtype)))
        return [path]
    path = folder / f"{name}.nii.gz"
    nib.save(labels_image(values, found.affine, prediction.source.case.image), path)
    return [path]


def labels_image(values: NDArray[Any], affine: NDArray[np.float64], image: Path) -> nib.Nifti1Image:
    """Return labels as NIfTI with the image's geometry.

    If the image is NIfTI, its units and transform codes are kept.

    Args:
        values: (x, y, z), uint8 or int16.
        affine: (4, 4), from voxels to RAS+ in mm.
        image: segmented image file.
    """
    place = _place_of(image, affine, values.shape)
    if place is None:
        labels = nib.Nifti1Image(values, affine)
        labels.header.set_xyzt_units("mm")
        # Code 1, scanner coordinates.
        labels.set_sform(affine, 1)
        labels.set_qform(affine, 1)
        if not np.allclose(labels.get_qform(), affine, atol=_SAME_MM):
            labels.set_qform(affine, 0)  # a quaternion knows no shear
    else:
        header = nib.Nifti1Header()
        for field in _PLACE:
            header[field] = place[field]
        header.set_data_dtype(values.dtype)
        header.set_data_shape(values.shape)
        labels = nib.Nifti1Image(values, header.get_best_affine(), header)
    labels.header.set_intent(_LABELS)
    labels.header["descrip"] = _DESCRIPTION
    return labels


def _place_of(image: Path, affine: NDArray[np.float64], shape: tuple[int, ...]) -> Any:
    """Return an image's NIfTI header if its geometry is valid."""
    if image_format(image) != "nifti":
        return None
    with open_nifti(image) as (file, _):
        header = nifti_header(image, beginning(file))
    unit = _MM.get(int(header["xyzt_units"]) & 7, 1.0)
    says = header["sform_code"] > 0 or header["qform_code"] > 0
    if not says or tuple(header.get_data_shape()[:3]) != shape:
        return None
    in_mm = np.diag([unit, unit, unit, 1.0]) @ header.get_best_affine()
    if not np.allclose(in_mm, affine, atol=_SAME_MM):
        return None
    header["pixdim"][4:] = 1
    return header
