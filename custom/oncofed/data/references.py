"""Cases for scoring and prediction.

The image lies on the working grid, the answer on the grid of a file.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oncofed.data.case import Case
from oncofed.data.inputs import Preparation, Prepared
from oncofed.data.spec import DataSpec
from oncofed.data.transforms import ReadCase, load_image, to_working_grid


class Referenced(Preparation):
    """An image with its reference.

    ``image`` (channel, x, y[, z]) float32 and ``label`` (x, y[, z]).

    ``image.affine`` and ``label.affine`` (4, 4) float64 go from the voxels of each grid to RAS+ in mm; for flat images
    they hold the pixel sizes.

    Args:
        spec: the job's data.
        numbered: keep the numbers of single objects, as int32, instead of their class, as uint8.
    """

    def __init__(self, spec: DataSpec, numbered: bool = False) -> None:
        super().__init__(spec)
        self._numbered = numbered
        self._load = load_image(spec)

    def prepare(self, case: Case) -> Prepared:
        """Return image and reference, each with its affine."""
        image = self._load(case)["image"]
        label = case.read_label(self._numbered)
        values = label.values[..., 0]
        if values.dtype.kind == "f":
            values = values.astype(np.float32)  # differences below float32 are rounding
        return {
            "image": image.as_tensor().contiguous(),
            "image.affine": image.affine.to(torch.float64).contiguous(),
            "label": torch.from_numpy(np.ascontiguousarray(values, np.int32 if self._numbered else np.uint8)),
            "label.affine": torch.from_numpy(np.array(label.affine, np.float64)),
        }

    def size(self, case: Case) -> int | None:
        """Return the approximate size of a prepared case, in bytes."""
        return _size(case, self.spec, 4 if self._numbered else 1)

    def _more_settings(self) -> list[Any]:
        return [self._numbered]


class Unreferenced(Preparation):
    """An unlabelled image.

    ``image`` (channel, x, y[, z]) float32 on the working grid.

    ``image.affine`` (4, 4) float64 goes from its voxels to RAS+ in mm; ``file.affine`` and ``file.shape`` (axes,) int64
    are those of the file's grid, on which the answer is wanted.
    """

    def __init__(self, spec: DataSpec) -> None:
        super().__init__(spec)
        self._read = ReadCase(spec, label=False)
        self._to_grid = to_working_grid(spec)

    def prepare(self, case: Case) -> Prepared:
        """Return the image, its affine, and the file's grid."""
        read = self._read(case)
        file_affine, file_shape = read["image"].affine.clone(), torch.tensor(read["image"].shape[1:])
        image = self._to_grid(read)["image"]
        return {
            "image": image.as_tensor().contiguous(),
            "image.affine": image.affine.to(torch.float64).contiguous(),
            "file.affine": file_affine.to(torch.float64).contiguous(),
            "file.shape": file_shape,
        }

    def size(self, case: Case) -> int | None:
        """Return the approximate size of a prepared case, in bytes."""
        return _size(case, self.spec, 1)


def _size(case: Case, spec: DataSpec, of_label: int) -> int | None:
    """Return the approximate bytes of a prepared case, or None.

    ``of_label`` bytes for each voxel of the file, plus the image on the working grid.
    """
    entry = case.entry
    if entry is None or not entry.shape:
        return None
    shape = np.array(entry.shape, dtype=np.float64)
    voxels = float(shape.prod())
    if spec.spacing and entry.spacing:
        shape = np.ceil(shape * np.array(entry.spacing) / np.array(spec.spacing))
    return int(shape.prod() * 4 * len(spec.channels) + voxels * of_label)


def affine_of(prepared: Prepared, name: str) -> NDArray[np.float64]:
    """Return a prepared image's or label's affine, (4, 4)."""
    affine: Tensor = prepared[f"{name}.affine"]
    return affine.cpu().numpy()
