"""Find the cases of a folder, by its layout.

Decathlon: Antonelli et al. 2022. nnU-Net raw: Isensee et al., Nature Methods 2021. BIDS names a patient ``sub-X``, TCGA
by the first twelve letters of its barcodes. Pixels are read only of a few files whose names do not tell whether they
are masks.
"""

from __future__ import annotations

from oncofed.data.layouts.base import FolderLayout, Item, Part, patient_of
from oncofed.data.layouts.class_table import ClassTable, Stated, lists_images
from oncofed.data.layouts.find import find_layout
from oncofed.data.layouts.names import IMAGE_FOLDERS, LABEL_FOLDERS, kept_parts
from oncofed.data.layouts.slides import SLIDES
from oncofed.data.layouts.tables import read_table

__all__ = [
    "IMAGE_FOLDERS",
    "LABEL_FOLDERS",
    "SLIDES",
    "ClassTable",
    "FolderLayout",
    "Item",
    "Part",
    "Stated",
    "find_layout",
    "kept_parts",
    "lists_images",
    "patient_of",
    "read_table",
]
