"""Leave out pictures next to DICOM: icons, thumbnails."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from oncofed.data.dicom.headers import looks_like_dicom
from oncofed.data.images import image_format
from oncofed.data.layouts.base import FolderLayout
from oncofed.data.layouts.kinds import NOTHING

BESIDE_DICOM = "picture beside DICOM"
_PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif")
_LOOKED_AT = 64


def without_pictures(root: Path, files: Sequence[str], layout: FolderLayout) -> FolderLayout | None:
    """Return a layout without its unlabelled pictures.

    None if it has none, or the folder is a dataset of pictures.

    Args:
        root: the folder.
        files: all of it.
        layout: of its images in files other than DICOM.
    """
    pictures = [path for path in files if path.lower().endswith(_PICTURES)]
    if not pictures or len(pictures) > _count_dicom(root, files, len(pictures)):
        return None
    masked = {path for item in layout.items if item.masks for path in (*item.images, *item.masks)}
    spare = set(pictures) - masked
    layout.items = [item for item in layout.items if not spare & set(item.images)]
    layout.bad = [case for case in layout.bad if case.source not in spare]
    layout.left_out |= dict.fromkeys(sorted(spare), BESIDE_DICOM)
    if not layout.items and not layout.bad:
        layout.kind = NOTHING
    return layout


def _count_dicom(root: Path, files: Sequence[str], fewest: int) -> float:
    """Estimate how many files are DICOM, from a sample.

    0 if they are fewer than ``fewest``.
    """
    others = [path for path in files if not image_format(Path(path))]
    if len(others) < fewest:
        return 0
    looked = others[:: max(1, len(others) // _LOOKED_AT)]
    return len(others) * sum(_is_dicom(root / path) for path in looked) / len(looked)


def _is_dicom(path: Path) -> bool:
    try:
        return looks_like_dicom(path)
    except OSError:
        return False
