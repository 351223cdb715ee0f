"""Tell folders of masks from misleading folder names."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from oncofed.data.layouts.base import NO_IMAGE
from oncofed.data.layouts.content import Look
from oncofed.data.layouts.names import Named, Words

_LOOKED_AT = 3
_MOST_ROUNDS = 4
_MOST_KINDS = 24


def with_quiet_folders(root: Path, named: Sequence[Named]) -> list[Named]:
    """Return files, with misleading folders' words ignored.

    A folder's word counts if the files below it match images elsewhere by name or place: ``labels/7`` and ``images/7``,
    ``7/segmentations/liver`` and ``7/ct``. In other folders, such as ``Brain_Seg_Challenge`` with ``7`` and ``7_seg``,
    a few files are inspected.

    Args:
        root: the folder.
        named: its image files.
    """
    named = list(named)
    look = Look(root)
    quiet: frozenset[Words] = frozenset()
    for _ in range(_MOST_ROUNDS):  # if an inner folder's word is misleading, an outer one's may count
        more = _quiet(look, named)
        if not more:
            break
        quiet |= more
        named = [Named(each.path, quiet) for each in named]
    return named


def _quiet(look: Look, named: Sequence[Named]) -> frozenset[Words]:
    """Return the words of mask folders that hold images."""
    by_folder: dict[Words, list[Named]] = defaultdict(list)
    for each in named:
        if each.role == "mask" and each.own_role != "mask":
            by_folder[each.telling_folder].append(each)
    if not by_folder:
        return frozenset()
    with_mask = {(each.folder, each.case) for each in named if each.own_role == "mask"}
    images = [each for each in named if each.role != "mask" and (each.folder, each.case) not in with_mask]
    keys, places = {each.key for each in images} - {()}, {each.place for each in images} - {()}
    unsure = {}
    for kind, files in by_folder.items():
        elsewhere = sum(each.key in keys or each.place in places for each in files)
        both = sum((each.folder, each.case) in with_mask for each in files)
        if elsewhere * 2 < len(files) or both * 2 > len(files):
            unsure[kind] = files
    groups = [([kind], files) for kind, files in unsure.items()]
    if len(groups) > _MOST_KINDS:  # one folder per patient
        groups = [(list(unsure), [each for files in unsure.values() for each in files])]
    return frozenset(kind for kinds, files in groups if not any(map(look.is_mask, _some(files))) for kind in kinds)


def _some(files: Sequence[Named]) -> Iterable[Named]:
    return files[:: max(1, len(files) // _LOOKED_AT)][:_LOOKED_AT]


def all_taken_for_masks(left_out: dict[str, str]) -> str:
    """Return a message if all images were taken for masks.

    Args:
        left_out: path of a file -> why it is not used.
    """
    masks = [Named(path) for path, reason in left_out.items() if reason == NO_IMAGE]
    folders = sorted({mask.folder_of_masks for mask in masks if mask.own_role != "mask"} - {""})
    if not folders:
        return ""
    shown = ", ".join(folders[:3]) + (", …" if len(folders) > 3 else "")
    return f"all {len(masks)} image files were taken for masks because of the folder {shown}"
