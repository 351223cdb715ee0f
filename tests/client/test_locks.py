"""Files that one process at a time may lock."""

from __future__ import annotations

import fcntl
import threading
from pathlib import Path
from typing import IO

import pytest

from oncofed.client import locks
from oncofed.client.locks import wait_in_line


def _never() -> bool:
    return False


def _is_free(path: Path) -> bool:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def test_a_lock_is_handed_to_the_next_in_line(tmp_path: Path) -> None:
    got: list[IO[str] | None] = []

    def stand() -> None:
        with (tmp_path / "next").open("w") as file:
            got.append(wait_in_line(file, [], _never))

    first = (tmp_path / "next").open("w")
    assert wait_in_line(first, [], _never) is first
    waiting = [threading.Thread(target=stand) for _ in range(3)]
    for thread in waiting:
        thread.start()
    waiting[0].join(0.2)
    assert not got
    first.close()
    for thread in waiting:
        thread.join(10)
    assert len(got) == 3
    assert None not in got


@pytest.mark.parametrize("ended", [True, False])
def test_leaving_the_line_releases_a_late_lock(ended: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_SECONDS_IN_LINE", 0.05)
    hanging = (tmp_path / "next").open("w")
    other = (tmp_path / "0").open("w")
    assert wait_in_line(hanging, [], _never) is hanging
    with (tmp_path / "0").open("w") as place, (tmp_path / "next").open("w") as file:
        assert wait_in_line(other, [], _never) is other
        if not ended:
            threading.Timer(0.2, other.close).start()
        assert wait_in_line(file, [place], lambda: ended) is (None if ended else place)
    other.close()
    hanging.close()
    # Its thread gets the lock now, and releases it at once.
    for thread in threading.enumerate():
        if thread.name == "in-line":
            thread.join(10)
    assert _is_free(tmp_path / "next")
