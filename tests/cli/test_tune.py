"""``oncofed job tune`` over FLARE's simulator."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from commands import family, forked, left_running, oncofed, wait_for
from oncofed.job.spec import parse_job
from oncofed.report.result import read_result
from oncofed.rounds.events import BEST_MODEL

pytestmark = [pytest.mark.slow, pytest.mark.federation]


@pytest.mark.thorough
def test_a_search_that_was_killed_goes_on(job: Path, two_sites: dict[str, Path], tmp_path: Path) -> None:
    out, log = tmp_path / "found", tmp_path / "log.txt"
    sites = [argument for name, folder in two_sites.items() for argument in ("--site", f"{name}={folder}")]
    words = ("job", "tune", job, "--over", "learning_rate=1e-4..1e-2:log", "--budget", "2", *sites, "--out", out)
    with forked(*words, "--workspace", tmp_path / "workspace", log=log) as searching:
        wait_for(lambda: "trial 2 of 2" in log.read_text(), "the second trial begins")
        assert "trial 1: " in log.read_text()
        running = family(searching.pid)
        searching.kill()
        wait_for(lambda: not any(process.is_running() for process in running[1:]), "its processes end with it")
    assert len(json.loads((out / "tune.json").read_text())["rows"]) == 1

    done = oncofed(*words, "--json", home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "trial 1 of" not in done.stderr, "the first one is not run again"
    found = json.loads(done.stdout)
    assert [row["state"] for row in found["rows"]] == ["complete", "complete"]
    best = max(found["rows"], key=lambda row: row["score"])
    assert len(list(out.rglob(BEST_MODEL))) == 1

    # Only the best one's model saw test patients, and only once.
    (tested,) = out.glob("test-of-trial-*")
    result = read_result(tested)
    assert result.mean.federated == found["test"] > 0
    assert parse_job(out / "best.yaml").training.learning_rate == best["settings"]["training.learning_rate"]
    assert oncofed("job", "check", out / "best.yaml", home=tmp_path).returncode == 0
    assert left_running(tmp_path) == []

    again = oncofed(*words, home=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "on test patients, who had no part in the choice" in again.stdout
    assert "round 1/" not in again.stdout, "nothing is run twice"


def test_each_trial_starts_from_the_given_weights(job: Path, two_sites: dict[str, Path], tmp_path: Path) -> None:
    """Rates at which nothing is learnt leave each trial's model as it started."""
    given = parse_job(job).with_seed(9).plan().initial_weights()
    model, out = tmp_path / "given.safetensors", tmp_path / "found"
    save_file(given, model)
    sites = [argument for name, folder in two_sites.items() for argument in ("--site", f"{name}={folder}")]
    words = ("job", "tune", job, "--over", "learning_rate=1e-12|1e-11", "--budget", "1", "--rounds", "1", *sites)
    done = oncofed(*words, "--out", out, "--model", model, home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"starts from --model {model}" in " ".join(done.stdout.split())
    (kept,) = out.rglob(BEST_MODEL)
    found = load_file(kept)
    layout = parse_job(job).plan().layout()
    assert all(torch.allclose(found[name], given[name], atol=1e-6) for name in layout.trained)
    again = oncofed(*words, "--out", out, home=tmp_path)
    assert (again.returncode, "holds a search with another model" in " ".join(again.stderr.split())) == (2, True)


def test_ctrl_c_ends_a_search_cleanly(job: Path, two_sites: dict[str, Path], tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    sites = [argument for name, folder in two_sites.items() for argument in ("--site", f"{name}={folder}")]
    words = ("job", "tune", job, "--over", "learning_rate", "--budget", "5", *sites, "--out", tmp_path / "found")
    with forked(*words, "--workspace", tmp_path / "workspace", log=log) as searching:
        wait_for(lambda: "sites ready" in log.read_text(), "the first trial trains")
        os.killpg(searching.pid, signal.SIGINT)
        assert searching.wait(120) == 130
    assert "to go on: the same command with --out" in log.read_text()
    assert "stopped; nothing that was started is left running" in log.read_text()
    assert left_running(tmp_path) == []
