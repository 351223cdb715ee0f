"""Approval of code by digest in a real federation."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from commands import Outcome
from fault_lab import Lab, excluded, lab
from oncofed.audit import AuditLog
from oncofed.errors import FederationError
from oncofed.job.progress import RunProgress
from oncofed.job.spec import JobSpec, parse_job
from oncofed.sandbox import what_is_missing
from synthetic import JOB, make_package, make_site, write_job

pytestmark = [
    pytest.mark.slow,
    pytest.mark.federation,
    pytest.mark.skipif(what_is_missing() is not None, reason=f"no process can be confined: {what_is_missing()}"),
]

_REASON = "looked at by two of us, it is a network and no more"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A federation in which one job has ended."""
    folder = tmp_path_factory.mktemp("packs")
    sites = {site: make_site(folder / site, 6, seed) for seed, site in enumerate(("east", "west"))}
    with lab(parse_job(write_job(folder / "job", JOB)), sites, folder / "lab") as running:
        running.wait(lambda state: state.finished is not None, "the first job ends")
        yield running


def _packed(run: Callable[..., Outcome], package: Path, job: Path, running: Lab) -> tuple[str, JobSpec]:
    """Pack a package; return its digest and a job."""
    kit = running.alliance.kit(running.alliance.spec.engineer)
    made = run("job", "pack", package, "--kit", kit, "--out", job, "--json")
    assert made.status == 0, made.text
    digest = json.loads(made.output)["digest"]
    values = yaml.safe_load((job / "job.yaml").read_text())
    values["model"] = {"network": "wide_net", "code": digest}
    values["rounds"] |= {"quorum": 1, "deadline_s": 60.0}
    (job / "job.yaml").write_text(yaml.safe_dump(values))
    return digest, parse_job(job / "job.yaml", with_code=True)


def _ended(running: Lab, spec: JobSpec) -> RunProgress:
    running.submit(spec)
    return running.wait(
        lambda state: bool(state.finished or state.failed or len(excluded(state)) == 2), "the job ends", 300
    )


def _last(kit: Path, what: str) -> dict[str, object]:
    return [entry for entry in AuditLog(kit).entries() if entry["what"] == what][-1]


@pytest.mark.attack(
    "code that no site approved; approved code with one byte changed; code whose approval was taken back",
    by="each site's list of approved digests",
    logged="the site's audit log: code received, job refused",
)
def test_only_approved_code_runs_at_a_site(running: Lab, run: Callable[..., Outcome], tmp_path: Path) -> None:
    kits = {site: running.alliance.kit(site) for site in ("east", "west")}
    job = write_job(tmp_path / "job", JOB).parent
    digest, spec = _packed(run, make_package(tmp_path / "one" / "wide_net"), job, running)

    reason = f"the pack wide_net \\({digest[:12]}…\\) is not approved there"
    refused = f"0 of 2 connected sites would run it, it needs 1. east: {reason}.*; west: {reason}"
    with pytest.raises(FederationError, match=refused):
        running.submit(spec)
    received = _last(kits["east"], "code received")
    assert (received["pack"], received["pack_by"]) == (digest, running.alliance.spec.engineer)
    assert _last(kits["east"], "job refused")["pack"] == digest

    assert "waits" in run("site", "review", "--folder", kits["east"]).text
    seen = run("site", "review", digest[:10], "--folder", kits["east"])
    assert seen.status == 0, seen.text
    for part in (digest, "the signature holds", "imports oncofed.models, torch", "+class Block(nn.ReLU):"):
        assert part in seen.text
    assert run("site", "approve", digest[:10], "--reason", "ok", "--folder", kits["east"]).status == 2
    for kit in kits.values():
        approved = run("site", "approve", digest[:10], "--reason", _REASON, "--folder", kit)
        assert approved.status == 0, approved.text
    state = _ended(running, spec)
    assert sorted(state.finished.test) == ["east", "west"]  # type: ignore[union-attr]
    assert _last(kits["west"], "job admitted")["pack"] == digest
    assert _last(kits["west"], "code approved")["reason"] == _REASON

    other, changed = _packed(run, make_package(tmp_path / "two" / "wide_net", "# more\n"), job, running)
    assert other != digest
    with pytest.raises(FederationError, match=f"{other[:12]}…. is not approved there"):
        running.submit(changed)
    difference = json.loads(run("site", "review", other, "--folder", kits["east"], "--json").output)
    assert difference["before"] == digest
    assert "+# more" in difference["changes"]
    assert run("site", "reject", other, "--reason", _REASON, "--folder", kits["east"]).status == 0
    assert run("site", "withdraw", other, "--reason", _REASON, "--folder", kits["west"]).status == 3

    assert run("site", "withdraw", digest, "--reason", _REASON, "--folder", kits["east"]).status == 0
    state = _ended(running, spec)
    assert list(excluded(state)) == ["east"]
    assert "was withdrawn there" in excluded(state)["east"]
    assert sorted(state.finished.test) == ["west"]  # type: ignore[union-attr]
    listed = json.loads(run("site", "review", "--folder", kits["east"], "--json").output)
    assert {row["digest"]: row["state"] for row in listed} == {digest: "withdrawn", other: "rejected"}


def test_impossible_decisions_are_refused(running: Lab, run: Callable[..., Outcome], tmp_path: Path) -> None:
    kit = running.alliance.kit("west")
    unsigned = run("job", "pack", make_package(tmp_path / "own" / "wide_net", "# own\n"), "--out", tmp_path, "--json")
    file = json.loads(unsigned.output)["file"]
    seen = run("site", "review", file, "--folder", kit)
    assert "signed by nobody: its certificate or signature is broken" in seen.text
    digest = json.loads(unsigned.output)["digest"]
    refused = run("site", "approve", digest, "--reason", _REASON, "--folder", kit)
    assert (refused.status, "cannot be approved" in refused.text) == (3, True)
    assert run("site", "review", "0000", "--folder", kit).status == 2
    assert run("site", "review", "--folder", running.alliance.server_kit).status == 1
    nothing = make_package(tmp_path / "none" / "wide_net")
    (nothing / "__init__.py").write_text("")
    assert "registers no network" in run("job", "pack", nothing, "--out", tmp_path).text
