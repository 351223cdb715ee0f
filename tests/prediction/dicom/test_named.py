"""How people know a series."""

from __future__ import annotations

from pathlib import Path

import pydicom
import pytest

from dicoms import make_series
from oncofed.prediction.dicom.series_label import series_label


@pytest.mark.parametrize(
    ("number", "description", "protocol", "said"),
    [
        ("4", "T1 post", "MPRAGE", "series 4, T1 post"),
        ("4", "", "MPRAGE", "series 4, MPRAGE"),
        ("", "T1\x07 post", "", "T1  post"),
        ("7", "", "", "series 7"),
        ("", "", "", None),
    ],
)
def test_a_series_is_called_as_its_header_says(
    tmp_path: Path, number: str, description: str, protocol: str, said: str | None
) -> None:
    make_series(tmp_path)
    file = next(path for path in sorted(tmp_path.rglob("*")) if path.is_file())
    header = pydicom.dcmread(file)
    header.SeriesNumber, header.SeriesDescription, header.ProtocolName = number or None, description, protocol
    header.save_as(file)
    broken = tmp_path / "broken.dcm"
    broken.write_bytes(b"none")
    assert series_label([tmp_path / "gone.dcm", broken, file]) == said
    assert series_label([]) is None
