"""Report unreadable files that may be slices of a series.

A missing last slice leaves no gap, and an unreadable file does not tell its series. The likeliest series are those in
its folder with similar file names.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import PurePosixPath

from oncofed.data.dicom.stacks import Stack
from oncofed.data.grouping import named


def note_unread(stacks: Sequence[Stack], broken: Iterable[str], foreign: Iterable[str]) -> list[Stack]:
    """Return images, with notes where a slice may be missing.

    Args:
        stacks: the images.
        broken: paths of DICOM files that cannot be read.
        foreign: paths of files that are no DICOM by their first bytes; those named like slices count.
    """
    files = {path: True for path in broken if PurePosixPath(path).name.upper() != "DICOMDIR"}
    files |= dict.fromkeys(foreign, False)
    volumes = _by_folder(stacks) if files else {}
    lacking: dict[int, list[str]] = defaultdict(list)
    for path, is_dicom in files.items():
        neighbours = volumes.get(_folder(path), {})
        alike = [number for number, patterns in neighbours.items() if _pattern(path) in patterns]
        for number in alike or (neighbours if is_dicom else ()):
            lacking[number].append(path)
    return [
        replace(stack, notes=(*stack.notes, _note(lacking[number]))) if number in lacking else stack
        for number, stack in enumerate(stacks)
    ]


def _by_folder(stacks: Sequence[Stack]) -> dict[str, dict[int, set[str]]]:
    """Return folder -> volume -> patterns of its files' names."""
    found: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    for number, stack in enumerate(stacks):
        if stack.kind == "volume" and len(stack.slices) > 1:
            for item in stack.slices:
                found[_folder(item.path)][number].add(_pattern(item.path))
    return found


def _note(paths: Sequence[str]) -> str:
    what = "a file of its folder" if len(paths) == 1 else f"{len(paths)} files of its folder"
    return f"{what} cannot be read: {named(sorted(paths))}; slices at its end may be missing"


def _folder(path: str) -> str:
    return str(PurePosixPath(path).parent)


def _pattern(path: str) -> str:
    """Return a file's name without its numbers."""
    return re.sub(r"[0-9]+", "0", PurePosixPath(path).name.casefold())
