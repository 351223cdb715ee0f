"""From a folder's files to its layout."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from oncofed.data.images import image_format
from oncofed.data.layouts.base import NO_IMAGE, FolderLayout, with_distinct_cases
from oncofed.data.layouts.beside_dicom import without_pictures
from oncofed.data.layouts.class_folders import class_folders, is_class_folders, look_like_classes
from oncofed.data.layouts.listed import listed
from oncofed.data.layouts.loose import LOOKS_LIKE_MASK, loose_images, separate
from oncofed.data.layouts.manifests import from_manifest
from oncofed.data.layouts.meaning import with_meaning
from oncofed.data.layouts.names import Named
from oncofed.data.layouts.slides import SLIDES_ALONE, slides, unread_regions
from oncofed.data.layouts.tables import TABLES, WORKBOOKS, columns_of, expected_columns
from oncofed.data.layouts.unclassified import unclassified
from oncofed.data.manifest import MANIFEST_FILE
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
) -> FolderLayout:
    """Return the cases of ``root``; the layout is called "nothing" where it has neither a known one nor an image file.

    Args:
        root: the folder.
        files: as ``find_files`` finds them.
        table: a CSV or TSV file with a column ``image``; None looks for one in the folder.
        task: "segmentation", "classification" or "slides", where the user says it.
        names: label value -> name, where the user says it.
        classes: of a classification, where images need no class: names of those that folders may be called as.

    Raises:
        DataError: a manifest or table is there and cannot be used.
    """
    names = names or {}
    tables, others = _tables(root, files)
    layout = _layout(root, files, table, tables, task, names, classes) or FolderLayout("nothing", may_hold_dicom=True)
    for path, reason in others.items():
        if path not in layout.tables:
            layout.left_out.setdefault(path, reason)
    for path in tables:
        if path not in layout.tables:
            layout.left_out.setdefault(path, "table that is not used")
    layout.left_out |= unread_regions(layout, files)
    return with_distinct_cases(layout if layout.task == "slides" else with_meaning(root, files, layout, names))


def _layout(
    root: Path,
    files: Sequence[str],
    table: Path | None,
    tables: Sequence[str],
    task: str | None,
    names: Mapping[int, str],
    classes: Collection[str] | None,
) -> FolderLayout | None:
    if table is not None:
        return listed(root, table, files)
    if MANIFEST_FILE in files:
        return from_manifest(root, files, names)
    if len(tables) > 1:
        raise DataError(f"{root}: found {len(tables)} tables ({', '.join(tables)}). Say which with --labels FILE.")
    if tables:
        return listed(root, root / tables[0], files)
    if task == "slides" or (task is None and any(f.lower().endswith(SLIDES_ALONE) for f in files)):
        return slides(root, files)
    images = [f for f in files if image_format(Path(f))]
    if not images:
        return None
    masks, others = separate(root, [Named(path) for path in images])
    layout = loose_images(root, files, masks, others)
    if task == "classification" and classes is not None:
        drawn = _masks_beside(masks, others, layout)
        layout = unclassified(root, files, [Named(path) for path in images if path not in set(drawn)], drawn, classes)
        return without_pictures(root, files, layout) or layout
    if task != "classification" and (left := without_pictures(root, files, layout)) is not None:
        return left
    # A class may be called as masks are: "seg" of blood cells. It is one where none of its files is an image's mask.
    beside = _masks_beside(masks, others, layout)
    if task == "classification" or (task is None and not beside and is_class_folders(images)):
        return class_folders([path for path in images if path not in set(beside)], beside)
    if task is None and not beside and (classes := look_like_classes(images)):
        layout.remarks.append(
            f"folders whose names may be classes, {len(classes)}: {', '.join(classes[:6])}. Where they are, register "
            "again with --task classification"
        )
    return layout


def _masks_beside(masks: Sequence[Named], images: Sequence[Named], layout: FolderLayout) -> list[str]:
    """Return the paths of the masks that are no images of a class: all where one has an image, used or set aside."""
    alone = {path for path, reason in layout.left_out.items() if reason in {NO_IMAGE, LOOKS_LIKE_MASK}}
    if any(mask.path not in alone for mask in masks):
        return [mask.path for mask in masks]
    # Of those without an image: by their own names, or in a folder beside one that says image.
    beside = {image.folder.rpartition("/")[0] for image in images if image.says_last == "image"}
    return [
        mask.path
        for mask in masks
        if (mask.own_role == "mask" and mask.role_of_folders != "mask")
        or (mask.says_last == "mask" and mask.folder.rpartition("/")[0] in beside)
    ]


def _tables(root: Path, files: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Return the tables of images beside the images, and why each other table is none."""
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
