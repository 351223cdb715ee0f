"""Pixel sizes of radiographs.

In the patient if the header allows it, else on the detector, with a note.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dicoms import make_xray
from pictures import read

PIXELS = np.random.default_rng(0).integers(0, 4000, (30, 40)).astype(np.uint16)
DETECTOR, DIVIDED = "on the detector alone", "divided by the magnification"


@pytest.mark.parametrize(
    ("attributes", "spacing", "said"),
    [
        ({}, [0.1, 0.2], DETECTOR),
        ({"EstimatedRadiographicMagnificationFactor": 1.5}, [0.1 / 1.5, 0.2 / 1.5], DIVIDED),
        ({"EstimatedRadiographicMagnificationFactor": 0.5}, [0.1, 0.2], DETECTOR),
        ({"PixelSpacing": [0.2, 0.1]}, [0.1, 0.2], DETECTOR),
        (
            {"PixelSpacing": [0.2, 0.1], "EstimatedRadiographicMagnificationFactor": 2},
            [0.05, 0.1],
            DIVIDED,
        ),
        ({"PixelSpacing": [0.2, 0.1], "PixelSpacingCalibrationType": "FIDUCIAL"}, [0.1, 0.2], None),
        (
            {
                "PixelSpacing": [0.16, 0.08],
                "PixelSpacingCalibrationType": "GEOMETRY",
                "EstimatedRadiographicMagnificationFactor": 1.25,
            },
            [0.08, 0.16],
            None,
        ),
        ({"PixelSpacing": [0.16, 0.08]}, [0.08, 0.16], None),
        ({"PixelSpacing": [0.16, 0.08], "ImagerPixelSpacing": None}, [0.08, 0.16], None),
        ({"ImagerPixelSpacing": None}, None, None),
    ],
)
def test_sizes_of_pixels(
    attributes: dict[str, object], spacing: list[float] | None, said: str | None, tmp_path: Path
) -> None:
    make_xray(tmp_path / "in", PIXELS, **attributes)
    (entry,) = read(tmp_path / "in", tmp_path / "out").entries
    assert entry.spacing == (None if spacing is None else pytest.approx(spacing, rel=1e-3))
    assert [said in note for note in entry.notes] == ([True] if said else [])
