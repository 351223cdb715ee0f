"""What a report says of masked updates."""

from __future__ import annotations

from oncofed.report.sums import sums_used
from oncofed.rounds.events import Summed


def _summed(number: int, lost: list[str], attempt: int = 1) -> Summed:
    sites = [f"site{i}" for i in range(10) if f"site{i}" not in lost]
    return Summed(round=number, attempt=attempt, sites=sites, lost=lost, threshold=7, seconds=0.1)


def test_the_smallest_sum_counts() -> None:
    used = sums_used([_summed(1, []), _summed(2, ["site1", "site2"])], failed=1)
    assert used
    assert (used.rounds, used.smallest, used.threshold, used.lost, used.failed) == (2, 8, 7, 2, 1)
    # 2 t - n = 4: as many would have to help a lying server.
    assert used.colluding == 3
    said = dict(used.said())
    assert said["What the server saw"] == "sums of 8 sites or more, not the update of any"
    assert said["Provided that"].startswith("unless 4 sites or more helped it")
    assert said["Lost on the way"] == "2 updates; 1 sum asked for again"


def test_a_run_without_masks_says_nothing() -> None:
    assert sums_used([], failed=0) is None
