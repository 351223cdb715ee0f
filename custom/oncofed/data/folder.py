"""The files of a folder to be read."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

HIDDEN, HIDDEN_FOLDER = "hidden file (its name begins with a dot)", "hidden folder (its name begins with a dot)"


@dataclass
class Found:
    """The files in a folder, at any depth.

    Attributes:
        files: path of each file, inside the folder, each folder sorted by name.
        dangling: those of them that are broken links.
        left_out: path not looked at -> why; a folder's path ends with "/", and its files are not counted.
    """

    files: list[str] = field(default_factory=list)
    dangling: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)


def find_files(root: Path) -> Found:
    """Return the files under ``root``, each link followed once."""
    found = Found()
    seen: set[tuple[int, int]] = set()
    pending = [root]
    start = len(str(root).rstrip("/")) + 1
    while pending:
        folder = pending.pop()
        inside = f"{str(folder)[start:] or '.'}/"
        try:
            status = folder.stat()
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            found.left_out[inside] = f"folder that cannot be listed ({error.strerror})"
            continue
        if (status.st_dev, status.st_ino) in seen:
            found.left_out[inside] = "link to a folder that is read in another place"
            continue
        seen.add((status.st_dev, status.st_ino))
        pending += [Path(entry.path) for entry in _sorted_in(entries, start, found)]
    return found


def _sorted_in(entries: list[os.DirEntry[str]], start: int, found: Found) -> Iterator[os.DirEntry[str]]:
    """Sort a folder's entries into ``found``; yield its folders."""
    for entry in entries:
        path = entry.path[start:]
        is_folder = _is(entry.is_dir)
        mark = "/" if is_folder else ""
        if entry.name.startswith("."):
            found.left_out[_shown(path) + mark] = HIDDEN_FOLDER if is_folder else HIDDEN
        elif _shown(entry.name) != entry.name:
            found.left_out[_shown(path) + mark] = "name that is not in UTF-8; rename it"
        elif is_folder:
            yield entry
        elif _is(entry.is_file):
            found.files.append(path)
        elif entry.is_symlink():
            found.files.append(path)
            found.dangling.append(path)
        else:
            found.left_out[path] = "pipe, socket or device"


def _is(kind: Callable[[], bool]) -> bool:
    try:
        return kind()
    except OSError:  # a link to itself
        return False


def _shown(path: str) -> str:
    """Return a path with bytes that are not UTF-8 escaped."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
