"""What patients have spent, as a site's admin sees it."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from oncofed.audit import CHARGED, AuditLog
from oncofed.cli.site import app
from oncofed.client.datasets import DATASETS_FILE, datasets_entry
from oncofed.privacy.accountant import Event
from oncofed.privacy.ledger import LEDGER_FILE, Charge, Ledger, Limits
from oncofed.privacy.policy import POLICY_FILE, LeavesSpec, Policy, PrivacyLimits
from oncofed.site.auditing import verify
from oncofed.site.budget import read_budget
from synthetic import JOB, make_site, write_job

pytest.importorskip("dp_accounting", reason="dp-accounting is not installed")

_PATIENTS = frozenset(f"patient{number}" for number in range(24))


@pytest.fixture
def charged(kits: dict[str, Path]) -> Path:
    """A site whose patients were in one job, and some of them in another."""
    folder = kits["east"]
    for job, patients in (("first", _PATIENTS), ("second", frozenset(sorted(_PATIENTS)[:6]))):
        charge = Charge(job, "salt", "digest", Event(1.2, 0.08, 300), patients)
        last = Ledger(folder).charge(charge, Limits(1e-5), "eve@example.org")
        AuditLog(folder).write(CHARGED, "eve@example.org", job=job, ledger=str(last))
    return folder


def test_the_admin_sees_who_has_how_much_left(charged: Path) -> None:
    budget = read_budget(charged)
    assert [(one.patients, len(one.jobs)) for one in budget.groups] == [(6, 2), (18, 1)]
    shown = CliRunner().invoke(app, ["budget", "show", "--folder", str(charged)])
    assert shown.exit_code == 0, shown.output
    assert "10.23" in shown.output
    assert "no limit" in shown.output
    assert not any(patient in shown.output for patient in _PATIENTS)


def test_a_site_without_such_jobs_says_so(kits: dict[str, Path]) -> None:
    shown = CliRunner().invoke(app, ["budget", "show", "--folder", str(kits["west"])])
    assert "no job with differential privacy was charged here" in shown.output


@pytest.mark.attack(
    "a ledger that was changed, so that patients have more left",
    by="`oncofed site audit verify`, by the lines that the audit log holds, and every later job",
    logged="exit status 3",
)
def test_a_changed_or_cut_ledger_is_found_with_the_audit_log(charged: Path) -> None:
    assert verify(charged, None)[0] == []
    path = charged / LEDGER_FILE
    whole = path.read_text()
    asked = ["audit", "verify", "--folder", str(charged)]
    assert CliRunner().invoke(app, asked).exit_code == 0
    path.write_text(whole.replace('"steps": 300', '"steps": 3'))
    changed = CliRunner().invoke(app, asked)
    assert (changed.exit_code, "of the ledger" in changed.output) == (3, True)
    assert any("of the ledger" in problem.what for problem in verify(charged, None)[0])
    path.write_text(whole.splitlines()[0] + "\n")
    assert any("cut off" in problem.what for problem in verify(charged, None)[0])
    path.unlink()
    assert verify(charged, None)[0]


_PRIVATE = "privacy: {differential_privacy: {noise_multiplier: 1.2, delta: %s, sampling: 0.08}}\n"


@pytest.mark.parametrize(
    ("patients", "delta", "limit", "message"),
    [
        (12, "1.0e-4", None, "found 8 training patients here; too few training patients"),
        (32, "4.9e-2", None, "training patients here; delta is 0.049, expected less than one"),
        (
            32,
            "1.0e-4",
            0.1,
            "at delta 1e-05, expected at most 0.1; by itself, at its own delta 0.0001, the job's epsilon",
        ),
        (32, "1.0e-4", None, ""),
    ],
)
def test_a_job_is_tried_with_the_sites_own_patients(
    kits: dict[str, Path], tmp_path: Path, patients: int, delta: str, limit: float | None, message: str
) -> None:
    folder, file = kits["east"], write_job(tmp_path / "job", JOB + _PRIVATE % delta)
    policy = Policy(leaves=LeavesSpec(differential_privacy=PrivacyLimits(largest_epsilon_a_job=limit)))
    (folder / "local" / POLICY_FILE).write_text(policy.model_dump_json(by_alias=True))
    nowhere = CliRunner().invoke(app, ["policy", "test", str(file), "--folder", str(folder)])
    assert "which is not known: " in nowhere.output
    data = make_site(tmp_path / "data", patients)
    (folder / "local" / DATASETS_FILE).write_bytes(datasets_entry("east", {"balls": data}))
    for group in ("budget", "policy"):
        tried = CliRunner().invoke(app, [group, "test", str(file), "--folder", str(folder)])
        assert message in str(tried.exception or tried.output)
        assert (tried.exit_code == 0) == (not message)
