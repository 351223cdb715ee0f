"""Finds complete inputs in a watched folder."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from oncofed.data.dicom.header_types import BrokenFile, ObjectHeader
from oncofed.data.dicom.headers import looks_like_dicom, read_header
from oncofed.prediction.watching.inbox import Inbox

# Suffixes that programs use while they still write a file.
_PARTIAL = (".tmp", ".temp", ".part", ".partial", ".crdownload", ".filepart")
_DIGEST_BYTES = 12
# Size, mtime and ctime in ns. A copy may keep its old mtime, so ctime is needed too.
_Stamp = tuple[int, int, int]
_Stamps = dict[Path, _Stamp]


@dataclass(frozen=True)
class WatchItem:
    """One complete input.

    Attributes:
        name: unique and stable within its folder.
        paths: files, or one folder.
        fingerprint: changes whenever one of its files does.
        files: number of files.
    """

    name: str
    paths: tuple[Path, ...]
    fingerprint: str
    files: int


@dataclass(frozen=True)
class _Candidate:
    """Files that belong together; partial: some still have temporary names."""

    paths: tuple[Path, ...]
    stamps: _Stamps
    partial: bool = False


class FolderScanner:
    """Scans a folder for inputs that stopped changing.

    Each subfolder is one input, and so is each file. Loose DICOM files are one input per series, as in an inbox.

    Args:
        folder: watched folder.
        settle: seconds without a change after which an input counts as complete.
        clock: monotonic clock in seconds.
    """

    def __init__(self, folder: Path, settle: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder, self._settle, self._clock = folder, settle, clock
        self._since: dict[str, tuple[_Stamps, float]] = {}
        self._series: dict[Path, tuple[_Stamp, str]] = {}
        self.unsettled: list[str] = []
        self.open: list[str] = []

    def ready_items(self) -> list[WatchItem]:
        """Scan the folder and return complete inputs, oldest first.

        Afterwards ``unsettled`` names inputs that changed recently, and ``open`` those that stopped changing but are
        incomplete: temporary names, and series whose association broke off.

        Raises:
            OSError: the folder cannot be read.
        """
        now, since = self._clock(), {}
        found: list[tuple[int, WatchItem]] = []
        self.unsettled, self.open = [], []
        for name, candidate in sorted(self._candidates()):
            before = self._since.get(name)
            since[name] = before if before and before[0] == candidate.stamps else (candidate.stamps, now)
            if now - since[name][1] < self._settle:
                self.unsettled.append(name)
            elif candidate.partial:
                self.open.append(name)
            elif visible := _visible(candidate.stamps, self._folder):
                newest = max(changed for _, _, changed in visible.values())
                found.append(
                    (newest, WatchItem(name, candidate.paths, _fingerprint(visible, self._folder), len(visible)))
                )
        self._since = since
        return [item for _, item in sorted(found, key=lambda item: (item[0], item[1].name))]

    def _candidates(self) -> Iterator[tuple[str, _Candidate]]:
        loose: dict[str, _Stamps] = defaultdict(dict)
        inbox = Inbox.is_inbox(self._folder)
        for path in self._folder.iterdir():
            if path.name.startswith("."):
                continue
            if path.is_dir():
                for folder in _folders(path) if inbox else (path,):
                    stamps = dict(_stamps(folder.rglob("*")))
                    partial = Inbox.is_incomplete(folder) if inbox else any(_is_partial(file) for file in stamps)
                    yield folder.relative_to(self._folder).as_posix(), _Candidate((folder,), stamps, partial)
            else:
                for file, stamp in _stamps([path]):
                    loose[path.name if _is_partial(path) else self._loose_name(file, stamp)][file] = stamp
        self._series = {file: known for file, known in self._series.items() if file.exists()}
        for name, stamps in loose.items():
            yield name, _Candidate(tuple(sorted(stamps)), stamps, any(_is_partial(file) for file in stamps))

    def _loose_name(self, file: Path, stamp: _Stamp) -> str:
        """Return the name of a file's series, or its own."""
        known = self._series.get(file)
        if known is None or known[0] != stamp:
            name = file.name
            with contextlib.suppress(OSError):
                if looks_like_dicom(file):
                    header = read_header(file)
                    series = header.series if isinstance(header, ObjectHeader | BrokenFile) else ""
                    name = f"series-{_digest(series.encode())}" if series else name
            self._series[file] = known = stamp, name
        return known[1]


def _folders(path: Path) -> Iterable[Path]:
    return [entry for entry in path.iterdir() if entry.is_dir()]


def _stamps(paths: Iterable[Path]) -> Iterator[tuple[Path, _Stamp]]:
    for path in paths:
        # A file that vanished meanwhile was temporary.
        with contextlib.suppress(FileNotFoundError):
            if path.is_file():
                found = path.stat()
                yield path, (found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _is_partial(path: Path) -> bool:
    return path.name.lower().endswith(_PARTIAL)


def _visible(stamps: _Stamps, folder: Path) -> _Stamps:
    """Drop hidden files, which belong to a system or program."""
    return {
        path: stamp
        for path, stamp in stamps.items()
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }


def _fingerprint(stamps: _Stamps, folder: Path) -> str:
    # Without ctime: changed permissions or hard links do not make it another file.
    lines = [f"{path.relative_to(folder)}\t{size}\t{modified}" for path, (size, modified, _) in sorted(stamps.items())]
    return _digest("\n".join(lines).encode("utf-8", "surrogateescape"))


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=_DIGEST_BYTES).hexdigest()
