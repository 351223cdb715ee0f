"""What sites of a run on one machine keep for themselves stays with the run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from commands import oncofed
from oncofed.prediction.model import load_model
from synthetic import make_site, write_job

pytestmark = [pytest.mark.slow, pytest.mark.federation]
_CASES = 40  # of which six or more are for validation


@pytest.mark.thorough
def test_a_sites_model_and_its_doubtful_labels_are_in_the_runs_folder(tmp_path: Path) -> None:
    job = write_job(tmp_path / "job")
    values = yaml.safe_load(job.read_text())
    fine_tuned = {"personalization": {"candidates": ["fine_tuned"]}, "rounds": {"number": 1}}
    job.write_text(yaml.safe_dump({**values, **fine_tuned, "evaluation": {"doubtful_labels": True}}))
    sites = [f"{name}={make_site(tmp_path / name, _CASES, seed)}" for seed, name in enumerate(("east", "west"), 1)]
    arguments = ["--site", sites[0], "--site", sites[1], "--backend", "simulate", "--no-baselines", "--json"]
    done = oncofed("job", "run", job, *arguments, "--out", tmp_path / "run", home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)["gains"]) <= {"east", "west"}
    for name in ("east", "west"):
        folder = tmp_path / "run" / "sites" / name
        assert {path.name for path in folder.iterdir()} == {"candidates.csv", "label_doubts.csv", "model"}
        assert load_model(folder).weights
    assert not (tmp_path / "run" / "federation").exists()
