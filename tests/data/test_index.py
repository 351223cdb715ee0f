"""An index without locks, held by others, or broken."""

from __future__ import annotations

import errno
import fcntl
import logging
import sqlite3

import pytest

from oncofed.data import index as module
from oncofed.data.index import Index

_LOCKS = "crush#3461, DrQA#69, bcbio-nextgen#1123"


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """A file system that refuses locks.

    SQLite's locks are as in memory.
    """

    def refuse(*_: object) -> None:
        raise OSError(getattr(request, "param", errno.ENOLCK), "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.mark.wild(_LOCKS, "a dataset's folder in which nothing can be locked")
@pytest.mark.parametrize("no_locks", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL], indirect=True)
def test_index_is_kept_without_file_locks(no_locks, tmp_path, caplog, monkeypatch) -> None:
    path = tmp_path / ".index.sqlite"
    opened = []
    monkeypatch.setattr(module.sqlite3, "connect", _noting(opened, sqlite3.connect))
    with caplog.at_level(logging.WARNING), Index(path) as index:
        index.put("a.dcm", "1", {"rows": 4})
        index.put("b.dcm", "1", [1, 2])
    assert caplog.text.count("cannot be locked") == 1
    assert str(tmp_path) in caplog.text
    with Index(path) as index:
        assert index.get("a.dcm", "1") == {"rows": 4}
        assert index.get("b.dcm", "2") is None  # another stamp
    # SQLite itself never asks such a file system for a lock.
    assert all(":memory:" in name or "nolock=1" in name or "immutable=1" in name for name in opened)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def _noting(opened: list[str], connect):
    def noted(name, *arguments, **more):
        opened.append(str(name))
        return connect(name, *arguments, **more)

    return noted


@pytest.mark.wild(_LOCKS, "another command's index, deleted at an error of locking")
@pytest.mark.parametrize("held", ["BEGIN IMMEDIATE", "BEGIN EXCLUSIVE"])
def test_index_held_by_another_process_is_left_alone(held, tmp_path, caplog, monkeypatch) -> None:
    monkeypatch.setattr(module, "_SECONDS_FOR_OTHERS", 0.05)
    path = tmp_path / ".index.sqlite"
    with Index(path) as index:
        index.put("a.dcm", "1", "before")
    number = path.stat().st_ino
    other = sqlite3.connect(path, isolation_level=None)
    other.execute(held)
    other.execute("INSERT OR REPLACE INTO seen VALUES ('theirs', '1', '2')")
    with caplog.at_level(logging.WARNING), Index(path) as index:
        assert index.get("a.dcm", "1") == "before"
        index.put("c.dcm", "1", "mine")
        assert index.get("c.dcm", "1") == "mine"
    other.execute("COMMIT")
    assert "registers in" in caplog.text
    assert path.stat().st_ino == number
    assert other.execute("SELECT key FROM seen ORDER BY key").fetchall() == [("a.dcm",), ("theirs",)]


@pytest.mark.wild(_LOCKS, "an index that is no index, or of which a part is lost")
@pytest.mark.parametrize("keep", [0, 3, 100, 5000, 9000])
def test_broken_index_is_replaced(keep, tmp_path) -> None:
    path = tmp_path / ".index.sqlite"
    with Index(path) as index:
        for number in range(200):
            index.put(f"{number}.dcm", "1", "x" * 100)
    whole = path.read_bytes()
    assert len(whole) > 10_000
    path.write_bytes(b"no index" if keep == 3 else whole[:keep] + bytes(len(whole) - keep if keep > 4096 else 0))
    with Index(path) as index:
        assert index.get("199.dcm", "1") in (None, "x" * 100)
        index.put("new.dcm", "1", "new")
        assert index.get("new.dcm", "1") == "new"
    with Index(path) as index:
        assert index.get("new.dcm", "1") == "new"


def test_full_disk_is_not_taken_for_a_lock(tmp_path, monkeypatch) -> None:
    with Index(tmp_path / ".index.sqlite") as index:
        index._connection.execute("PRAGMA max_page_count = 2")
        with pytest.raises(OSError, match="cannot be used: database or disk is full"):
            index.put("a.dcm", "1", "x" * 100_000)
