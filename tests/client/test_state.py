"""A site's state between rounds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from oncofed.client.state import SiteState
from oncofed.messages.results import TrainResult
from oncofed.training import checkpoint


def _result(turn_key: str, value: float) -> TrainResult:
    delta, extra = {"w": torch.full((2,), value)}, {"control.w": torch.full((2,), -value)}
    return TrainResult(delta=delta, extra=extra, cases=3, steps=4, numbers={"loss": value}, turn_key=turn_key)


def _holds(state: SiteState, turn_key: str, value: float) -> bool:
    found = state.result_of(turn_key)
    assert found
    assert (found.cases, found.steps, found.numbers) == (3, 4, {"loss": value})
    return torch.equal(found.delta["w"], torch.full((2,), value)) and torch.equal(
        found.extra["control.w"], -found.delta["w"]
    )


def test_a_later_process_restores_two_results_and_the_last_parts(tmp_path: Path) -> None:
    state = SiteState(tmp_path)
    assert state.result_of("1 aa") is None
    for number in (1, 2, 3):
        state.write(_result(f"{number} aa", number), {"left_over": {"w": torch.full((2,), 10.0 * number)}})
    for known in (state, SiteState(tmp_path)):
        assert _holds(known, "3 aa", 3.0)
        assert _holds(known, "2 aa", 2.0)
        assert known.result_of("1 aa") is None
        assert known.result_of("3 bb") is None
    assert torch.equal(SiteState(tmp_path).part("left_over")["w"], torch.full((2,), 30.0))
    assert SiteState(tmp_path).part("norm") == {}


def test_on_a_full_disk_a_result_stays_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_checkpoint", full)
    state = SiteState(tmp_path)
    with pytest.raises(OSError, match="No space left"):
        state.write(_result("1 aa", 1.0), {})
    assert _holds(state, "1 aa", 1.0)
    state.forget_result()
    assert state.result_of("1 aa") is None


def test_without_a_folder_nothing_is_written() -> None:
    state = SiteState()
    state.write(_result("1 aa", 1.0), {"norm": {"w": torch.ones(1)}})
    assert _holds(state, "1 aa", 1.0)
    assert state.part("norm") == {}
