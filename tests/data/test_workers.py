"""Processes that read files, some of which end the process that reads them."""

from __future__ import annotations

import os
import signal

import pytest

from oncofed.data.workers import Workers
from oncofed.errors import DataError


def _read(number: int) -> int:
    if number in {3, 17}:
        os.kill(os.getpid(), signal.SIGKILL)
    return -number


def test_a_file_that_ends_its_process_is_found_and_the_rest_is_read() -> None:
    with Workers(2) as workers:
        results = list(workers.map(_read, range(30), fewest=2, broken=lambda number: 1000 + number))
    assert sorted(results) == sorted([1003, 1017, *(-number for number in range(30) if number not in {3, 17})])


def test_where_nothing_stands_for_it_that_is_an_error() -> None:
    with pytest.raises(DataError, match="ended abruptly"), Workers(2) as workers:
        list(workers.map(_read, range(30), fewest=2))
