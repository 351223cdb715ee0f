"""``oncofed job run`` with FLARE's real server and sites."""

from __future__ import annotations

import json
from pathlib import Path

import monai.bundle
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from commands import left_running, oncofed

pytestmark = [pytest.mark.slow, pytest.mark.federation]


def _sites(two_sites: dict[str, Path]) -> list[str]:
    return [argument for name, folder in two_sites.items() for argument in ("--site", f"{name}={folder}")]


def test_a_run_leaves_result_report_model_and_curves(job: Path, two_sites: dict[str, Path], tmp_path: Path) -> None:
    out, home = tmp_path / "run", tmp_path / "home"
    home.mkdir()
    before = _flare_files_in_tmp()
    arguments = [*_sites(two_sites), "--out", out, "--workspace", tmp_path / "workspace", "--json"]
    done = oncofed("job", "run", job, *arguments, home=home)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert json.loads((out / "result.json").read_text()) == result
    assert (result["status"], result["backend"], result["rounds"]) == ("completed", "federation", 2)
    assert {site: values["train_cases"] for site, values in result["sites"].items()} == {"east": 5, "west": 3}
    for values in (*result["sites"].values(), result["mean"]):
        assert all(0 <= values[model] <= 1 for model in ("alone", "federated", "pooled"))
    assert len(result["timing"]["rounds_s"]) == len(result["timing"]["train_s_max_per_round"]) == 2
    assert result["timing"]["overhead_s_per_round"] > 0
    weights = load_file(out / "model" / "model.safetensors")
    size = sum(tensor.nbytes for tensor in weights.values())
    assert result["bytes"] == {"to_sites_per_round": 2 * size, "to_server_per_round": 2 * size}

    network = monai.bundle.load("bundle", bundle_dir=str(out / "model"))
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())
    curve = EventAccumulator(str(out / "tensorboard" / "mean")).Reload().Scalars("validation/dice")
    assert [point.step for point in curve] == [0, 1, 2]
    report = (out / "report.html").read_text()
    assert "<svg" in report
    assert 'href="model/card.md"' in report
    card = json.loads((out / "model" / "card.json").read_text())
    assert card == json.loads((out / "model" / "bundle" / "docs" / "card.json").read_text())
    assert card["model_details"]["digest"] == json.loads((out / "provenance.json").read_text())["provenance"]["model"]
    # One or two test patients: of neither site a score is told.
    assert [site["value"] for site in card["quantitative_analyses"]["sites"].values()] == [None, None]
    # East has five training patients, of whom all is alike but their intensities; west's three are too few.
    profile = json.loads((out / "model" / "training_profile.json").read_text())
    assert profile["sites"] == 1
    assert profile["traits"]["spacing_superior"]["range"] == [
        pytest.approx(0.917, abs=1e-3),
        pytest.approx(1.09, abs=1e-3),
    ]
    assert all(n == 0 or n >= 5 for trait in profile["traits"].values() for n in (trait["patients"], *trait["counts"]))
    assert not (out / "federation").exists()
    assert left_running(tmp_path) == []
    assert _flare_files_in_tmp() == before
    assert list(home.rglob("*")) == [], "written outside the run's folder and the workspace"


def _flare_files_in_tmp() -> set[str]:
    return {str(path) for path in Path("/tmp/nvflare").rglob("*")}
