"""An index of what was read, so that reading resumes."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from oncofed.locking import has_record_locks

_log = logging.getLogger(__name__)
# Another process holds the file for about as long as it takes to read two of its images.
_SECONDS_FOR_OTHERS = 5.0
_SECONDS_AT_RISK = 2.0
# A copy in memory is written whole, so less often.
_SECONDS_BETWEEN_COPIES = 60.0


class Index:
    """Remembers a value by key and stamp of its files.

    Losing it only costs time. Another process's index is never removed: while that process holds the file, this one
    goes on with what it could read. Where files cannot be locked, the index is kept in memory and written whole, at
    the end and once a minute.

    Args:
        path: an SQLite file, created if it is missing or broken.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writes_copies = False
        self._connection = self._open()
        self._committed = time.monotonic()

    def __enter__(self) -> Index:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(sqlite3.OperationalError, OSError):  # lost values are read again
            self._commit()
        self._connection.close()

    def get(self, key: str, stamp: str) -> Any:
        """Return the value of ``key``; None where its files changed."""
        try:
            row = self._connection.execute("SELECT stamp, value FROM seen WHERE key = ?", (key,)).fetchone()
        except sqlite3.DatabaseError as error:
            self._go_on_without(error)
            return None
        return json.loads(row[1]) if row and row[0] == stamp else None

    def values(self) -> Iterator[Any]:
        """Yield every value, whatever became of its files."""
        for (value,) in self._connection.execute("SELECT value FROM seen"):
            yield json.loads(value)

    def put(self, key: str, stamp: str, value: Any) -> None:
        """Remember a JSON value.

        It is on disk within two seconds, if more follow.

        Raises:
            OSError: it cannot be written.
        """
        row = (key, stamp, json.dumps(value))
        try:
            self._insert(row)
        except sqlite3.DatabaseError as error:
            self._go_on_without(error)
            self._insert(row)

    def _insert(self, row: tuple[str, str, str]) -> None:
        self._connection.execute("INSERT OR REPLACE INTO seen VALUES (?, ?, ?)", row)
        longest = _SECONDS_BETWEEN_COPIES if self._writes_copies else _SECONDS_AT_RISK
        if time.monotonic() - self._committed > longest:  # each commit waits for the disk
            self._commit()
            self._committed = time.monotonic()

    def _commit(self) -> None:
        self._connection.commit()
        if self._writes_copies:
            _write_copy(self._connection, self._path)

    def _open(self) -> sqlite3.Connection:
        if not has_record_locks(self._path):
            _log.warning(
                "note: files in %s cannot be locked, so two commands must not register there at once. What is read is "
                "kept in memory, and written once a minute.",
                self._path.parent,
            )
            self._writes_copies = True
            return self._in_memory()
        try:
            return _with_table(sqlite3.connect(self._path, timeout=_SECONDS_FOR_OTHERS))
        except sqlite3.OperationalError as error:
            if not _is_locked(error):
                raise OSError(f"{self._path}: the index of what was read cannot be opened: {error}") from None
            self._warn_of_others()
            return self._in_memory()
        except sqlite3.DatabaseError:
            return self._anew()

    def _anew(self) -> sqlite3.Connection:
        """Replace a broken file by an empty index."""
        self._path.unlink()
        return _with_table(sqlite3.connect(self._path, timeout=_SECONDS_FOR_OTHERS))

    def _go_on_without(self, error: sqlite3.DatabaseError) -> None:
        """Go on without the file: another process's index stays.

        Raises:
            OSError: the disk is full, or may not be written to.
        """
        if isinstance(error, sqlite3.OperationalError) and not _is_locked(error):
            raise OSError(f"{self._path}: the index of what was read cannot be used: {error}") from None
        self._connection.close()
        if isinstance(error, sqlite3.OperationalError):
            self._warn_of_others()
            self._connection = self._in_memory()
        else:
            self._connection = self._in_memory() if self._writes_copies else self._anew()

    def _warn_of_others(self) -> None:
        _log.warning(
            "note: another command registers in %s at the same time. The one that ends last decides what dataset.json "
            "holds: wait for the other, or name another folder with --out.",
            self._path.parent,
        )

    def _in_memory(self) -> sqlite3.Connection:
        """Return an index in memory, filled from the file."""
        connection = sqlite3.connect(":memory:")
        if self._path.stat().st_size:
            with contextlib.suppress(sqlite3.Error), contextlib.closing(_read_only(self._path)) as source:
                source.backup(connection)
        try:
            return _with_table(connection)
        except sqlite3.DatabaseError:  # being written, or broken
            connection.close()
            return _with_table(sqlite3.connect(":memory:"))


def _with_table(connection: sqlite3.Connection) -> sqlite3.Connection:
    try:
        connection.execute("CREATE TABLE IF NOT EXISTS seen (key TEXT PRIMARY KEY, stamp TEXT, value TEXT)")
        connection.execute("SELECT stamp, value FROM seen LIMIT 1").fetchone()
    except sqlite3.DatabaseError:
        connection.close()
        raise
    return connection


def _is_locked(error: sqlite3.OperationalError) -> bool:
    """Return whether another process holds the file.

    In Python 3.10 only SQLite's message says so.
    """
    return "locked" in str(error)


def _read_only(path: Path) -> sqlite3.Connection:
    """Return a file as it is, without asking for locks."""
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)


def _write_copy(connection: sqlite3.Connection, path: Path) -> None:
    """Write an index to its file in one step."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    os.close(descriptor)
    copy = Path(name)
    try:
        with contextlib.closing(sqlite3.connect(f"{copy.absolute().as_uri()}?nolock=1", uri=True)) as target:
            connection.backup(target)
        copy.chmod(path.stat().st_mode)
        copy.replace(path)
    finally:
        copy.unlink(missing_ok=True)
