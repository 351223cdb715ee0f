"""Removes labels where a tilted-gantry scan acquired nothing."""

from __future__ import annotations

from dataclasses import replace

import torch

from oncofed.data.dicom.regular import is_straightened
from oncofed.errors import DataError
from oncofed.prediction.sources import Source
from oncofed.tasks.inferred import Inferred, LabelMap


def mask_unacquired(found: Inferred, source: Source) -> Inferred:
    """Remove labels outside the acquired frames of a tilted gantry.

    A SEG on the series could not hold them.

    Args:
        found: prediction on the image's own grid.
        source: the case.
    """
    if not isinstance(found, LabelMap) or not source.series or not is_straightened(source.entry.notes):
        return found
    # Slow import of DICOM libraries.
    from oncofed.prediction.dicom.series import labels_within_frames, read_series  # noqa: PLC0415

    values = found.values.cpu().numpy()
    try:
        series, _ = read_series(source.series, values, found.affine)
    except DataError:  # reported when the SEG is written
        return found
    return replace(found, values=torch.from_numpy(labels_within_frames(values, found.affine, series)))
