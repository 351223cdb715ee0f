"""Look up names as people write them in tables.

Programs drop suffixes (ISIC), leading zeros (Excel) and case, and write paths of other machines.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from unicodedata import normalize

from oncofed.data.images import stem

_NUMBER = re.compile(r"(?<![0-9])0+(?=[0-9])")
_OUTSIDE = "lies outside the folder. Expected a path inside it"


class Files:
    """A folder's files, by names that tables may use.

    Args:
        root: the folder.
        paths: inside it.
        folders: searched first for names without a folder.
    """

    def __init__(self, root: Path, paths: Sequence[str], folders: Sequence[str] = ()) -> None:
        self._roots = {os.path.normpath(root), os.path.normpath(root.resolve())}
        self._known = set(paths)
        self._folders = folders
        self._by: list[tuple[Callable[[str], str], dict[str, list[str]]]] = []
        for form in _FORMS:
            named: dict[str, list[str]] = defaultdict(list)
            for path in sorted(paths):
                named[form(path)].append(path)
            self._by.append((form, named))

    def look(self, text: str) -> tuple[str | None, str]:
        """Return the file with a name, or None and why.

        The reason, such as "file is missing", follows "its image ".
        """
        path, foreign = self._inside(text)
        for folder in ("", *self._folders):
            candidate = f"{folder}/{path}" if folder else path
            if candidate in self._known and not foreign:
                return candidate, ""
        found: list[str] = []
        for form, named in self._by:
            found = named.get(form(path), [])
            if found:
                break
        if foreign:
            hint = f": {found[0]} is there" if len(found) == 1 else ""
            return None, f"{_OUTSIDE}{hint}"
        if not found:
            return None, "file is missing. Copy it into the folder, or correct the table"
        if len(found) > 1:
            return None, f"may be {' or '.join(found[:3])}. Write the path inside the folder"
        return found[0], ""

    def is_exact(self, text: str, found: str) -> bool:
        """Return whether a file's name is exactly the text.

        With case and leading zeros; folders and suffix may be missing.
        """
        path = self._inside(text)[0]
        return any(form(path) == form(found) for form in _EXACT)

    def _inside(self, text: str) -> tuple[str, bool]:
        """Return a path inside the folder; whether it was outside."""
        if PureWindowsPath(text).drive:
            return PureWindowsPath(text).name, True
        path = os.path.normpath(text.replace("\\", "/"))
        for root in self._roots:
            if path.startswith(root.rstrip("/") + "/"):
                return path[len(root.rstrip("/")) + 1 :], False
        if PurePosixPath(path).is_absolute() or path.startswith(".."):
            return PurePosixPath(path).name, True
        return path, False


def _plain(text: str) -> str:
    """Return a text in lower case, accents composed."""
    return normalize("NFC", text).casefold()


def _name(path: str) -> str:
    return _plain(path.rsplit("/", 1)[-1])


def _bare(path: str) -> str:
    """Return a path without its suffix, in lower case."""
    folder, slash, name = path.rpartition("/")
    return _plain(f"{folder}{slash}{stem(Path(name)) if Path(name).suffix else name}")


def _bare_name(path: str) -> str:
    return _bare(path).rsplit("/", 1)[-1]


def without_zeros(text: str) -> str:
    """Return a name in lower case, without leading zeros."""
    return _NUMBER.sub("", _plain(text))


def _exact(path: str) -> str:
    return normalize("NFC", path)


def _exact_bare(path: str) -> str:
    folder, slash, name = path.rpartition("/")
    return _exact(f"{folder}{slash}{stem(Path(name)) if Path(name).suffix else name}")


_EXACT: tuple[Callable[[str], str], ...] = (
    _exact,
    _exact_bare,
    lambda path: _exact(path.rsplit("/", 1)[-1]),
    lambda path: _exact_bare(path).rsplit("/", 1)[-1],
)
# From strict to loose; the first that finds something decides: A3 is A3.png and not a3.png.
_FORMS: tuple[Callable[[str], str], ...] = (
    *_EXACT,
    _plain,
    _bare,
    _name,
    _bare_name,
    lambda path: without_zeros(_bare(path)),
    lambda path: without_zeros(_bare_name(path)),
)
