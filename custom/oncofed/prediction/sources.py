"""What a model is to read: cases gathered from files, folders, DICOM or a registered dataset."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from oncofed.data.cases import Case
from oncofed.data.manifest import Entry


@dataclass(frozen=True)
class Source:
    """One case to predict.

    Attributes:
        name: of the case, unique; names the output files.
        case: whose label is the reference where the dataset has one that the job can use, else 0.
        entry: what registering knows of it.
        series: DICOM files of the image, where it came from DICOM; else empty.
        labelled: the case has a label that the job can use.
    """

    name: str
    case: Case
    entry: Entry
    series: tuple[Path, ...] = ()
    labelled: bool = False
