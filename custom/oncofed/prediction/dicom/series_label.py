"""How people know a series: its number and description."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pydicom
from pydicom.errors import InvalidDicomError

from oncofed.errors import one_line

_LONGEST = 64  # of a description: what DICOM allows
_TAGS = ["SeriesNumber", "SeriesDescription", "ProtocolName"]


def series_label(files: Sequence[Path]) -> str | None:
    """Return a series as people know it, such as "series 4, T1 post"; None where its header does not say.

    Args:
        files: of the series; the first one that can be read tells. None of an image that is no DICOM.
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
