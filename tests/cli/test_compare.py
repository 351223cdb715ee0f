"""``oncofed job compare``: strategies over the same sites and seeds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from commands import left_running, oncofed

pytestmark = [pytest.mark.slow, pytest.mark.federation]

STRATEGIES = ("ditto", "feddyn", "fedbuff")  # cyclic: with a site that hangs, among the faults


@pytest.mark.thorough
def test_strategies_that_work_differently_at_the_sites_each_train(
    job: Path, two_sites: dict[str, Path], tmp_path: Path
) -> None:
    sites = [argument for name, folder in two_sites.items() for argument in ("--site", f"{name}={folder}")]
    arguments = ["--strategies", ",".join(STRATEGIES), *sites, "--no-baselines", "--backend", "simulate", "--json"]
    out = tmp_path / "compared"
    done = oncofed("job", "compare", job, *arguments, "--out", out, home=tmp_path)
    assert done.returncode == 0, done.stderr
    comparison = json.loads(done.stdout)
    assert [row["strategy"] for row in comparison["rows"]] == list(STRATEGIES)
    assert all(row["failed"] is None and 0 < row["mean"] <= 1 for row in comparison["rows"]), comparison
    for strategy in STRATEGIES:
        result = json.loads(next(out.glob(f"{strategy}*/result.json")).read_text())
        assert result["strategy"] == strategy
        assert len(result["timing"]["rounds_s"]) == 2
        personal = [values["personal"] for values in result["sites"].values()]
        assert all(score is not None for score in personal) if strategy == "ditto" else personal == [None, None]
    assert "<svg" in (out / "comparison.svg").read_text()
    assert left_running(tmp_path) == []

    # What is complete is not run again.
    before = {path: path.stat().st_mtime_ns for path in out.rglob("result.json")}
    again = oncofed("job", "compare", job, *arguments, "--out", out, home=tmp_path)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["rows"] == comparison["rows"]
    assert {path: path.stat().st_mtime_ns for path in out.rglob("result.json")} == before
