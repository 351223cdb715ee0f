"""Sites of one machine share its compute slots."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from pathlib import Path

import pytest
import torch

from oncofed.client.compute_slot import ComputeSlot
from oncofed.processes import (
    AT_ONCE_VARIABLE,
    SHARED_VARIABLE,
    THREADS_VARIABLE,
    TURN_VARIABLE,
    compute_slots,
    process_environment,
)


def _never() -> bool:
    return False


@pytest.mark.parametrize(("gpu", "at_once", "expected"), [(True, "3", 1), (False, "1", 1), (False, "2", 2)])
def test_sites_of_one_machine_share_its_slots(
    gpu: bool, at_once: str, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setenv(TURN_VARIABLE, str(tmp_path / "turn"))
    monkeypatch.setenv(AT_ONCE_VARIABLE, at_once)
    inside, most = 0, 0

    def train() -> None:
        nonlocal inside, most
        with ComputeSlot().hold(_never):
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


def test_waiting_sites_leave_when_the_job_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv(TURN_VARIABLE, str(tmp_path / "turn"))
    ended, left = threading.Event(), []

    def wait() -> None:
        with ComputeSlot().hold(ended.is_set):
            left.append(1)

    waiting = [threading.Thread(target=wait) for _ in range(3)]
    with ComputeSlot().hold(_never):
        for thread in waiting:
            thread.start()
        time.sleep(0.1)
        assert not left
        ended.set()
        for thread in waiting:
            thread.join(10)
        assert len(left) == 3


def test_a_hanging_next_site_blocks_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv(TURN_VARIABLE, str(tmp_path / "turn"))
    monkeypatch.setenv(AT_ONCE_VARIABLE, "2")
    done = []

    def train() -> None:
        with ComputeSlot().hold(_never):
            done.append(1)

    with (tmp_path / "turn.next").open("w") as hanging:
        fcntl.flock(hanging, fcntl.LOCK_EX)
        for _ in range(3):
            thread = threading.Thread(target=train)
            thread.start()
            thread.join(10)
    assert len(done) == 3


def test_a_site_fetches_its_task_with_a_slot_or_as_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv(TURN_VARIABLE, str(tmp_path / "turn"))
    monkeypatch.setenv(AT_ONCE_VARIABLE, "2")
    first, second, third, fourth = (ComputeSlot() for _ in range(4))
    for turn in (first, second, third):
        turn.line_up(_never)
    come = threading.Event()

    def come_next() -> None:
        fourth.line_up(_never)
        come.set()

    waiting = threading.Thread(target=come_next)
    waiting.start()
    assert not come.wait(0.2), "two compute and one is next"
    entered, go_on = threading.Event(), threading.Event()

    def compute() -> None:
        with third.hold(_never):
            entered.set()
            go_on.wait(10)

    computing = threading.Thread(target=compute)
    computing.start()
    assert not entered.wait(0.2), "two compute"
    first.leave()
    assert entered.wait(10)
    assert come.wait(10), "another one is next"
    go_on.set()
    second.leave()
    computing.join(10)
    waiting.join(10)
    with fourth.hold(_never):
        pass


def test_a_site_without_a_task_blocks_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv(TURN_VARIABLE, str(tmp_path / "turn"))
    turns = [ComputeSlot() for _ in range(2)]
    for turn in turns:
        turn.line_up(_never)
    for turn in turns:
        turn.leave()
    done = []

    def train() -> None:
        with ComputeSlot().hold(_never):
            done.append(1)

    thread = threading.Thread(target=train)
    thread.start()
    thread.join(1.9)  # a hanging site is passed after two seconds
    assert done


def test_as_many_simulated_sites_compute_at_once_as_the_cores_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    for threads, sites, expected in (("", 64, 64), ("", 100, 17), ("8,1", 12, 12), ("8,1", 13, 3), ("64", 9, 2)):
        monkeypatch.setenv(THREADS_VARIABLE, threads) if threads else monkeypatch.delenv(
            THREADS_VARIABLE, raising=False
        )
        assert compute_slots(sites) == expected


@pytest.mark.parametrize(
    ("sites", "initialised", "given_back"), [("2", True, 1), ("1", True, 0), (None, True, 0), ("2", False, 0)]
)
def test_leaving_a_shared_gpu_frees_its_cached_memory(
    sites: str | None, initialised: bool, given_back: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: initialised)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append("emptied"))
    monkeypatch.setenv(TURN_VARIABLE, str(tmp_path / "turn"))
    monkeypatch.setenv(SHARED_VARIABLE, sites) if sites else monkeypatch.delenv(SHARED_VARIABLE, raising=False)
    turn = ComputeSlot()
    turn.leave()
    assert not calls, "it held nothing"
    with turn.hold(_never):
        calls.append("trained")
    assert calls == ["trained"] + given_back * ["emptied"]
    turn.leave()
    assert len(calls) == 1 + given_back


def test_memory_is_freed_before_the_next_site_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setenv(TURN_VARIABLE, str(tmp_path / "turn"))
    monkeypatch.setenv(SHARED_VARIABLE, "2")
    held: list[bool] = []

    def look() -> None:
        with (tmp_path / "turn.0").open("w") as place:
            try:
                fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                held.append(True)
            else:
                held.append(False)

    monkeypatch.setattr(torch.cuda, "empty_cache", look)
    with ComputeSlot().hold(_never):
        pass
    assert held == [True]


def test_a_single_site_needs_no_slot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: asked.append(True) or True)
    for name, value in process_environment(tmp_path, 1).items():
        monkeypatch.setenv(name, value)
    with ComputeSlot().hold(_never), ComputeSlot().hold(_never):
        assert not asked, "the driver is not asked for nothing"
