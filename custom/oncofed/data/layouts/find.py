"""From a folder's files to its layout."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from oncofed.data.images import image_format
from oncofed.data.layouts.base import NO_IMAGE, FolderLayout, with_distinct_cases
from oncofed.data.layouts.beside_dicom import without_pictures
from oncofed.data.layouts.class_folders import class_folders, is_class_folders, look_like_classes
from oncofed.data.layouts.kinds import NOTHING
from oncofed.data.layouts.listed import listed
from oncofed.data.layouts.loose import LOOKS_LIKE_MASK, loose_images, separate
from oncofed.data.layouts.manifests import from_manifest
from oncofed.data.layouts.meaning import with_meaning
from oncofed.data.layouts.names import Named
from oncofed.data.layouts.slides import SLIDES_ALONE, slides, unread_regions
from oncofed.data.layouts.tables import TABLES, WORKBOOKS, columns_of, expected_columns
from oncofed.data.layouts.unclassified import unclassified
from oncofed.data.manifest import MANIFEST_FILE
from oncofed.data.target_columns import TableTargets
from oncofed.errors import DataError

_OF_PATIENTS = (
    "table of patients, studies or series: for DICOM, name it with --labels FILE; for other images, add a column image"
)


def find_layout(
    root: Path,
    files: Sequence[str],
    table: Path | None,
    task: str | None,
    names: Mapping[int, str] | None = None,
    classes: Collection[str] | None = None,
    targets: TableTargets | None = None,
) -> FolderLayout:
    """Return the layout of ``root``.

    The layout "nothing" has no known structure and no image file.

    Args:
        root: the folder.
        files: from ``find_files``.
        table: a CSV or TSV file with a column ``image``; None looks for one in the folder.
        task: "segmentation", "classification" or "slides", if the user states it.
        names: label value -> name, if the user states it.
        classes: of a classification whose images need no class: class names that folders may have.
        targets: definitions of the table's targets.

    Raises:
        DataError: there is a manifest or table that cannot be used.
    """
    names = names or {}
    tables, others = _tables(root, files)
    folder = _Folder(root, files, tables, table=table, task=task, names=names, classes=classes, targets=targets)
    layout = next(filter(None, (find(folder) for find in _FINDERS)), None) or FolderLayout(NOTHING)
    for path, reason in others.items():
        if path not in layout.tables:
            layout.left_out.setdefault(path, reason)
    for path in tables:
        if path not in layout.tables:
            layout.left_out.setdefault(path, "table that is not used")
    layout.left_out |= unread_regions(layout, files)
    return with_distinct_cases(layout if layout.task == "slides" else with_meaning(root, files, layout, names))


@dataclass(frozen=True)
class _Folder:
    """A folder whose layout is to be found.

    With the user's statements; see ``find_layout``.

    Attributes:
        tables: paths of tables of images in the folder.
    """

    root: Path
    files: Sequence[str]
    tables: Sequence[str]
    table: Path | None
    task: str | None
    names: Mapping[int, str]
    classes: Collection[str] | None
    targets: TableTargets | None

    @cached_property
    def images(self) -> list[str]:
        """Paths of the image files."""
        return [path for path in self.files if image_format(Path(path))]

    @cached_property
    def separated(self) -> tuple[list[Named], list[Named]]:
        """Masks and images."""
        return separate(self.root, [Named(path) for path in self.images])

    @cached_property
    def loose(self) -> FolderLayout:
        """Layout by names and places of the images alone."""
        return loose_images(self.root, self.files, *self.separated)

    @cached_property
    def masks_beside(self) -> list[str]:
        """Paths of masks that are not images of a class."""
        return _masks_beside(*self.separated, self.loose)


def _table(folder: _Folder) -> FolderLayout | None:
    return None if folder.table is None else listed(folder.root, folder.table, folder.files, folder.targets)


def _manifest(folder: _Folder) -> FolderLayout | None:
    return from_manifest(folder.root, folder.files, folder.names) if MANIFEST_FILE in folder.files else None


def _own_table(folder: _Folder) -> FolderLayout | None:
    tables = folder.tables
    if len(tables) > 1:
        raise DataError(
            f"{folder.root}: found {len(tables)} tables ({', '.join(tables)}). Say which with --labels FILE."
        )
    return listed(folder.root, folder.root / tables[0], folder.files, folder.targets) if tables else None


def _slides(folder: _Folder) -> FolderLayout | None:
    alone = folder.task is None and any(path.lower().endswith(SLIDES_ALONE) for path in folder.files)
    return slides(folder.root, folder.files) if alone or folder.task == "slides" else None


def _unclassified(folder: _Folder) -> FolderLayout | None:
    """Images whose class is to be predicted.

    A class may be named like a mask: "seg" of blood cells.
    """
    if not folder.images or folder.task != "classification" or folder.classes is None:
        return None
    drawn = folder.masks_beside
    images = [Named(path) for path in folder.images if path not in set(drawn)]
    layout = unclassified(folder.root, folder.files, images, drawn, folder.classes)
    return without_pictures(folder.root, folder.files, layout) or layout


def _beside_dicom(folder: _Folder) -> FolderLayout | None:
    if not folder.images or folder.task == "classification":
        return None
    return without_pictures(folder.root, folder.files, folder.loose)


def _class_folders(folder: _Folder) -> FolderLayout | None:
    """One folder per class.

    A folder named like masks is a class if none of its files is an image's mask.
    """
    masks = folder.masks_beside if folder.images else []
    is_requested = folder.task == "classification" and bool(folder.images)
    if is_requested or (folder.task is None and folder.images and not masks and is_class_folders(folder.images)):
        return class_folders([path for path in folder.images if path not in set(masks)], masks)
    return None


def _loose(folder: _Folder) -> FolderLayout | None:
    if not folder.images:
        return None
    layout = folder.loose
    if folder.task is None and not folder.masks_beside and (classes := look_like_classes(folder.images)):
        layout.remarks.append(
            f"folders whose names may be classes, {len(classes)}: {', '.join(classes[:6])}. Where they are, register "
            "again with --task classification"
        )
    return layout


# The first that recognises a folder decides.
_FINDERS: tuple[Callable[[_Folder], FolderLayout | None], ...] = (
    _table,
    _manifest,
    _own_table,
    _slides,
    _unclassified,
    _beside_dicom,
    _class_folders,
    _loose,
)


def _masks_beside(masks: Sequence[Named], images: Sequence[Named], layout: FolderLayout) -> list[str]:
    """Return masks that are not images of a class.

    All of them if one has an image, used or set aside.
    """
    alone = {path for path, reason in layout.left_out.items() if reason in {NO_IMAGE, LOOKS_LIKE_MASK}}
    if any(mask.path not in alone for mask in masks):
        return [mask.path for mask in masks]
    # Without images: those named as masks, or in a folder next to one of images.
    image_parents = {image.folder.rpartition("/")[0] for image in images if image.says_last == "image"}
    return [
        mask.path
        for mask in masks
        if (mask.own_role == "mask" and mask.role_of_folders != "mask")
        or (mask.says_last == "mask" and mask.folder.rpartition("/")[0] in image_parents)
    ]


def _tables(root: Path, files: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Return tables of images, and why others are none."""
    found, others = [], {}
    for path in files:
        lower = path.lower()
        if lower.endswith(WORKBOOKS):
            others[path] = "workbook: to be read as a table of images, save it as CSV (UTF-8)"
        if not lower.endswith(TABLES):
            continue
        columns = columns_of(root / path)
        if columns and "image" in columns and (len(columns) > 1 or not lower.endswith(".txt")):
            if "/" in path:
                others[path] = "table in a folder below: to read it, name it with --labels FILE"
            else:
                found.append(path)
        elif columns and {"patient", "study", "series"} & set(columns) and "label" in columns:
            others[path] = _OF_PATIENTS
        elif columns is None and not lower.endswith(".txt"):
            others[path] = "table that cannot be read: save it as CSV (UTF-8)"
        elif columns and not lower.endswith(".txt"):
            others[path] = f"table of which no image is read ({expected_columns(columns)})"
    return found, others
