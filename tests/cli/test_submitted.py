"""Jobs at an alliance, from the engineer's kit alone.

Submitted, watched, stopped, fetched.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from commands import forked, oncofed, press_ctrl_c, wait_for
from oncofed.alliance.local import LocalAlliance, free_port
from oncofed.alliance.spec import AllianceSpec
from oncofed.artifacts.training_profile import read_training_profile
from oncofed.report.result import read_result
from oncofed.rounds.events import EVENTS_FILE
from synthetic import JOB, make_site, write_job

pytestmark = [pytest.mark.slow, pytest.mark.federation]


@pytest.fixture(scope="module")
def alliance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalAlliance]:
    folder = tmp_path_factory.mktemp("alliance")
    datasets = {site: {"balls": make_site(folder / site, 26, seed)} for seed, site in enumerate(("east", "west"))}
    spec = AllianceSpec(sites=tuple(datasets), port=free_port())
    with LocalAlliance(spec, folder / "alliance", datasets, folder / "logs", folder / "tmp") as alliance:
        alliance.wait_registered()
        yield alliance


@pytest.mark.thorough
def test_a_job_runs_without_the_engineers_machine(alliance: LocalAlliance, tmp_path: Path) -> None:
    kit = ("--kit", alliance.kit(alliance.spec.engineer))
    job = write_job(tmp_path / "long", JOB.replace("number: 2", "number: 12").replace("round: 4", "round: 20"))
    submitted = oncofed("job", "submit", job, *kit, "--json", home=tmp_path)
    job_id = json.loads(submitted.stdout)["id"]

    log = tmp_path / "watched.txt"
    with forked("job", "watch", job_id, *kit, "--workspace", tmp_path / "workspace", log=log) as watching:
        wait_for(lambda: "/12  " in log.read_text(), "a round is shown")
        press_ctrl_c(watching)
        assert watching.wait(300) == 130
    assert f"The job runs on. Watch it again with: oncofed job watch {job_id}" in log.read_text()

    watched = oncofed("job", "watch", job_id, *kit, home=tmp_path)
    assert watched.returncode == 0, watched.stderr
    assert f"COMPLETED. Fetch its result with: oncofed job fetch {job_id}" in watched.stdout

    fetched = oncofed("job", "fetch", job_id, *kit, home=tmp_path)
    assert fetched.returncode == 0, fetched.stderr
    folder = tmp_path / "workspace" / "runs" / job_id
    result = read_result(folder)
    assert (result.status, result.rounds, sorted(result.sites)) == ("completed", 12, ["east", "west"])
    assert all(site.federated is not None and site.alone is None for site in result.sites.values())
    assert {"job.yaml", "report.html", "result.json", "model", "tensorboard"} <= {p.name for p in folder.iterdir()}
    assert (folder / "model" / "bundle" / "configs" / "metadata.json").is_file()
    profile = read_training_profile(folder / "model")
    assert profile
    assert (profile.sites, profile.traits["spacing_superior"].patients) == (2, 34)
    assert "holds a result already" in oncofed("job", "fetch", job_id, *kit, home=tmp_path).stderr

    # What only served to go on is gone everywhere, and each site has the model.
    model = folder / "model" / "model.safetensors"
    server, sites = _state(alliance.server_kit, job_id), [_state(alliance.kit(site), job_id) for site in result.sites]
    wait_for(lambda: not any(list(kept.glob("*.safetensors")) for kept in (server, *sites)), "the job is forgotten")
    assert {path.name for path in server.iterdir()} == {".owner", "ended", "events.jsonl"}
    for kept in sites:
        assert {path.name for path in kept.iterdir()} == {".owner", "model", "test_cases.csv"}
        assert (kept / "model" / "bundle" / "configs" / "metadata.json").is_file()
        assert _same_weights(kept / "model" / "model.safetensors", model)
        assert read_training_profile(kept / "model") == profile

    # The finished model is scored at every site, and nothing is trained.
    scoring = ("job", "submit", job, *kit, "--model", model, "--against", model, "--evaluate-only", "--watch")
    scored = oncofed(*scoring, home=tmp_path)
    assert scored.returncode == 0, scored.stderr
    again = next(word for word in scored.stdout.split() if word.count("-") == 4)
    assert oncofed("job", "fetch", again, *kit, home=tmp_path).returncode == 0
    other = read_result(tmp_path / "workspace" / "runs" / again)
    assert other.rounds == 0
    assert {s: r.federated for s, r in other.sites.items()} == {s: r.federated for s, r in result.sites.items()}
    assert (tmp_path / "workspace" / "runs" / again / "model" / "model.safetensors").read_bytes() == model.read_bytes()
    assert not any((_state(alliance.kit(site), again) / "model").exists() for site in result.sites)
    # Over all patients, and beside a model that is the same.
    patients = {site: numbers.test_cases for site, numbers in result.sites.items()}
    for found in (result.pooled_test, other.pooled_test):
        assert found
        assert found.sites == patients
        assert found.figures["mean"].mean == pytest.approx(result.mean.federated, abs=1e-4)
    assert result.paired_test is None
    assert other.paired_test
    assert (other.paired_test.difference, other.paired_test.p_equal) == (0, 1)
    assert (other.paired_test.patients, other.paired_test.sites) == (sum(patients.values()), patients)
    assert read_training_profile(tmp_path / "workspace" / "runs" / again / "model") is None, "nothing was trained there"


def _state(kit: Path, job_id: str) -> Path:
    return kit / "oncofed" / job_id


def _same_weights(one: Path, other: Path) -> bool:
    first, second = load_file(one), load_file(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_stopped_job_keeps_its_rounds_results(alliance: LocalAlliance, tmp_path: Path) -> None:
    kit = ("--kit", alliance.kit(alliance.spec.engineer))
    job = write_job(tmp_path / "long", JOB.replace("number: 2", "number: 500"))
    job_id = json.loads(oncofed("job", "submit", job, *kit, "--json", home=tmp_path).stdout)["id"]
    log = tmp_path / "watched.txt"
    with forked("job", "watch", job_id, *kit, "--workspace", tmp_path / "workspace", log=log) as watching:
        wait_for(lambda: "round 1/500" in log.read_text(), "the first round is shown")
        assert "still runs" not in oncofed("job", "stop", job_id, *kit, home=tmp_path).stderr
        assert watching.wait(300) == 1
    fetched = oncofed("job", "fetch", job_id, *kit, home=tmp_path)
    assert fetched.returncode == 1
    folder = tmp_path / "workspace" / "runs" / job_id
    assert read_result(folder).status == "stopped"
    assert (folder / "model" / "model.safetensors").is_file()
    assert "has ended already" in oncofed("job", "stop", job_id, *kit, home=tmp_path).stderr


@pytest.mark.thorough
def test_a_search_goes_on_with_the_trial_that_the_alliance_runs(alliance: LocalAlliance, tmp_path: Path) -> None:
    kit = ("--kit", alliance.kit(alliance.spec.engineer))
    job, log, out = (
        write_job(tmp_path / "job", JOB.replace("number: 2", "number: 8")),
        tmp_path / "log.txt",
        tmp_path / "found",
    )
    before = len(list((alliance.server_kit / "oncofed").glob(f"*/{EVENTS_FILE}")))
    words = ("job", "tune", job, *kit, "--over", "learning_rate=0.003|0.01", "--budget", "2", "--out", out)
    with forked(*words, "--workspace", tmp_path / "workspace", log=log) as searching:
        wait_for(lambda: "round 1/8" in log.read_text(), "the first trial trains")
        press_ctrl_c(searching)
        assert searching.wait(300) == 130
    done = oncofed(*words, "--json", home=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [(row["state"], len(row["scores"])) for row in found["rows"]] == [("complete", 8)] * 2
    assert (found["own"], sorted(found["test_sites"])) == (1, ["east", "west"])
    assert found["test"] > 0
    records = [read_result(folder) for folder in out.glob("test-of-trial-*")]
    assert [record.mean.federated for record in records] == [found["test"]]
    # Two trials and one test: the trial that was under way was found again, not submitted anew.
    assert len(list((alliance.server_kit / "oncofed").glob(f"*/{EVENTS_FILE}"))) - before == 3


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("watch", "no-such-job"), 2, "the alliance has no job no-such-job"),
        (("submit", "hippocampus_segmentation", "--evaluate-only"), 2, "--evaluate-only needs --model FILE"),
        (("submit", "hippocampus_segmentation", "--against", "x.safetensors"), 2, "--against needs --evaluate-only"),
        (("submit", "hippocampus_segmentation", "--model", "nowhere.safetensors"), 2, "expected a file of weights"),
    ],
)
def test_impossible_requests_are_explained(
    alliance: LocalAlliance, tmp_path: Path, arguments: tuple[str, ...], status: int, said: str
) -> None:
    done = oncofed("job", *arguments, "--kit", alliance.kit(alliance.spec.engineer), home=tmp_path)
    assert (done.returncode, said in " ".join(done.stderr.split())) == (status, True), done.stderr


def test_present_sites_are_listed_and_missing_ones_waited_for(alliance: LocalAlliance, tmp_path: Path) -> None:
    kit = ("--kit", alliance.kit(alliance.spec.engineer))
    job = write_job(tmp_path / "job")
    log = tmp_path / "submitted.txt"
    with forked("job", "submit", job, *kit, "--wait-for", "east,north", log=log) as waiting:
        wait_for(lambda: "waiting for north" in log.read_text(), "the missing site is named")
        press_ctrl_c(waiting)
        assert waiting.wait(300) == 130
    assert "is submitted" not in log.read_text()
    done = oncofed("job", "submit", job, *kit, "--wait-for", "east,west", home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "connected: east, west" in done.stdout
    assert oncofed("job", "submit", job, *kit, "--wait-for", "east,,west", home=tmp_path).returncode == 2


def test_a_folder_that_is_no_kit_is_named(tmp_path: Path) -> None:
    done = oncofed("job", "watch", "some-job", "--kit", tmp_path, home=tmp_path)
    assert done.returncode == 2
    assert "no startup kit of a person" in " ".join(done.stderr.split())
