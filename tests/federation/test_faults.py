"""A hospital's bad day: real servers and sites, some of them poisoned."""

from __future__ import annotations

from pathlib import Path

import pytest

from fault_lab import lab
from oncofed.job.spec import JobSpec
from synthetic import make_site

pytestmark = [pytest.mark.slow, pytest.mark.federation]


@pytest.fixture
def three_sites(tmp_path: Path, two_sites: dict[str, Path]) -> dict[str, Path]:
    return {**two_sites, "north": make_site(tmp_path / "north", 6, 3)}


@pytest.mark.timeout(300)
def test_bad_updates_are_refused_and_the_round_goes_on(
    spec: JobSpec, three_sites: dict[str, Path], tmp_path: Path
) -> None:
    changes = {"rounds": {"number": 3, "quorum": 1}, "exchange": {"update": "bfloat16"}}
    poisoned = {"west": "nan", "north": "shape"}
    with lab(spec.changed(changes), three_sites, tmp_path / "lab", poisoned) as running:
        state = running.wait(lambda state: state.finished is not None, "the run ends")
        for who in state.participation.values():
            assert (who["in_time"], sorted(who["refused"])) == (["east"], ["north", "west"])
            assert "not finite" in who["refused"]["west"]
            assert "expected" in who["refused"]["north"]
        told = [p for p in running.alliance.kit("west").rglob("*.txt") if "did not take" in p.read_text()]
        assert told or "did not take" in (tmp_path / "lab" / "logs" / "west.txt").read_text()
