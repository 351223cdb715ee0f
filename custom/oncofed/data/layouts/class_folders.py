"""One folder a class, also below ``train``, ``val`` and ``test``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from oncofed.data.images import image_format
from oncofed.data.layouts.base import SPLIT_NAMES, Item, Layout, name_of, patient_of, unique

_MASK_BESIDE = "mask beside an image that is one of a class: to learn from masks, register with --task segmentation"


def is_class_folders(images: Sequence[str]) -> bool:
    """Return whether flat images lie in folders that look like classes."""
    tops = {f.split("/", 1)[0] for f in images if "/" in f}
    flat = any("/" not in f for f in images)
    rasters = all(image_format(Path(f)) == "raster" for f in images)
    return bool(images) and not flat and rasters and 2 <= len(tops) <= 1000 and len(images) >= 2 * len(tops)


def class_folders(images: Sequence[str], masks: Sequence[str]) -> Layout:
    """Return the cases of class folders.

    Args:
        images: paths of the images.
        masks: paths of masks that lie among them.
    """
    layout = Layout("one folder a class", task="classification")
    tops = sorted({f.split("/", 1)[0] for f in images})
    split_names = {t: SPLIT_NAMES[t.lower()] for t in tops if t.lower() in SPLIT_NAMES}
    nested = len(split_names) == len(tops) and bool(tops)
    position = 1 if nested else 0
    usable = [f for f in images if f.count("/") > position]
    classes = sorted({f.split("/")[position] for f in usable})
    layout.labels = dict(enumerate(classes))
    numbers = {name: number for number, name in layout.labels.items()}
    for path in usable:
        parts = path.split("/")
        name = name_of(path)
        split = split_names[parts[0]] if nested else None
        layout.items.append(Item(name, patient_of(path), (path,), numbers[parts[position]], split))
    layout.items = unique(layout.items)
    layout.left_out |= dict.fromkeys(sorted(set(images) - set(usable)), "image outside a class folder")
    layout.left_out |= dict.fromkeys(masks, _MASK_BESIDE)
    return layout
