"""``pulled.csv``: the log of what was pulled, one line for each object and each change.

It holds identifiers of the archive, and is readable by its owner alone. The last line of an object is the one that
counts. A line that was being written when the machine stopped is removed, and its object is fetched again.
"""

from __future__ import annotations

import csv
import io
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from oncofed.errors import DataError
from oncofed.private_files import open_private

LOG_FILE = "pulled.csv"
State = Literal["kept", "left out", "vanished"]
_SYNC_SECONDS = 1.0


@dataclass(frozen=True)
class Line:
    """One line of the log.

    Attributes:
        time: UTC, ISO 8601.
        state: kept; left out: fetched, and of no use or not allowed in here; vanished: the archive has it no more.
        patient: keyed digest of the PatientID that the archive had then.
        study: its UID in the archive.
        series: its UID in the archive.
        instance: its UID in the archive.
        sha256: of the object as the archive sent it.
        file: where it is, inside the folder; empty: it is not kept.
        bytes: of that file.
        file_sha256: of that file.
        note: why it was left out.
    """

    time: str
    state: State
    patient: str
    study: str
    series: str
    instance: str
    sha256: str
    file: str = ""
    bytes: int = 0
    file_sha256: str = ""
    note: str = ""


_COLUMNS = [field.name for field in fields(Line)]


class PulledLog:
    """The log of a folder.

    Several threads may add lines.

    Args:
        folder: that the log lies in.

    Raises:
        DataError: it is no such log.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self.path = folder, folder / LOG_FILE
        self._lock, self._synced = threading.Lock(), time.monotonic()
        self._lines: dict[str, dict[str, Line]] = {}  # series -> instance -> its last line
        self._read()
        self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        if not os.fstat(self._file).st_size:
            self._write(_COLUMNS)

    def close(self) -> None:
        """Sync it to disk."""
        with self._lock:
            os.fsync(self._file)
            os.close(self._file)

    def add(self, line: Line) -> None:
        """Append a line.

        Raises:
            OSError: it cannot be written.
        """
        with self._lock:
            self._lines.setdefault(line.series, {})[line.instance] = line
            self._write([str(getattr(line, name)) for name in _COLUMNS])
            if time.monotonic() - self._synced > _SYNC_SECONDS:
                os.fsync(self._file)
                self._synced = time.monotonic()

    def series(self, uid: str) -> Mapping[str, Line]:
        """Return the last line of each instance of a series."""
        with self._lock:
            return dict(self._lines.get(uid, {}))

    def line(self, series: str, instance: str) -> Line | None:
        """Return the last line of an instance."""
        with self._lock:
            return self._lines.get(series, {}).get(instance)

    def all_series(self) -> dict[str, str]:
        """Return the study of each series."""
        with self._lock:
            return {uid: next(iter(lines.values())).study for uid, lines in self._lines.items()}

    def forget_lost_files(self) -> int:
        """Forget kept objects whose file is gone or of another size; return their number.

        A power cut may have lost what was written last.
        """
        lost = [
            line
            for lines in self._lines.values()
            for line in lines.values()
            if line.state == "kept" and self._lost(line)
        ]
        for line in lost:
            del self._lines[line.series][line.instance]
        self._lines = {uid: lines for uid, lines in self._lines.items() if lines}
        return len(lost)

    def _lost(self, line: Line) -> bool:
        try:
            return (self._folder / line.file).stat().st_size != line.bytes
        except OSError:
            return True

    def _read(self) -> None:
        try:
            descriptor = open_private(self.path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        with os.fdopen(descriptor, "r+b") as file:
            content = file.read()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                file.truncate(whole)
        rows = csv.reader(io.StringIO(content[:whole].decode("utf-8", "replace")))
        if whole and next(rows, None) != _COLUMNS:
            raise DataError(
                f"{self.path}: found another file, expected a log of oncofed data pull. Name another folder"
            )
        for cells in rows:
            values = dict(zip(_COLUMNS, cells, strict=False))
            if len(values) == len(_COLUMNS) and values["bytes"].isdecimal():
                line = Line(**{**values, "bytes": int(values["bytes"])})  # type: ignore[arg-type]
                self._lines.setdefault(line.series, {})[line.instance] = line

    def _write(self, cells: list[str]) -> None:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow(cells)
        data = text.getvalue().encode()
        while data:
            data = data[os.write(self._file, data) :]
