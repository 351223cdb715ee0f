"""Labels from DICOM: segmentations (SEG) and structure sets of radiotherapy (RT-STRUCT), on the grid of an image.

SEG: DICOM PS3.3, section A.51, read by highdicom. RT-STRUCT contours: C.8.8.6.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray

from oncofed.data.dicom.headers import Header
from oncofed.data.images import LoadedImage
from oncofed.errors import DataError

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def read_label(path: Path, header: Header, image: LoadedImage, values: Mapping[str, int]) -> LoadedImage:
    """Read a SEG or RT-STRUCT file as a mask on the grid of its image.

    Args:
        path: the file.
        header: of the file.
        image: the volume that it belongs to.
        values: name of a segment or region -> label value; others are left out.

    Returns:
        Label values (x, y, z, 1) uint8; where two regions overlap, the one with the higher value.

    Raises:
        DataError: it cannot be read, or none of its names is in ``values``.
    """
    wanted = {int(number): values[name] for number, name in header["labels"].items() if name in values}
    if not wanted:
        raise DataError(f"its label names {sorted(header['labels'].values())}, expected some of {sorted(values)}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            read = _segmentation if header["kind"] == "seg" else _structures
            mask = read(path, image, wanted)
        except DataError:
            raise
        except Exception as error:  # noqa: BLE001 - a broken file raises whatever its bytes lead to
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise DataError(f"its label cannot be read ({reason.replace(str(path), 'file')[:200]})") from None
    return LoadedImage(mask[..., None], image.affine, "uint8")


def _segmentation(path: Path, image: LoadedImage, wanted: Mapping[int, int]) -> NDArray[np.uint8]:
    import highdicom  # noqa: PLC0415 - see pixels.py

    segmentation = highdicom.seg.segread(path)
    mask = np.zeros(image.shape, np.uint8)
    for number, value in sorted(wanted.items(), key=lambda item: item[1]):
        volume = segmentation.get_volume(
            segment_numbers=[number], combine_segments=True, relabel=True, allow_missing_positions=True
        )
        affine = _LPS_TO_RAS @ volume.affine
        mask[_on_grid(np.asarray(volume.array), affine, image) > 0] = value
    return mask


def _on_grid(values: NDArray[Any], affine: NDArray[np.float64], image: LoadedImage) -> NDArray[Any]:
    """Return ``values`` at the image's voxels, the nearest voxel each; zero outside."""
    to_values = np.linalg.inv(affine) @ image.affine
    # A border of zeros: a voxel that rounding puts a hair outside of the first or last slice is still that slice's.
    padded = np.pad(values, 1)
    from scipy import ndimage  # noqa: PLC0415 - see pixels.py

    result: NDArray[Any] = ndimage.affine_transform(
        padded,
        to_values[:3, :3],
        to_values[:3, 3] + 1,
        output_shape=image.shape,
        order=0,
        mode="constant",
        prefilter=False,
    )
    return result


def _structures(path: Path, image: LoadedImage, wanted: Mapping[int, int]) -> NDArray[np.uint8]:
    dataset = pydicom.dcmread(path)
    to_voxels = np.linalg.inv(image.affine) @ _LPS_TO_RAS
    mask = np.zeros(image.shape, np.uint8)
    outside = 0
    regions = {int(region.ReferencedROINumber): region for region in dataset.get("ROIContourSequence", [])}
    for number, value in sorted(wanted.items(), key=lambda item: item[1]):
        region = np.zeros(image.shape, bool)
        for contour in regions[number].get("ContourSequence", []) if number in regions else []:
            points = np.asarray(contour.ContourData, dtype=np.float64).reshape(-1, 3)
            voxels = points @ to_voxels[:3, :3].T + to_voxels[:3, 3]
            outside += not _fill(region, voxels)
        mask[region] = value
    if outside and not mask.any():
        raise DataError(f"its label's {outside} contours lie outside the image or across its slices")
    return mask


def _fill(region: NDArray[np.bool_], voxels: NDArray[np.float64]) -> bool:
    """Fill one closed contour of one slice; a contour inside another one is a hole. Return whether it lies there."""
    depth = np.rint(voxels[:, 2])
    number = int(depth[0])
    if len(voxels) < 3 or np.ptp(voxels[:, 2]) > 0.5 or not 0 <= number < region.shape[2]:
        return False
    low = np.maximum(np.floor(voxels[:, :2].min(axis=0)).astype(int), 0)
    high = np.minimum(np.ceil(voxels[:, :2].max(axis=0)).astype(int) + 1, region.shape[:2])
    if (high <= low).any():
        return False
    from matplotlib.path import Path as Polygon  # noqa: PLC0415 - see pixels.py

    x, y = np.meshgrid(np.arange(low[0], high[0]), np.arange(low[1], high[1]), indexing="ij")
    points = np.stack([x.ravel(), y.ravel()], axis=1)
    filled = Polygon(voxels[:, :2]).contains_points(points).reshape(x.shape)
    region[low[0] : high[0], low[1] : high[1], number] ^= filled
    return True
