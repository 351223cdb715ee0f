"""Folders without file locks.

Programs report that at once, without waiting.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from commands import Outcome
from oncofed.audit import AuditLog
from oncofed.client.locks import wait_for_lock, wait_in_line
from oncofed.errors import AuditError, FederationError
from oncofed.locking import has_record_locks, require_locks, why_not_lockable

_REPORTS = "crush#3461, DrQA#69, bcbio-nextgen#1123"


@pytest.fixture(params=[errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def no_locks(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A file system that refuses locks.

    Returns the system's error message.
    """
    why = os.strerror(request.param)

    def refuse(*_: object) -> None:
        raise OSError(request.param, why)

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(fcntl, "lockf", refuse)
    return why


@pytest.mark.wild(_REPORTS, "a run's folder in which nothing can be locked")
@pytest.mark.parametrize("backend", ["federation", "simulate"])
def test_a_run_says_at_once_that_its_folder_cannot_be_locked(
    no_locks: str, backend: str, run: Callable[..., Outcome], two_sites: dict[str, Path], job: Path, tmp_path: Path
) -> None:
    sites = [word for name, folder in two_sites.items() for word in ("--site", f"{name}={folder}")]
    told = run("job", "run", job, *sites, "--backend", backend, "--out", tmp_path / "run")
    assert told.status == 1
    assert f"{tmp_path / 'run'} cannot be locked ({no_locks})" in told.text
    assert "Name a folder on a disk of this machine with --out" in told.text


@pytest.mark.wild(_REPORTS, "an audit log that cannot be locked")
def test_nothing_is_recorded_without_a_lock_and_the_reason_is_said(no_locks: str, tmp_path: Path) -> None:
    with pytest.raises(AuditError, match=r"audit\.jsonl cannot be locked .* Put the folder onto a disk"):
        AuditLog(tmp_path).write("policy changed")


@pytest.mark.wild(_REPORTS, "a turn at the machine whose file cannot be locked")
def test_waiting_for_an_unlockable_file_fails_at_once(no_locks: str, tmp_path: Path) -> None:
    with (tmp_path / "turn").open("w") as file:
        for wait in (lambda: wait_for_lock([file], lambda: False), lambda: wait_in_line(file, [], lambda: False)):
            with pytest.raises(FederationError, match=r"turn cannot be locked"):
                wait()


def test_a_lock_lost_while_waiting_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def held_at_first(descriptor: object, how: int) -> None:
        if how & fcntl.LOCK_NB:
            raise BlockingIOError
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", held_at_first)
    with (tmp_path / "turn").open("w") as file, pytest.raises(FederationError, match="turn cannot be locked"):
        wait_in_line(file, [], lambda: False)


def test_a_folder_that_can_be_locked_is_taken(tmp_path: Path) -> None:
    assert why_not_lockable(tmp_path) == ""
    require_locks(tmp_path, "")
    assert list(tmp_path.iterdir()) == []
    assert has_record_locks(tmp_path / "file")


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.EACCES])
def test_a_file_that_another_process_has_locked_can_be_locked(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def held(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "lockf", held)
    assert has_record_locks(tmp_path / "file")
