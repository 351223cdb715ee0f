"""Compare the grids of two files, and reorder axes.

A volume's file may store its axes in any order and direction; its affine says which. As long as the voxels are the same
ones, no value changes.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

from oncofed.data.formats.common import LoadedImage, farthest_corner

TURNED = "stored in another order of axes: turned"
# Grids whose corners are nearer than this, in voxels, coincide: headers round, but half a voxel is a real shift.
_SAME_GRID = 0.25
# Sizes and numbers of voxels that differ by less than this share are reported as equal.
_NEARLY = 1e-3
_AXES = ("first", "second", "third")


def turned_onto(image: LoadedImage, other: LoadedImage, what: str) -> LoadedImage:
    """Return a file's contents in an image's axis order.

    Unchanged if the two do not hold the same voxels.

    Args:
        image: gives the order.
        other: of the same object.
        what: name of ``other`` in its note, such as "its label".
    """
    if _lies_on(image, other):
        return other
    turned = _turned(image, other)
    if turned is None or not _lies_on(image, turned):
        return other
    return replace(turned, notes=(*other.notes, f"{what} is {TURNED}"))


def other_grid(image: LoadedImage, other: LoadedImage) -> str | None:
    """Return how two grids differ, and the fix, if so."""
    comparable = image.calibrated and other.calibrated and image.dimensions == other.dimensions
    if other.shape == image.shape:
        return None if not comparable or _lies_on(image, other) else _elsewhere(image, other)
    turned = _turned(image, other)
    if turned is not None and turned.shape == image.shape and not _says_nothing(other):
        return f"is stored in another order of axes and, turned, {_elsewhere(image, turned)}"
    text = f"has shape {other.shape}, expected {image.shape}"
    if comparable and _sizes_differ(image, other):
        text += f", and voxels of {_sides(other)} mm, expected {_sides(image)}: resample it by nearest neighbour"
    return text


def _lies_on(image: LoadedImage, other: LoadedImage) -> bool:
    """Return whether two grids have the same corners.

    If a file does not state its place: the same sizes.
    """
    if other.shape != image.shape:
        return False
    return not (image.calibrated and other.calibrated) or farthest_corner(image, other) <= _SAME_GRID


def _turned(image: LoadedImage, other: LoadedImage) -> LoadedImage | None:
    """Return a file's contents with its axes along an image's.

    None if one of them does not state where its axes point, or they are not parallel to the image's.
    """
    n = image.dimensions
    if other.dimensions != n or not all(i.calibrated and i.oriented and i.placed for i in (image, other)):
        return None
    # From the other's voxels to the image's: nearly a signed permutation, if axes are only reordered.
    order = io_orientation(np.linalg.solve(image.affine, other.affine))
    if not np.isfinite(order).all() or (order[n:, 0] != np.arange(n, 3)).any() or (order[n:, 1] != 1).any():
        return None
    values = np.asarray(apply_orientation(other.values, order[:n])).copy(order="K")
    affine = other.affine @ inv_ornt_aff(order, (*other.shape, *[1] * (3 - n)))
    return replace(other, values=values, affine=affine)


def _elsewhere(image: LoadedImage, other: LoadedImage) -> str:
    """Return how two equally large grids lie apart."""
    if _says_nothing(other) and not _says_nothing(image):
        why = "its affine is the identity" if other.placed else "neither sform nor qform"
        return (
            f"has a header that does not say where it lies ({why}), expected the affine of what it was drawn on. Save "
            "it with that affine"
        )
    text = f"lies elsewhere in space, by {farthest_corner(image, other):.3g} voxels at a corner"
    if _says_nothing(image) and not _says_nothing(other):
        return f"{text}: the image's header does not say where it lies. Save both with one affine"
    relative = np.linalg.solve(image.affine, other.affine)
    if _sizes_differ(image, other):
        text += f": its voxels are {_sides(other)} mm, expected {_sides(image)}"
    elif np.allclose(relative[:3, :3], np.eye(3), atol=_NEARLY):
        shifts = [
            f"{abs(by):.3g} voxels along the {_AXES[axis]} axis"
            for axis, by in enumerate(relative[: image.dimensions, 3])
            if abs(by) > _NEARLY
        ]
        text += f": it is shifted by {' and '.join(shifts)}"
    elif image.orientation != other.orientation:
        text += f": its axes point {other.orientation}, expected {image.orientation}"
    else:
        text += ": its axes are turned"
    return f"{text}. Export both anew from one program"


def _says_nothing(image: LoadedImage) -> bool:
    """Return whether a volume's header is a program's default."""
    return image.dimensions == 3 and (not image.placed or bool(np.array_equal(image.affine, np.eye(4))))


def _sizes_differ(image: LoadedImage, other: LoadedImage) -> bool:
    one, two = voxel_sizes(image.affine), voxel_sizes(other.affine)
    return not np.allclose(one, two, rtol=_NEARLY, atol=0)


def _sides(image: LoadedImage) -> str:
    return " x ".join(f"{side:.6g}" for side in voxel_sizes(image.affine)[: image.dimensions])
