"""Labels of a volume whose slices were moved, as far as something was acquired where they are."""

from __future__ import annotations

from dataclasses import replace

import torch

from oncofed.data.dicom.regular import is_straightened
from oncofed.errors import DataError
from oncofed.prediction.sources import Source
from oncofed.tasks.inferred import Inferred, LabelMap


def mask_unacquired(found: Inferred, source: Source) -> Inferred:
    """Return what was found without labels beside the frames of a tilted gantry: a SEG on the series cannot hold them.

    Args:
        found: on the image's own grid.
        source: of it.
    """
    if not isinstance(found, LabelMap) or not source.series or not is_straightened(source.entry.notes):
        return found
    # It reads DICOM's libraries, which take a moment.
    from oncofed.prediction.dicom.series import labels_within_frames, read_series  # noqa: PLC0415

    values = found.values.cpu().numpy()
    try:
        series, _ = read_series(source.series, values, found.affine)
    except DataError:  # whoever writes on the series says so
        return found
    return replace(found, values=torch.from_numpy(labels_within_frames(values, found.affine, series)))
