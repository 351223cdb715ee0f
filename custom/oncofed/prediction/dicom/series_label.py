"""A short name of a series for people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pydicom
from pydicom.errors import InvalidDicomError

from oncofed.errors import one_line

_LONGEST = 64  # longest description that DICOM allows
_TAGS = ["SeriesNumber", "SeriesDescription", "ProtocolName"]


def series_label(files: Sequence[Path]) -> str | None:
    """Return a series' name, such as "series 4, T1 post".

    Args:
        files: of the series; the first readable one is used. Empty if the image is not DICOM.

    Returns:
        The name; None if the header has none.
    """
    for file in files:
        try:
            header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=_TAGS)
        except (OSError, InvalidDicomError, ValueError, AttributeError):
            continue
        number = str(header.get("SeriesNumber") or "").strip()
        text = str(header.get("SeriesDescription") or header.get("ProtocolName") or "").strip()
        parts = [f"series {one_line(number, _LONGEST)}" if number else "", one_line(text, _LONGEST)]
        return ", ".join(part for part in parts if part) or None
    return None
