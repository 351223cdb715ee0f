"""Sites tell how far answers move without the tiles that were attended to, where five patients are behind it."""

from __future__ import annotations

from pathlib import Path

import pytest

from attentive_sites import train_attentive
from oncofed.rounds.events import Event, Finished
from oncofed.tasks.deletion import ORDERS, SHARES, Deletion

pytest.importorskip("h5py")


def _told(folder: Path, sites: dict[str, int]) -> Deletion | None:
    events: list[Event] = []
    train_attentive(folder, sites, events.append)
    (finished,) = [event for event in events if isinstance(event, Finished)]
    return Deletion.model_validate(finished.attention) if finished.attention else None


def test_a_federations_record_holds_the_deletion_test_of_its_sites(tmp_path: Path) -> None:
    found = _told(tmp_path, {"north": 20, "south": 12, "small": 6})
    assert found is not None
    # Of the small site fewer than five are test patients.
    assert found.patients == 12 + 7
    assert found.shares == SHARES
    assert set(found.moved) == set(ORDERS)
    assert all(0 <= value <= 1 for curve in found.moved.values() for value in curve)
    assert found.interval is not None
    assert found.interval[0] <= found.gain <= found.interval[1]


def test_a_federation_of_few_test_patients_tells_nothing(tmp_path: Path) -> None:
    assert _told(tmp_path, {"one": 6, "other": 6}) is None
