from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import torch
from nvflare.apis.signal import Signal

from oncofed.federation.sharing import gpu_turn
from oncofed.processes import TURN_VARIABLE


def test_sites_of_one_machine_take_turns_at_its_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv(TURN_VARIABLE, str(tmp_path / "gpu.turn"))
    inside, most = 0, 0

    def train() -> None:
        nonlocal inside, most
        with gpu_turn(Signal()):
            inside += 1
            most = max(most, inside)
            time.sleep(0.05)
            inside -= 1

    threads = [threading.Thread(target=train) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_a_site_that_waits_for_its_turn_lets_go_when_the_job_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv(TURN_VARIABLE, str(tmp_path / "gpu.turn"))
    ended = Signal()
    ended.trigger(True)
    with gpu_turn(Signal()), gpu_turn(ended):
        pass
