"""What was read before, so that registering again, or after a kill, reads only what changed."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from pathlib import Path
from types import TracebackType
from typing import Any

_SECONDS_AT_RISK = 2.0


class Index:
    """Remembers a value for each key together with a stamp of the files that it came from.

    Args:
        path: an SQLite file, made where it is missing; one that is broken is made anew.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._connection = self._open(path)
        except sqlite3.DatabaseError:
            path.unlink()
            self._connection = self._open(path)
        self._committed = time.monotonic()

    def __enter__(self) -> Index:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(sqlite3.OperationalError):  # what is lost is read again
            self._connection.commit()
        self._connection.close()

    def get(self, key: str, stamp: str) -> Any:
        """Return what was remembered for ``key`` if its files are the same still, else None."""
        row = self._connection.execute("SELECT stamp, value FROM seen WHERE key = ?", (key,)).fetchone()
        return json.loads(row[1]) if row and row[0] == stamp else None

    def put(self, key: str, stamp: str, value: Any) -> None:
        """Remember a JSON value; it is on disk two seconds later, if more follow.

        Raises:
            OSError: it cannot be written.
        """
        try:
            self._connection.execute("INSERT OR REPLACE INTO seen VALUES (?, ?, ?)", (key, stamp, json.dumps(value)))
            if time.monotonic() - self._committed > _SECONDS_AT_RISK:  # each commit waits for the disk
                self._connection.commit()
                self._committed = time.monotonic()
        except sqlite3.OperationalError as error:  # a full disk, or one that may not be written to
            raise OSError(f"the index of what was read cannot be written: {error}") from None

    @staticmethod
    def _open(path: Path) -> sqlite3.Connection:
        connection = sqlite3.connect(path)
        connection.execute("CREATE TABLE IF NOT EXISTS seen (key TEXT PRIMARY KEY, stamp TEXT, value TEXT)")
        return connection
