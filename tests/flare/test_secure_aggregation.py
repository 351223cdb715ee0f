"""A federation whose server is given sums alone, with FLARE's server, sites and the kits' certificates.

That its model is the one of a run without masks, and what faults cost, is tested in memory (``rounds``).
"""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from typing import Any

import pytest

from commands import oncofed
from synthetic import JOB, make_site, write_job

pytestmark = [pytest.mark.slow, pytest.mark.federation]

_SITES = {"east": (6, 1), "west": (7, 2), "north": (9, 3)}
# In a run's folder: the kits of server and sites, and all that their processes write.
_KITS = "federation"
# Of each site, more than the twenty training patients that noise wants.
_PRIVATE_CASES = 30
_NOISE = {
    "shared": "{noise: shared, noise_multiplier: 1.0, delta: 1.0e-3, sampling: 0.2, patches: 1}",
    "local": "{noise: local, epsilon: 40, delta: 1.0e-3, sampling: 0.2, patches: 1}",
}


@pytest.mark.thorough
@pytest.mark.parametrize("noise", ["shared", "local"])
def test_noise_of_sites_leaves_under_masks(tmp_path: Path, noise: str) -> None:
    sites = {name: make_site(tmp_path / name, _PRIVATE_CASES, seed) for name, (_, seed) in _SITES.items()}
    named = [argument for name, folder in sites.items() for argument in ("--site", f"{name}={folder}")]
    steps = "{optimizer: sgd, momentum: 0, learning_rate: 0.2, schedule: constant, warmup_steps: 0, steps_per_round: 1}"
    private = f"privacy: {{secure_aggregation: {{}}, differential_privacy: {_NOISE[noise]}}}"
    lines = [f"training: {steps}" if line.startswith("training:") else line for line in JOB.splitlines()]
    job, out = write_job(tmp_path / "job", "\n".join([*lines, private, "strategy: fedavgm", ""])), tmp_path / "run"
    arguments = [*named, "--out", out, "--workspace", tmp_path / "workspace", "--no-baselines", "--json", "--keep"]
    done = oncofed("job", "run", job, *arguments, home=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["sums"] == {
        "protocol": 2,
        "rounds": 2,
        "smallest": 3,
        "threshold": 3,
        "colluding": 1,
        "lost": 0,
        "failed": 0,
        "bits": 32,
        "scores": "each",
        "scored": None,
    }
    assert result["incidents"] == []
    said = json.loads((out / "provenance.json").read_text())["provenance"]["privacy"]
    assert (said["noise"], said["steps"], said["unit"]) == (noise, 2, "patient")
    assert said["trust"].startswith("sites make the noise together" if noise == "shared" else "each site makes all")
    # No mean over training patients reached the server.
    assert not any(result["curves"]["loss"].values())
    assert "loss" not in (out / "logs" / "server.txt").read_text()
    assert not _told_losses(_of_server(out)), "in any file of the server's side"
    card = (out / "model" / "card.md").read_text()
    assert f"{noise} noise" in card
    assert "under masks" in card


def _run(tmp_path: Path, name: str, section: str | None) -> tuple[dict[str, Any], Path]:
    """Run the job with a section ``privacy.secure_aggregation``; return its result and its folder."""
    sites = {site: make_site(tmp_path / "data" / name / site, *numbers) for site, numbers in _SITES.items()}
    named = [argument for site, folder in sites.items() for argument in ("--site", f"{site}={folder}")]
    job, out = write_job(tmp_path / f"job_{name}"), tmp_path / name
    if section is not None:
        job.write_text(f"{job.read_text().rstrip()}\nprivacy: {{secure_aggregation: {section}}}\n")
    arguments = [
        *named,
        "--out",
        out,
        "--workspace",
        tmp_path / f"workspace_{name}",
        "--no-baselines",
        "--json",
        "--keep",
    ]
    done = oncofed("job", "run", job, *arguments, home=tmp_path)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), out


def test_sites_know_each_other_by_their_kits_and_sums_alone_arrive(tmp_path: Path) -> None:
    result, out = _run(tmp_path, "run", "{}")
    expected = {"protocol": 2, "rounds": 2, "smallest": 3, "threshold": 3, "colluding": 1, "lost": 0, "failed": 0}
    expected |= {"bits": 32, "scores": "each", "scored": None}
    assert result["sums"] == expected
    assert result["incidents"] == []
    # All learned: the sums are of their updates.
    assert result["curves"]["validation"]["2"] > result["curves"]["validation"]["0"]
    provenance = json.loads((out / "provenance.json").read_text())["provenance"]
    assert provenance["smallest_sum"] == 3
    assert provenance["secure_aggregation"] == {n: result["sums"][n] for n in ("protocol", "threshold", "rounds")}
    assert "under masks" in (out / "model" / "card.md").read_text()
    assert "Secure aggregation" in (out / "report.html").read_text()


@pytest.mark.thorough
@pytest.mark.attack(
    "a server that looks for a site's own score", by="scores leave under masks alone", logged="nothing: none arrives"
)
def test_no_sites_score_is_at_the_server_where_they_are_summed(tmp_path: Path) -> None:
    """The first model is the same without masks, where each site tells its score of it."""
    plain, plain_out = _run(tmp_path, "plain", None)
    result, out = _run(tmp_path, "summed", "{scores: summed, bits: 16}")
    told = plain["curves"]["validation_by_site"]["0"].values()
    own = {score for score in told if score and len(str(score)) >= 5}  # shorter ones are found by chance
    assert result["curves"]["validation"]["0"] == pytest.approx(plain["curves"]["validation"]["0"], abs=2e-4)
    assert result["curves"]["validation"]["2"] > result["curves"]["validation"]["0"]
    assert (result["sums"]["scores"], result["sums"]["bits"], result["sums"]["rounds"]) == ("summed", 16, 2)
    assert result["scores_of_all"]["sites"] == 3
    assert result["mean"]["federated"] == result["scores_of_all"]["mean"]
    assert [site["federated"] for site in result["sites"].values()] == [None] * 3
    assert result["curves"]["validation_by_site"]["1"] == {}
    assert set(result["curves"]["loss"]["1"]) == {"all sites"}
    assert "no single site&#39;s is known" in (out / "report.html").read_text()
    # All that the server's side leaves: its log and result, model, card, provenance and curves.
    files = [path for path in out.rglob("*") if path.is_file() and path.stem not in _SITES]
    files = [path for path in files if _KITS not in path.relative_to(out).parts]
    assert {"report.html", "result.json", "provenance.json", "server.txt"} <= {path.name for path in files}
    assert len(own) >= 2
    assert not _found(own, files)
    # And all that its processes had on disk, where the losses of the first round are without masks.
    losses = set(plain["curves"]["loss"]["1"].values())
    assert len(losses) == 3
    assert _told_losses(_of_server(plain_out))
    assert _found(losses, _of_server(plain_out)) == losses
    assert not _found(own | losses, _of_server(out))


def _told_losses(files: list[Path]) -> set[str]:
    """Return the names of files in which a number stands as a loss."""
    return {path.name for path in files if re.search(rb'"loss(es)?": ?(-?\d|\{"\w+": ?-?\d)', path.read_bytes())}


def _of_server(out: Path) -> list[Path]:
    (server,) = (out / _KITS).rglob("localhost")
    files = [path for path in server.rglob("*") if path.is_file()]
    assert "events.jsonl" in {path.name for path in files}
    return files


def _found(values: set[float], files: list[Path]) -> set[float]:
    """Return the values that are in a file, as a number of a text or as a double."""
    written = b"\n".join(path.read_bytes() for path in files)
    numbers = set(re.findall(rb"[0-9]+\.[0-9]+(?:e-?[0-9]+)?", written))
    return {one for one in values if repr(one).encode() in numbers or struct.pack("<d", one) in written}
