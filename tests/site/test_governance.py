"""Policy, outbound filter and audit log in a real federation."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from commands import Outcome
from fault_lab import Lab, excluded, lab, poison
from oncofed.alliance.authority import Authority
from oncofed.alliance.kits import PRIVACY_FILE
from oncofed.audit import AuditLog
from oncofed.errors import FederationError
from oncofed.job.progress import RunProgress
from oncofed.job.spec import JobSpec, parse_job
from oncofed.rounds.events import Refused
from oncofed.signing import signed
from synthetic import JOB, make_site, write_job

pytestmark = [pytest.mark.slow, pytest.mark.federation]

_REASON = "the board of 3 March allows no other network"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A federation in which one job has ended."""
    folder = tmp_path_factory.mktemp("governed")
    sites = {site: make_site(folder / site, 6, seed) for seed, site in enumerate(("east", "west"))}
    spec = parse_job(write_job(folder / "job", JOB))
    with lab(spec, sites, folder / "lab") as running:
        running.wait(lambda state: state.finished is not None, "the first job ends")
        yield running


def _run(running: Lab, spec: JobSpec) -> RunProgress:
    """Submit a job and return its outcome."""
    running.submit(spec)
    running.wait(lambda state: state.finished is not None or excluded(state) or state.failed, "it ends")
    return running.look()


def _what(kit: Path) -> list[str]:
    return [entry["what"] for entry in AuditLog(kit).entries()]


@pytest.mark.attack(
    "an audit log that is edited, or whose end is cut off",
    by="the chain of digests; the server's anchor",
    logged="oncofed site audit verify",
)
def test_jobs_and_traffic_are_recorded_and_anchored_on_the_server(
    running: Lab, run: Callable[..., Outcome], tmp_path: Path
) -> None:
    kits = {site: running.alliance.kit(site) for site in ("east", "west")}
    for kit in kits.values():
        assert _what(kit)[0] == "job admitted"
        entries = list(AuditLog(kit).entries())
        assert entries[0]["who"] == running.alliance.spec.engineer
        assert (entries[0]["dataset"], entries[0]["network"], entries[0]["strategy"]) == ("balls", "unet", "fedavg")
        left = [entry for entry in entries if entry["what"] == "message left"]
        trained = [entry for entry in left if entry["task"] == "train"]
        assert len(trained) == running.spec.rounds.number
        assert all(entry["bytes"] > 1000 and entry["digest"].startswith("blake3:") for entry in trained)
        assert len({entry["digest"] for entry in trained}) == len(trained)
        assert str(kit) not in kit.joinpath("audit", "audit.jsonl").read_text()

    anchors = tmp_path / "anchors.json"
    run("site", "audit", "anchors", "--folder", running.alliance.server_kit, "--out", anchors)
    assert sorted(json.loads(anchors.read_text())) == ["_exported", "east", "west"]
    verified = run("site", "audit", "verify", "--folder", kits["east"], "--anchors", anchors)
    assert verified.status == 0, verified.text
    assert run("site", "audit", "verify", "--folder", running.alliance.server_kit).status == 0

    path = kits["east"] / "audit" / "audit.jsonl"
    whole = path.read_text()
    path.write_text("".join(whole.splitlines(keepends=True)[:-3]))
    assert run("site", "audit", "verify", "--folder", kits["east"]).status == 0
    cut = run("site", "audit", "verify", "--folder", kits["east"], "--anchors", anchors)
    assert (cut.status, "lines are cut off at the end" in cut.text) == (3, True)
    path.write_text(whole.replace('"task": "train"', '"task": "tried"', 1))
    changed = run("site", "audit", "verify", "--folder", kits["east"])
    assert (changed.status, "it was changed" in changed.text) == (3, True)
    path.write_text(whole)


def test_the_audit_log_is_shown_and_exported(running: Lab, run: Callable[..., Outcome], tmp_path: Path) -> None:
    kit = running.alliance.kit("east")
    shown = run("site", "audit", "show", "--folder", kit, "--what", "left")
    assert "message left" in shown.text
    assert run("site", "audit", "export", tmp_path / "log.csv", "--folder", kit).status == 0
    rows = list(csv.DictReader((tmp_path / "log.csv").open()))
    assert [row["what"] for row in rows] == _what(kit)
    assert run("site", "audit", "export", tmp_path / "log.html", "--folder", kit).status == 0
    page = (tmp_path / "log.html").read_text()
    assert running.alliance.spec.engineer in page
    assert "is whole" in page
    assert run("site", "audit", "export", tmp_path / "log.pdf", "--folder", kit).status == 2


@pytest.mark.attack(
    "a network that the site's policy does not allow",
    by="the site's policy",
    logged="the site's audit log: job refused",
)
def test_a_job_against_policy_is_refused_before_data_is_read(
    running: Lab, run: Callable[..., Outcome], tmp_path: Path
) -> None:
    kit = running.alliance.kit("east")
    before = json.loads((kit / "local" / "policy.json").read_text())
    policy = tmp_path / "policy.yaml"
    policy.write_text("networks: [segresnet]\n")
    changed = run("site", "policy", "edit", "--folder", kit, "--file", policy, "--reason", _REASON)
    assert changed.status == 0, changed.text
    assert "+networks" in changed.text
    assert 'networks: ["segresnet"]' in run("site", "policy", "show", "--folder", kit).text
    refused = run("site", "policy", "test", write_job(tmp_path / "job"), "--folder", kit)
    assert (refused.status, "networks has no 'unet'" in refused.text) == (3, True), refused.text
    rule = "its policy does not allow this job: networks has no 'unet'"
    try:
        # If every site is needed, it is refused at submission; if one is enough, the other trains alone.
        with pytest.raises(FederationError, match=f"1 of 2 connected sites would run it, it needs 2. east: {rule}"):
            running.submit(running.spec)
        at_once = list(AuditLog(kit).entries())[-1]
        assert (at_once["what"], at_once["rule"]) == ("job refused", rule)
        assert at_once["who"] == running.alliance.spec.engineer
        state = _run(running, running.spec.changed({"rounds": {"quorum": 1}}))
        policy.write_text("people: [eve@example.org]\n")
        assert run("site", "policy", "edit", "--folder", kit, "--file", policy, "--reason", _REASON).status == 0
        with pytest.raises(FederationError, match=f"people has no '{running.alliance.spec.engineer}'"):
            running.submit(running.spec)
    finally:
        (kit / "local" / "policy.json").write_text(json.dumps(before))
    assert excluded(state) == {"east": "its policy does not allow this job: networks has no 'unet'"}
    entries = list(AuditLog(kit).entries())
    change, _ = [entry for entry in entries if entry["what"] == "policy changed"]
    assert (change["version"], change["reason"]) == (2, _REASON)
    refusal = next(entry for entry in reversed(entries) if entry["what"] == "job refused" and "policy" in entry)
    assert (refusal["rule"], refusal["policy"]) == (excluded(state)["east"], change["policy"])


@pytest.mark.attack(
    "a trainer sends pixels as a tensor of a new name, as another shape, as metric names, as many metrics",
    by="the site's outbound guard",
    logged="the site's audit log: message held back",
)
@pytest.mark.parametrize("kind", ["tensor", "metric", "text", "shape"])
def test_undeclared_results_are_held_back(running: Lab, kind: str) -> None:
    kit = running.alliance.kit("west")
    before = (kit / "local" / PRIVACY_FILE).read_text()
    poison(kit, kind, guarded=True)
    try:
        state = _run(running, running.spec.changed({"rounds": {"quorum": 1, "deadline_s": 60.0}}))
    finally:
        (kit / "local" / PRIVACY_FILE).write_text(before)
    reasons = [incident.reason for incident in state.incidents if isinstance(incident, Refused)]
    assert set(reasons) == {"stopped by the site's outbound policy"}
    assert all("west" in who["refused"] for who in state.participation.values())
    held = [entry for entry in AuditLog(kit).entries() if entry["what"] == "message held back"]
    assert held
    assert "MRN" not in json.dumps(held)


def test_without_an_audit_log_nothing_runs(running: Lab) -> None:
    kit = running.alliance.kit("west")
    log = kit / "audit" / "audit.jsonl"
    aside = log.rename(log.with_suffix(".aside"))
    log.mkdir()
    try:
        state = _run(running, running.spec)
    finally:
        log.rmdir()
        aside.rename(log)
    assert excluded(state) == {"west": "it cannot write its audit log, and runs nothing unrecorded"}


def test_an_invalid_policy_is_refused(running: Lab, run: Callable[..., Outcome], tmp_path: Path) -> None:
    kit = running.alliance.kit("west")
    policy = tmp_path / "policy.yaml"
    before = (kit / "local" / "policy.json").read_bytes()
    for text, reason, said in (
        ("network_s: [unet]", _REASON, "network_s"),
        ("networks: [unte]", _REASON, "did you mean unet?"),
        ("networks: []", _REASON, "networks"),
        ("strategies: [fedavg2]", _REASON, "fits none of"),
        ("leaves: {minimum_patients: 0}", _REASON, "minimum_patients"),
        ("windows: [18-07]", _REASON, "windows"),
        ("windows: ['08:00-08:00']", _REASON, "begins when it ends"),
        ("jobs: null", _REASON, "nothing was changed"),
        ("jobs: [x]", "why", "expected a sentence"),
    ):
        policy.write_text(text + "\n")
        outcome = run("site", "policy", "edit", "--folder", kit, "--file", policy, "--reason", reason)
        assert (outcome.status, said in outcome.text) == (2, True), outcome.text
    assert (kit / "local" / "policy.json").read_bytes() == before
    assert "it has no policy" in run("site", "policy", "show", "--folder", running.alliance.server_kit).text


def test_a_model_has_a_signed_provenance(running: Lab, run: Callable[..., Outcome], tmp_path: Path) -> None:
    _run(running, running.spec)
    kit = running.alliance.kit(running.alliance.spec.engineer)
    models = running.alliance.server_kit / "oncofed" / running.job.id / "models"
    (tmp_path / "model").mkdir()
    shutil.copy(models / "best.safetensors", tmp_path / "model" / "model.safetensors")
    shutil.copy(models / "provenance.json", tmp_path)
    verified = run("report", "verify", tmp_path, "--kit", kit)
    assert verified.status == 0, verified.text
    told = json.loads(run("report", "verify", tmp_path, "--kit", kit, "--json").output)
    assert (told["job"], told["submitted_by"], told["rounds"]) == ("balls", running.alliance.spec.engineer, 2)
    assert sorted(told["sites"]) == ["east", "west"]
    east = told["sites"]["east"]
    admitted = next(entry for entry in AuditLog(running.alliance.kit("east")).entries())
    assert (east["dataset"], east["policy"]) == (admitted["dataset_digest"], admitted["policy"])

    path = tmp_path / "provenance.json"
    content = json.loads(path.read_text())
    for change, said in (
        ({"provenance": {**content["provenance"], "rounds": 99}}, "changed after it was signed"),
        ({"signature": None}, "it is not signed"),
        ({"certificate": (kit / "startup" / "client.crt").read_text()}, "changed after it was signed"),
        (
            signed(
                json.dumps(content["provenance"], sort_keys=True).encode(),
                kit / "startup" / "client.key",
                kit / "startup" / "client.crt",
            ),
            f"signed by {running.alliance.spec.engineer}, expected the server",
        ),
        ({"certificate": "x"}, "certificate or signature is broken"),
    ):
        path.write_text(json.dumps({**content, **change}))
        outcome = run("report", "verify", tmp_path, "--kit", kit)
        assert (outcome.status, said in outcome.text) == (3, True), outcome.text
    path.write_text(json.dumps(content))
    weights = load_file(tmp_path / "model" / "model.safetensors")
    name = next(iter(weights))
    save_file({**weights, name: weights[name] + 1e-6}, tmp_path / "model" / "model.safetensors")
    outcome = run("report", "verify", tmp_path, "--kit", kit)
    assert (outcome.status, "not those that it was written for" in outcome.text) == (3, True)
    other = tmp_path / "kit" / "startup"
    other.mkdir(parents=True)
    shutil.copy(kit / "kit.json", tmp_path / "kit")
    (other / "rootCA.pem").write_bytes(Authority.new("another").certificate_pem)
    assert "not of this alliance" in run("report", "verify", tmp_path, "--kit", tmp_path / "kit").text
    path.unlink()
    assert run("report", "verify", tmp_path, "--kit", kit).status == 2
