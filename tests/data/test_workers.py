"""Reading processes, some of which a file ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from oncofed.data.workers import Workers
from oncofed.errors import DataError


def _read(number: int) -> int:
    if number in {3, 17}:
        os.kill(os.getpid(), signal.SIGKILL)
    return -number


def test_a_file_that_ends_its_process_does_not_stop_the_rest() -> None:
    with Workers(2) as workers:
        results = list(workers.map(_read, range(30), fewest=2, broken=lambda number: 1000 + number))
    assert sorted(results) == sorted([1003, 1017, *(-number for number in range(30) if number not in {3, 17})])


def test_an_ended_process_without_a_substitute_is_an_error() -> None:
    with pytest.raises(DataError, match="ended abruptly"), Workers(2) as workers:
        list(workers.map(_read, range(30), fewest=2))


def test_a_script_without_a_main_guard_is_reported(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from oncofed.data.workers import Workers\n"
        "print(list(Workers(2).map(abs, range(9), fewest=2, broken=lambda number: 1000)))\n"
    )
    ended = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert "below `if __name__" in ended.stderr
    assert "1000" not in ended.stdout
