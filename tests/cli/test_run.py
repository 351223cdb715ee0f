"""``oncofed job run`` with FLARE's real server and sites, and what is left when it is interrupted."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import monai.bundle
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from commands import family, left_running, oncofed, press_ctrl_c, site_processes, started, wait_for
from oncofed.report.result import read_result
from synthetic import JOB, write_job

pytestmark = [pytest.mark.slow, pytest.mark.federation]


def _sites(two_sites: dict[str, Path]) -> list[str]:
    return [argument for name, folder in two_sites.items() for argument in ("--site", f"{name}={folder}")]


@pytest.fixture
def long_job(tmp_path: Path) -> Path:
    """A job that trains for minutes, so that there is time to disturb it."""
    return write_job(tmp_path / "long", JOB.replace("steps_per_round: 4", "steps_per_round: 3000"))


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
    assert "<svg" in (out / "report.html").read_text()
    assert not (out / "federation").exists()
    assert left_running(tmp_path) == []
    assert _flare_files_in_tmp() == before
    assert list(home.rglob("*")) == [], "written outside the run's folder and the workspace"


@pytest.mark.parametrize("killed", ["parent", "job"])
def test_a_site_that_is_killed_ends_the_run_with_its_name(
    long_job: Path, two_sites: dict[str, Path], tmp_path: Path, killed: str
) -> None:
    out, log = tmp_path / "run", tmp_path / "log.txt"
    with started("job", "run", long_job, *_sites(two_sites), "--out", out, log=log) as process:
        wait_until_ready(process, log)
        site_processes(out, "west")[killed].kill()
        assert process.wait(120) == 1
    assert "error:" in log.read_text()
    assert "west" in log.read_text().split("error:")[1]
    assert "Traceback" not in log.read_text()
    result = read_result(out)
    assert result.status == "failed"
    assert "west" in str(result.error)
    assert left_running(tmp_path) == []


def test_the_others_go_on_without_a_killed_site_where_the_job_allows(
    two_sites: dict[str, Path], tmp_path: Path
) -> None:
    text = JOB.replace("steps_per_round: 4", "steps_per_round: 150").replace("rounds: 2", "rounds: 2, min_sites: 1")
    job = write_job(tmp_path / "patient", text)
    out, log = tmp_path / "run", tmp_path / "log.txt"
    with started("job", "run", job, *_sites(two_sites), "--out", out, "--no-baselines", log=log) as process:
        wait_until_ready(process, log)
        site_processes(out, "west")["parent"].kill()
        assert process.wait(200) == 0, log.read_text()
    result = read_result(out)
    assert result.status == "completed"
    assert list(result.lost_sites) == ["west"]
    assert result.sites["east"].federated is not None
    assert result.sites["west"].federated is None
    assert left_running(tmp_path) == []


def test_nothing_outlives_a_run_that_is_interrupted(long_job: Path, two_sites: dict[str, Path], tmp_path: Path) -> None:
    out, log = tmp_path / "run", tmp_path / "log.txt"
    with started("job", "run", long_job, *_sites(two_sites), "--out", out, log=log) as process:
        wait_until_ready(process, log)
        press_ctrl_c(process)
        assert process.wait(60) == 130
        assert left_running(tmp_path) == []
    assert read_result(out).status == "stopped"
    assert log.read_text().rstrip().endswith("stopped; nothing that was started is left running")
    assert "Traceback" not in log.read_text()
    assert not (out / "federation").exists()


def test_processes_that_make_the_demos_images_end_with_it(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    with started("demo", "--workspace", tmp_path / "workspace", log=log) as process:
        wait_for(lambda: len(family(process.pid)) > 2, "processes make patients")
        members = family(process.pid)
        press_ctrl_c(process)
        assert process.wait(60) == 130
        wait_for(lambda: not any(member.is_running() for member in members), "its processes ended", 10)
    assert log.read_text().rstrip().endswith("stopped; nothing that was started is left running")
    assert "Traceback" not in log.read_text()


def test_nothing_outlives_a_run_that_is_killed(long_job: Path, two_sites: dict[str, Path], tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    with started("job", "run", long_job, *_sites(two_sites), "--out", tmp_path / "run", log=log) as process:
        wait_until_ready(process, log)
        process.kill()
        process.wait()
        wait_for(lambda: left_running(tmp_path) == [], "server, sites and their job processes ended", 30)


def wait_until_ready(process: subprocess.Popen[bytes], log: Path) -> None:
    wait_for(lambda: "sites ready" in log.read_text() or process.poll() is not None, "the sites are ready")
    assert process.poll() is None, log.read_text()


def _flare_files_in_tmp() -> set[str]:
    return {str(path) for path in Path("/tmp/nvflare").rglob("*")}
