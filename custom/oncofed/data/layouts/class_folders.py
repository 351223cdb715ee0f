"""One folder per class, also below ``train``, ``val``, ``test``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from oncofed.data.images import image_format
from oncofed.data.layouts.base import SPLIT_NAMES, FolderLayout, Item, name_of, patient_of, unique
from oncofed.data.layouts.kinds import CLASS_FOLDERS
from oncofed.data.layouts.names import Named

# Tolerated share of images outside all class folders.
_STRAY = 0.05
_MOST = 1000
_MOST_WORDS = 20
MASK_BESIDE = "mask beside an image that is one of a class: to learn from masks, register with --task segmentation"


def is_class_folders(images: Sequence[str]) -> bool:
    """Return whether images lie in folders of classes.

    One in twenty may lie outside, but at least one.

    Args:
        images: paths of the images.
    """
    inside = [f for f in images if "/" in f]
    tops = {f.split("/", 1)[0] for f in inside}
    stray = len(images) - len(inside)
    rasters = all(image_format(Path(f)) == "raster" for f in images)
    rarely_outside = stray <= max(1, _STRAY * len(images))
    return rasters and rarely_outside and 2 <= len(tops) <= _MOST and len(inside) >= 2 * len(tops)


def look_like_classes(images: Sequence[str]) -> list[str]:
    """Return top folders that may be classes.

    For a folder that is read in another way.
    """
    inside = [f for f in images if "/" in f]
    tops = sorted({f.split("/", 1)[0] for f in inside})
    roles = [Named(f"{top}/x.png") for top in tops]
    words = all(not any(c.isdigit() for c in n.folder) and n.role is None and n.split is None for n in roles)
    many = 2 <= len(tops) <= _MOST_WORDS and len(inside) >= 2 * len(tops)
    return tops if many and words and len(inside) > len(images) // 2 else []


def class_folders(images: Sequence[str], masks: Sequence[str]) -> FolderLayout:
    """Return the cases of class folders.

    Args:
        images: paths of the images.
        masks: paths of masks among them.
    """
    layout = FolderLayout(CLASS_FOLDERS, task="classification")
    tops = sorted({f.split("/", 1)[0] for f in images if "/" in f})
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
        layout.items.append(
            Item(name=name, patient=patient_of(path), images=(path,), label=numbers[parts[position]], split=split)
        )
    layout.items = unique(layout.items)
    layout.left_out |= dict.fromkeys(sorted(set(images) - set(usable)), "image outside a class folder")
    layout.left_out |= dict.fromkeys(masks, MASK_BESIDE)
    return layout
