"""A federation whose server is given sums alone, with FLARE's server, sites and the kits' certificates.

That its model is the one of a run without masks, and what faults cost, is tested in memory (``rounds``).
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from commands import oncofed
from synthetic import make_site, write_job

pytestmark = [pytest.mark.slow, pytest.mark.federation]

_SITES = {"east": (6, 1), "west": (7, 2), "north": (9, 3)}


def test_sites_know_each_other_by_their_kits_and_sums_alone_arrive(tmp_path: Path) -> None:
    sites = {name: make_site(tmp_path / name, *numbers) for name, numbers in _SITES.items()}
    named = [argument for name, folder in sites.items() for argument in ("--site", f"{name}={folder}")]
    job, out = write_job(tmp_path / "job"), tmp_path / "run"
    job.write_text(f"{job.read_text().rstrip()}\nprivacy: {{secure_aggregation: {{}}}}\n")
    arguments = [*named, "--out", out, "--workspace", tmp_path / "workspace", "--no-baselines", "--json"]
    done = oncofed("job", "run", job, *arguments, home=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    expected = {"protocol": 1, "rounds": 2, "smallest": 3, "threshold": 3, "colluding": 1, "lost": 0, "failed": 0}
    assert result["sums"] == expected
    assert result["incidents"] == []
    # All learned: the sums are of their updates.
    assert result["curves"]["validation"]["2"] > result["curves"]["validation"]["0"]
    provenance = json.loads((out / "provenance.json").read_text())["provenance"]
    assert provenance["smallest_sum"] == 3
    assert provenance["secure_aggregation"] == {n: result["sums"][n] for n in ("protocol", "threshold", "rounds")}
    assert "under masks" in (out / "model" / "card.md").read_text()
    assert "Secure aggregation" in (out / "report.html").read_text()
