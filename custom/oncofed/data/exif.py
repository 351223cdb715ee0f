"""Masks of photos with an Exif orientation.

They are drawn on the picture as viewers show it, or on the pixels as stored.

If the orientation swaps rows and columns of an image that is not square, the mask's size tells which. Otherwise its
siblings do, and how well it fits the image either way.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from oncofed.data.formats.common import LoadedImage
from oncofed.data.formats.tiff import upright
from oncofed.data.manifest import Entry

AS_TURNED = "its mask is taken as drawn on the turned picture"
_FOUND = "its label was drawn on the image as it is stored, not as its Exif orientation turns it and viewers show it"
AS_STORED = f"{_FOUND}: turn the mask, or save the image upright"
# Exif orientation -> name in ``placement`` of the move from the upright picture to the stored pixels.
_WAYS_BACK = {
    2: "mirrored left to right",
    3: "mirrored left to right and upside down",
    4: "mirrored upside down",
    5: "rows for columns",
    6: "mirrored upside down, rows for columns",
    7: "mirrored left to right and upside down, rows for columns",
    8: "mirrored left to right, rows for columns",
}
# Logarithm of the ratio of contrasts along a mask's border in two places, above which the first fits better.
_CLEARLY_BETTER = 0.3


def is_open(image: LoadedImage, label: LoadedImage) -> bool:
    """Return whether sizes leave a mask's orientation open."""
    alike = image.exif > 1 and label.exif == 1 and image.dimensions == 2 and image.shape == label.shape
    return alike and (not image.turned or image.shape[0] == image.shape[1])


def as_stored_reason(image: LoadedImage, label: LoadedImage) -> str | None:
    """Return why a mask fits the stored pixels, if so.

    By its size, or because it fits clearly better there.
    """
    if label.shape != image.shape:
        fits_stored = image.turned and label.exif == 1 and label.shape == image.shape[::-1]
        return AS_STORED if fits_stored else None
    if not is_open(image, label) or label.values.shape[-1] != 1:
        return None
    from oncofed.data.placement import place  # noqa: PLC0415 - slow to import, and imports case_facts

    _, numbers = np.unique(label.values, return_inverse=True)
    stored = numbers.reshape(label.values.shape).astype(np.int32)
    drawn = upright(stored.swapaxes(0, 1), image.exif).swapaxes(0, 1)
    mask = LoadedImage(drawn, label.affine, label.stored)
    is_better = place("", image, mask).fit.get(_WAYS_BACK[image.exif], 0.0) > _CLEARLY_BETTER
    how = "its size fits either, and its border the picture's edges only so"
    return f"{_FOUND} ({how}): turn the mask, or save the image upright" if is_better else None


def by_siblings(entries: Sequence[Entry]) -> list[Entry]:
    """Refuse ambiguous masks where a sibling fits stored pixels."""
    if not any(entry.label_problem == AS_STORED for entry in entries):
        return list(entries)
    how = "its size fits either, and others of this dataset were drawn so"
    why = f"{_FOUND} ({how}): turn the mask, or save the image upright"
    return [
        entry.model_copy(update={"label_problem": why})
        if AS_TURNED in entry.notes and not entry.label_problem
        else entry
        for entry in entries
    ]
