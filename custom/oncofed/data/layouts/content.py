"""Inspect files whose names do not tell their role.

It finds masks, and files on one grid; only a sample is read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from numpy.typing import NDArray
from PIL import Image

from oncofed.data.formats.common import LPS_TO_RAS, LoadedImage
from oncofed.data.images import image_format, read_stored
from oncofed.data.layouts.names import Named, Words, has_mask_word, says_image
from oncofed.data.masks import NEARLY_WHOLE, as_mask
from oncofed.errors import DataError

# Number of files to read from those whose names differ from their neighbours' in the same way.
_LOOKED_AT = 2
_MOST_VALUES = 64
_VOXELS_A_VALUE = 16
_SURELY_FEW = 4
_LEAST_EVEN = 0.5
_SAMPLED = 4096
# Least share of pixels near zero or the highest value in a mask with soft edges.
_AT_LEVEL = 0.05
_LEAST_AT_LEVELS = 0.5
_MOST_FOLDERS = 12
_MOST_BESIDE = 6
_MOST_GROUPS = 64
_LEAST_SHARED = 0.5
_TOLERANCE_MM = 1e-2

Grid = tuple[tuple[int, ...], tuple[float, ...]]


def looks_like_mask(image: LoadedImage) -> bool:
    """Return whether an image holds few whole numbers.

    After reading it as a label; see ``few_whole_numbers``.

    Args:
        image: from ``read_stored`` or ``read_image``.
    """
    if not _may_be_mask(image):
        return False
    try:
        return few_whole_numbers(as_mask(image).values)
    except DataError:  # its values are no labels
        return False


def _may_be_mask(image: LoadedImage) -> bool:
    """Return whether sampled pixels may be a mask's.

    That is, they have few values, or soft edges.
    """
    values = image.values
    step = max(1, values[..., 0].size // _SAMPLED)
    sample = np.stack([values[..., n].ravel(order="K")[::step] for n in range(values.shape[-1])], axis=-1)
    if sample.shape[-1] == 1 and sample.dtype.kind == "f":
        if not np.isfinite(sample).all():
            return False
        rounded = np.rint(sample)
        if np.abs(sample - rounded).max() <= NEARLY_WHOLE:
            sample = rounded
    if len(np.unique(sample, axis=0)) <= _MOST_VALUES:
        return True
    most = float(sample.max())
    tops = (1,) if sample.dtype.kind == "f" else (255, 65535)
    if sample.min() < -NEARLY_WHOLE or not any(0.9 * top < most <= top * (1 + NEARLY_WHOLE) for top in tops):
        return False
    at_level = (sample <= _AT_LEVEL * most) | (sample >= most - _AT_LEVEL * most)
    return bool(at_level.all(axis=-1).mean() >= _LEAST_AT_LEVELS)


def few_whole_numbers(values: NDArray[Any]) -> bool:
    """Return whether an image has few values in even areas.

    Args:
        values: (x, y[, z], channel).
    """
    if values.shape[-1] > 1 or not values.size:
        return False
    flat = values.ravel(order="K")
    most = min(_MOST_VALUES, flat.size // _VOXELS_A_VALUE)
    sample = np.unique(flat[:: max(1, flat.size // _SAMPLED)])
    if len(sample) > most or not _are_integers(sample):
        return False
    found, counts = np.unique(flat, return_counts=True)
    if len(found) > most or not _are_integers(found):
        return False
    # No image has so few levels; an image with some dozens is noisy except in the background.
    return len(found) <= _SURELY_FEW or _even_share(values, found[counts.argmax()]) >= _LEAST_EVEN


def _even_share(values: NDArray[Any], background: Any) -> float:
    """Return the share of equal neighbours outside the background."""
    equal = pairs = 0
    for axis in (0, 1):
        here, next_to = (
            np.take(values, range(1, values.shape[axis]), axis),
            np.take(values, range(values.shape[axis] - 1), axis),
        )
        counted = (here != background) | (next_to != background)
        pairs += int(counted.sum())
        equal += int((counted & (here == next_to)).sum())
    return equal / pairs if pairs else 1.0


def _are_integers(values: NDArray[Any]) -> bool:
    return bool(np.isfinite(values).all() and np.array_equal(values, np.rint(values)))


def masks_among(root: Path, files: Sequence[Named]) -> set[str]:
    """Return the paths of masks not named as such.

    Files are compared with a neighbour of the same case: ``7/ct`` and ``7/tumour``, ``scan_7`` and ``scan_7_liver``,
    ``a/7`` and ``b/7``. For each difference of names a few files are read.

    Args:
        root: the folder.
        files: not named as masks.
    """
    found: set[str] = set()
    look = Look(root)
    for pairs in (*_by_ending(files), *_by_folder(files)):
        looked = [look.is_mask_of(image, mask) for image, mask in pairs[:_LOOKED_AT]]
        if looked and all(looked):
            found |= {mask.path for _, mask in pairs}
    for group in _by_word([named for named in files if named.path not in found]):
        # With the word in the name, a single file that looks like a mask is enough.
        if any(look.is_mask(named) for named in group[:_LOOKED_AT]):
            found |= {named.path for named in group}
    return found


def _by_word(files: Sequence[Named]) -> Iterable[list[Named]]:
    """Yield files with a word of masks inside their names.

    Grouped by the words from there on, such as seg_liver.
    """
    groups: dict[Words, list[Named]] = defaultdict(list)
    for named in files:
        if words := has_mask_word(named.bare):
            groups[words].append(named)
    if len(groups) <= _MOST_GROUPS:
        return groups.values()
    merged: dict[str, list[Named]] = defaultdict(list)  # case names, not content, follow the word
    for words, group in groups.items():
        merged[words[0]] += group
    return merged.values()


def _by_ending(files: Sequence[Named]) -> Iterable[list[tuple[Named, Named]]]:
    """Yield pairs of files whose names differ the same way."""
    folders: dict[str, list[Named]] = defaultdict(list)
    for named in files:
        folders[named.folder].append(named)
    alike: dict[tuple[object, ...], list[tuple[Named, Named]]] = defaultdict(list)
    above: dict[str, Named] = {}
    for path, inside in folders.items():
        above.setdefault(path.rpartition("/")[0], inside[0])
    for path, folder in folders.items():
        by_name = {words: named for named in folder for words in (named.case, named.bare)}
        for named in folder:
            if not says_image(named.bare):
                _alike(named, by_name, folder, alike)
            image = above.get(path) if path and len(folder) <= _MOST_BESIDE else None
            if image:  # 7/lesion and 7/pre/flair
                alike["above", image.bare, named.bare].append((image, named))
    return alike.values()


def _alike(
    named: Named,
    by_name: dict[Words, Named],
    folder: Sequence[Named],
    alike: dict[tuple[object, ...], list[tuple[Named, Named]]],
) -> None:
    for length in range(len(named.bare) - 1, -1, -1):
        image, more = by_name.get(named.bare[:length]), named.bare[length:]
        if image and image.path != named.path and not all(word.isdigit() for word in more):
            alike["ending", more].append((image, named))
            return
    for image in folder if len(folder) <= _MOST_BESIDE else ():
        others = set(image.bare) ^ set(named.bare)
        if image.path != named.path and not any(word.isdigit() for word in others):
            alike["name", image.bare, named.bare].append((image, named))


def _by_folder(files: Sequence[Named]) -> Iterable[list[tuple[Named, Named]]]:
    """Yield pairs of equal names in two folders."""
    folders: dict[str, dict[Words, Named]] = defaultdict(dict)
    for named in files:
        folders[named.folder][named.bare] = named
    if not 2 <= len(folders) <= _MOST_FOLDERS:
        return
    for one, images in folders.items():
        for other, masks in folders.items():
            shared = [(images[name], masks[name]) for name in masks if name in images]
            if one != other and len(shared) > max(1, _LEAST_SHARED * len(masks)):
                yield shared


class Look:
    """Reads sampled files, each once."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._few: dict[str, bool] = {}

    def is_mask(self, named: Named) -> bool:
        """Return whether a file holds only a few whole numbers."""
        return self._holds_few(named.path)

    def is_mask_of(self, image: Named, mask: Named) -> bool:
        """Return whether ``mask`` is a mask of ``image``."""
        if not on_one_grid(self._root, [image.path, mask.path]):
            return False
        return self._holds_few(mask.path) and not self._holds_few(image.path)

    def _holds_few(self, path: str) -> bool:
        if path not in self._few:
            try:
                self._few[path] = looks_like_mask(read_stored(self._root / path))
            except (DataError, MemoryError):  # reported when the case is read
                self._few[path] = False
        return self._few[path]


def grid(path: Path) -> Grid | None:
    """Return a file's shape and affine; None: unreadable."""
    kind = image_format(path)
    try:
        if kind == "nifti":
            image = nib.load(path)
            return tuple(image.shape[:3]), tuple(np.asarray(image.affine, float).ravel())
        if kind == "raster":
            with Image.open(path) as picture:
                return picture.size, ()
        return _itk_grid(path)
    except (OSError, ValueError, ImageFileError, Image.DecompressionBombError):
        return None
    except Exception:  # noqa: BLE001 - readers raise many types for a broken file; reading the case reports it
        return None


def same_grid(one: Grid, other: Grid) -> bool:
    """Return whether two grids are the same."""
    return one[0] == other[0] and len(one[1]) == len(other[1]) and np.allclose(one[1], other[1], atol=_TOLERANCE_MM)


def on_one_grid(root: Path, files: Sequence[str]) -> bool:
    """Return whether files lie on one grid, by headers."""
    found = [grid(root / path) for path in files]
    return all(g is not None and found[0] is not None and same_grid(found[0], g) for g in found)


def _itk_grid(path: Path) -> Grid | None:
    try:
        import SimpleITK as sitk  # noqa: N813, PLC0415 - optional
    except ImportError:
        return None
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    size = tuple(reader.GetSize())
    if len(size) != 3:
        return size, ()
    direction = np.asarray(reader.GetDirection()).reshape(3, 3) * np.asarray(reader.GetSpacing())
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = direction, reader.GetOrigin()
    return size, tuple((LPS_TO_RAS @ affine).ravel())
