"""``oncofed job contribution``: a federation with each site and without it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from commands import left_running, oncofed
from synthetic import make_site

pytestmark = [pytest.mark.slow, pytest.mark.federation]


@pytest.mark.thorough
def test_each_site_is_left_out_once_a_seed_and_a_second_time_nothing_is_trained(
    job: Path, two_sites: dict[str, Path], tmp_path: Path
) -> None:
    folders = {**two_sites, "third": make_site(tmp_path / "third", 8, seed=7)}
    sites = [argument for name, folder in folders.items() for argument in ("--site", f"{name}={folder}")]
    arguments = ("job", "contribution", job, *sites, "--seeds", "1", "--rounds", "1", "--out", tmp_path / "out")
    done = oncofed(*arguments, "--json", home=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert sorted(row["site"] for row in found["sites"]) == sorted(folders)
    means = [row["mean"] for row in found["sites"]]
    assert means == sorted(means)
    for row in found["sites"]:
        assert set(row["by_site"]) == folders.keys() - {row["site"]}
        assert row["interval"] is None
    runs = {path.parent.name for path in (tmp_path / "out").glob("*/result.json")}
    assert runs == {"everybody-seed-1", *(f"without-{site}-seed-1" for site in folders)}
    assert left_running(tmp_path) == []
    again = oncofed(*arguments, home=tmp_path)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("completed before") == 4
    assert "brings" in again.stdout
    assert "One seed: no interval" in again.stdout
