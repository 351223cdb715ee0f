"""Sites of one machine take turns."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from pathlib import Path

import pytest
import torch
from nvflare.apis.signal import Signal

from oncofed.federation.sharing import machine_turn
from oncofed.processes import AT_ONCE_VARIABLE, THREADS_VARIABLE, TURN_VARIABLE, places


@pytest.mark.parametrize(("gpu", "at_once", "expected"), [(True, "3", 1), (False, "1", 1), (False, "2", 2)])
def test_sites_of_one_machine_take_turns(
    gpu: bool, at_once: str, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setenv(TURN_VARIABLE, str(tmp_path / "turn"))
    monkeypatch.setenv(AT_ONCE_VARIABLE, at_once)
    inside, most = 0, 0

    def train() -> None:
        nonlocal inside, most
        with machine_turn(Signal()):
            inside += 1
            most = max(most, inside)
            time.sleep(0.3)
            inside -= 1

    threads = [threading.Thread(target=train) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == expected


def test_sites_that_wait_for_their_turn_let_go_when_the_job_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv(TURN_VARIABLE, str(tmp_path / "turn"))
    signal, left = Signal(), []

    def wait() -> None:
        with machine_turn(signal):
            left.append(1)

    waiting = [threading.Thread(target=wait) for _ in range(3)]
    with machine_turn(Signal()):
        for thread in waiting:
            thread.start()
        time.sleep(0.1)
        assert not left
        signal.trigger(True)
        for thread in waiting:
            thread.join(10)
        assert len(left) == 3


def test_who_is_next_and_hangs_keeps_nobody_from_a_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv(TURN_VARIABLE, str(tmp_path / "turn"))
    monkeypatch.setenv(AT_ONCE_VARIABLE, "2")
    done = []

    def train() -> None:
        with machine_turn(Signal()):
            done.append(1)

    with (tmp_path / "turn.next").open("w") as hanging:
        fcntl.flock(hanging, fcntl.LOCK_EX)
        for _ in range(3):
            thread = threading.Thread(target=train)
            thread.start()
            thread.join(10)
    assert len(done) == 3


def test_as_many_simulated_sites_compute_at_once_as_the_cores_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    for threads, sites, expected in (("", 64, 64), ("", 100, 17), ("8,1", 12, 12), ("8,1", 13, 3), ("64", 9, 2)):
        monkeypatch.setenv(THREADS_VARIABLE, threads) if threads else monkeypatch.delenv(
            THREADS_VARIABLE, raising=False
        )
        assert places(sites) == expected
