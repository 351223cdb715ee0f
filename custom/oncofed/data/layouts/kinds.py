"""The layouts of folders, and their properties.

To add one, add it here, and its function to ``find._FINDERS``.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LayoutKind:
    """A layout.

    Attributes:
        name: for people, in the dataset's description.
        no_label: why a case has no label; ``{labels}`` stands for the folder of labels.
        no_regions: the same for slides.
        lists_cases: a table or manifest lists the cases; files are not paired by name.
        may_hold_dicom: files that the layout does not use may be DICOM.
        unread_regions: why regions that no case uses are not read; empty: by the task.
    """

    name: str
    no_label: str = "no label was found for it"
    no_regions: str = "no table and no regions say its label"
    lists_cases: bool = False
    may_hold_dicom: bool = False
    unread_regions: str = ""


_NOT_LISTED = "dataset.json names no label for it"
_NO_ROW = "its row of the table has no label"
_NO_ROW_OF_SLIDE = "no row of a table says its label"
_NO_MASK = "no mask has its name"
_NO_LOOSE_MASK = f"{_NO_MASK} (with _seg, _label or _mask behind it)"
_NO_CLASS = "it lies in no folder of a class"

DECATHLON = LayoutKind("Decathlon", no_label=_NOT_LISTED, no_regions=_NOT_LISTED, lists_cases=True)
NNUNET = LayoutKind("nnU-Net raw", no_label="{labels} holds no file of its name")
TABLE = LayoutKind(
    "table",
    no_label=_NO_ROW,
    no_regions=_NO_ROW,
    lists_cases=True,
    unread_regions="regions that no row of the table names: add them to its column label",
)
SLIDES = LayoutKind("slides", may_hold_dicom=True)
FEATURES = LayoutKind("features", no_label=_NO_ROW_OF_SLIDE, no_regions=_NO_ROW_OF_SLIDE)
WITH_MASKS = LayoutKind("images with masks", no_label=_NO_MASK, no_regions=_NO_MASK, may_hold_dicom=True)
LOOSE = LayoutKind("loose images", no_label=_NO_LOOSE_MASK, no_regions=_NO_LOOSE_MASK, may_hold_dicom=True)
CLASS_FOLDERS = LayoutKind("one folder a class", no_label=_NO_CLASS, no_regions=_NO_CLASS)
NOTHING = LayoutKind("nothing", may_hold_dicom=True)
DICOM = LayoutKind("DICOM", may_hold_dicom=True)
