"""Labels with their source series and model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oncofed.prediction.dicom.codes import SegmentCode, segment_codes
from oncofed.prediction.dicom.common import ModelIdentity
from oncofed.prediction.dicom.series import Series, read_series
from oncofed.tasks.codes import ClassCode


@dataclass(frozen=True)
class LabelledSeries:
    """Labels predicted on a DICOM series.

    Attributes:
        labels: label values (x, y, z) on the grid that registration made of the series, or (x, y) of a flat image.
        files: of the image, in any order.
        affine: (4, 4) from voxels to RAS+ in mm.
        classes: label value -> name; other values belong to no class.
        codes: label value -> coded term from the job.
        model: model that predicted the labels.
    """

    labels: NDArray[Any]
    files: Sequence[Path]
    affine: NDArray[np.float64]
    classes: Mapping[int, str]
    codes: Mapping[int, ClassCode]
    model: ModelIdentity

    @cached_property
    def terms(self) -> dict[int, SegmentCode]:
        """Coded terms by label value."""
        return segment_codes(self.classes, self.codes)

    def read(self) -> tuple[Series, NDArray[Any]]:
        """Return the series, and (frame, row, column) label values.

        Raises:
            DataError: the files are no image, or the labels do not fit it.
        """
        return read_series(self.files, self.labels, self.affine)
