"""Images in a folder whose class is to be predicted."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from oncofed.data.label_names import name_key
from oncofed.data.layouts.base import NO_IMAGE, FolderLayout, Item
from oncofed.data.layouts.class_folders import MASK_BESIDE
from oncofed.data.layouts.loose import loose_images
from oncofed.data.layouts.names import Named


def unclassified(
    root: Path, files: Sequence[str], images: Sequence[Named], masks: Collection[str], classes: Collection[str]
) -> FolderLayout:
    """Return each image as a case.

    Its label is the class with the name of one of its folders, if any.

    Args:
        root: the folder.
        files: all of it.
        images: its images, loose or in folders of any depth.
        masks: paths of masks among them.
        classes: names of the classes.
    """
    layout = loose_images(root, files, [], images)
    known = {name_key(name): name for name in classes}
    found = {item.images[0]: _class_of(item, known) for item in layout.items}
    layout.task = "classification"
    layout.labels = dict(enumerate(sorted({name for name in found.values() if name})))
    numbers = {name: number for number, name in layout.labels.items()}
    layout.items = [replace(item, label=numbers.get(found[item.images[0]])) for item in layout.items]
    alone = not layout.items  # reported if all images were taken for masks
    layout.left_out |= dict.fromkeys(masks, NO_IMAGE if alone else MASK_BESIDE)
    return layout


def _class_of(item: Item, known: Mapping[str, str]) -> str:
    """Return the class of the innermost matching folder, if any."""
    folders = reversed(Path(item.images[0]).parts[:-1])
    return next((known[name_key(folder)] for folder in folders if name_key(folder) in known), "")
