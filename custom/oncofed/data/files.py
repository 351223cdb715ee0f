"""The use of each file, or why it has none."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePath, PurePosixPath
from typing import Literal, get_args

from oncofed.atomic import write_whole
from oncofed.data.grouping import named
from oncofed.data.images import image_format

FILES_TABLE = "files.csv"  # in the dataset's folder; it names files of the source, and stays at the site
Use = Literal["image", "label", "regions", "features", "table"]
USES: tuple[Use, ...] = get_args(Use)
LEFT_OUT = "left out"
# Suffixes of unfinished downloads, by browsers and other programs.
_UNFINISHED = {".part", ".partial", ".crdownload", ".filepart", ".download", ".aria2", ".opdownload"}


@dataclass(frozen=True)
class FileUse:
    """The use of one file.

    Attributes:
        path: inside the registered folder.
        use: what it is used as; None: it is left out.
        case: names of the cases that it belongs to, of many only the first; None: no case.
        reason: why it is left out; empty where it is used.
    """

    path: str
    use: Use | None
    case: str | None = None
    reason: str = ""


class Files:
    """The files of a folder, and their uses.

    The first entry for a file stays, but a use replaces a reason: a file that one case cannot use may be another's.

    Args:
        paths: every file seen, inside the folder.
        layout: name of the folder's layout, for the default reason.
    """

    def __init__(self, paths: Iterable[str], layout: str = "") -> None:
        self._paths = list(paths)
        self._layout = layout
        self._known: dict[str, FileUse] = {}
        self._cases: dict[str, dict[str, None]] = {}  # by path, in their order

    def use(self, path: str, use: Use, case: str | None = None) -> None:
        """Record that a file is used."""
        before = self._known.get(path)
        if before is None or before.use is None:
            self._known[path] = FileUse(path, use, case)
        if case:
            cases = self._cases.setdefault(path, {})
            cases[case] = None
            if len(cases) > 1:
                self._known[path] = replace(self._known[path], case=named(list(cases)))

    def leave_out(self, path: str, reason: str, case: str | None = None) -> None:
        """Record that a file is not used, and why.

        Args:
            path: of the file.
            reason: what was found, and what to do if anything; the same for files of one kind.
            case: set aside with it.
        """
        self._known.setdefault(path, FileUse(path, None, case, reason))

    def __iter__(self) -> Iterator[FileUse]:
        """Yield the use of each file, in the folder's order."""
        for path in self._paths:
            yield self._known.get(path) or FileUse(path, None, None, self._unknown(path))

    def counts(self) -> dict[str, int]:
        """Return the number of files by use or left out."""
        found = Counter(file.use or LEFT_OUT for file in self)
        return {use: found[use] for use in (*USES, LEFT_OUT) if found[use]}

    def reasons(self) -> dict[str, int]:
        """Return reason -> number of files left out for it.

        Files of cases that were set aside do not count.
        """
        return dict(Counter(file.reason for file in self if file.use is None and file.case is None))

    def write(self, folder: Path) -> None:
        """Write ``folder/files.csv``: path, use, case, reason."""
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(["path", "use", "case", "reason"])
        writer.writerows([f.path, f.use or LEFT_OUT, f.case or "", f.reason] for f in self)
        write_whole(folder / FILES_TABLE, text.getvalue())

    def _unknown(self, path: str) -> str:
        name = PurePosixPath(path)
        suffix = name.suffix.lower()
        if image_format(Path(path)):
            return f"image or mask that nothing in the layout ({self._layout}) names"
        if suffix in {".csv", ".tsv"}:
            return "table that says nothing about the images (no column image)"
        return no_image(name)


def no_image(path: PurePath) -> str:
    """Return why a file without an image is left out."""
    suffix = path.suffix.lower()
    if suffix in _UNFINISHED or (suffix == ".tmp" and image_format(Path(path.stem))):
        return f"unfinished download ({suffix}): download it again, or copy it again"
    return f"file that is no image ({path.suffix or 'no suffix'})"


def read_examples(folder: Path, count: int) -> dict[str, list[str]]:
    """Return reason -> examples of files left out.

    From a dataset's ``files.csv``.
    """
    found: dict[str, list[str]] = {}
    path = folder / FILES_TABLE
    if not path.is_file():
        return found
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["use"] == LEFT_OUT and not row["case"]:
                paths = found.setdefault(row["reason"], [])
                paths += [row["path"]] if len(paths) < count else []
    return found


def image_files(folder: Path) -> dict[str, list[str]]:
    """Return case -> files of its image, by ``files.csv``.

    A file that several cases share counts for none of them: its row names them together.
    """
    found: dict[str, list[str]] = {}
    path = folder / FILES_TABLE
    if path.is_file():
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                if row["use"] == "image" and row["case"]:
                    found.setdefault(row["case"], []).append(row["path"])
    return found
