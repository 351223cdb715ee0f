"""What a report says of masked updates."""

from __future__ import annotations

from dataclasses import replace

import pytest

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


@pytest.mark.parametrize(
    ("n", "t", "lost", "colluding"),
    [(3, 3, 0, 1), (4, 3, 1, 1), (4, 3, 0, 1), (5, 4, 1, 2), (6, 5, 1, 3), (10, 7, 3, 3)],
)
def test_so_many_sites_may_help_the_server(n: int, t: int, lost: int, colluding: int) -> None:
    """Of three sites two know the third's update from the sum, whatever the threshold."""
    names = [f"site{i}" for i in range(n)]
    one = Summed(round=1, attempt=1, sites=names[lost:], lost=names[:lost], threshold=t, seconds=0.1)
    used = sums_used([one], failed=0)
    assert used
    assert used.colluding == colluding
    said = dict(used.said())
    assert said["Provided that"].startswith(f"unless {colluding + 1} sites or more helped it")
    assert said["Stated by"].startswith("the server")


def test_the_fewest_sites_with_scores_limit_who_may_help() -> None:
    """Who has a mean of three scores, two of which are the helpers', has the third."""
    one, other = _summed(1, []), _summed(2, [])
    used = sums_used([replace(one, scored=4), replace(other, scored=3), other], failed=0, scores="summed")
    assert used
    assert (used.scored, used.colluding) == (3, 1)
    said = dict(used.said())
    assert said["Of scores"] == "the mean over 3 sites or more, not the score of any"
    assert said["Not hidden"].endswith("which scores it has")
    used = sums_used([one], failed=0)
    assert used
    assert used.scored is None


def test_a_run_without_masks_says_nothing() -> None:
    assert sums_used([], failed=0) is None
