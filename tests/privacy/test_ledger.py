"""What a site's patients have spent over all jobs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from oncofed.audit import CHARGED, AuditLog
from oncofed.errors import AuditError, PolicyError
from oncofed.privacy.accountant import Event, epsilon
from oncofed.privacy.ledger import LEDGER_FILE, Charge, Ledger, Limits, account_of, refusal, spent

pytest.importorskip("dp_accounting", reason="dp-accounting is not installed")

A = Event(1.2, 0.08, 300)  # 6.974 at 1e-5; twice 10.223, and not 13.95
PATIENTS = frozenset(f"patient{number}" for number in range(30))


def _charge(job: str, event: Event = A, patients: frozenset[str] = PATIENTS, account: str = "one") -> Charge:
    return Charge(job, account, "digest", event, patients)


def test_jobs_compose_and_are_not_added(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.charge(_charge("first"), Limits(1e-5, a_patient=10.0), "eve")
    with pytest.raises(PolicyError, match=r"of some of its patients is spent, expected at most epsilon 10 "):
        ledger.charge(_charge("second"), Limits(1e-5, a_patient=10.0), "eve")
    reason = refusal(list(ledger.charges().values()), _charge("second"), Limits(1e-5, a_patient=10.0))
    assert reason
    assert re.search(r"30 of 30 patients would come to epsilon 10\.23 .*expected at most 10", reason.here)
    assert list(ledger.charges()) == ["first"]
    ledger.charge(_charge("second"), Limits(1e-5, a_patient=10.5), "eve")
    (group,) = spent(list(ledger.charges().values()), 1e-5)
    assert group.epsilon == pytest.approx(10.223, abs=0.01)
    assert (group.patients, group.jobs) == (30, ("first", "second"))


def test_a_refusal_says_the_epsilon_that_the_job_states_too(tmp_path: Path) -> None:
    ledger, stated = Ledger(tmp_path), r"; by itself, at its own delta 0\.001, the job's epsilon is (\d\.\d+)"
    with pytest.raises(PolicyError, match=rf"delta 1e-05, expected at most 6{stated}$") as refused:
        ledger.charge(_charge("first"), Limits(1e-5, a_job=6.0), "eve", 1e-3)
    said = re.search(stated, str(refused.value))
    assert said
    assert float(said[1]) == pytest.approx(epsilon([A], 1e-3), rel=1e-3)
    ledger.charge(_charge("first"), Limits(1e-5), "eve", 1e-3)
    spent_before = list(ledger.charges().values())
    over = refusal(spent_before, _charge("second"), Limits(1e-5, a_patient=10.0), 1e-3)
    assert over
    assert all(re.search(stated, text) for text in (over.told, over.here))
    alike = refusal(spent_before, _charge("second"), Limits(1e-5, a_patient=10.0), 1e-5)
    assert alike
    assert "by itself" not in alike.told + alike.here


def test_the_limit_of_a_job_is_its_own(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"epsilon 6\.97\d? at delta 1e-05, expected at most 6"):
        Ledger(tmp_path).charge(_charge("first"), Limits(1e-5, a_job=6.0), "eve")
    Ledger(tmp_path).charge(_charge("first"), Limits(1e-5, a_job=7.0), "eve")


def test_only_patients_in_both_jobs_pay_twice(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ledger, limits = Ledger(tmp_path), Limits(1e-5, a_patient=8.0)
    few = frozenset(sorted(PATIENTS)[:7])
    ledger.charge(_charge("first", patients=few), limits, "eve")
    with pytest.raises(PolicyError, match="some of its patients is spent"):
        ledger.charge(_charge("second"), limits, "eve")
    assert "job second is not charged: 7 of 30 patients" in caplog.text
    ledger.charge(_charge("third", patients=PATIENTS - few), limits, "eve")


def test_a_job_is_charged_once_and_settled_to_what_it_took(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ledger, limits = Ledger(tmp_path), Limits(1e-5, a_patient=10.0)
    first = ledger.charge(_charge("first"), limits, "eve")
    assert Ledger(tmp_path).charge(_charge("first"), limits, "eve") == first  # a restarted process
    assert ledger.settle("first", 300, "eve") is None
    assert ledger.settle("first", 100, "eve")
    assert ledger.settle("unknown", 1, "eve") is None
    assert ledger.charges()["first"].event.steps == 100
    ledger.charge(_charge("second"), limits, "eve")  # 300 and 100 steps together stay below
    with pytest.raises(PolicyError, match="some of its patients is spent"):
        ledger.charge(_charge("first"), limits, "eve")  # it would go on with the other 200
    assert "30 of 30" in caplog.text
    ledger.charge(_charge("first"), Limits(1e-5), "eve")
    assert ledger.charges()["first"].event.steps == 300


def test_a_job_that_was_charged_for_others_is_refused(tmp_path: Path) -> None:
    ledger, limits = Ledger(tmp_path), Limits(1e-5)
    ledger.charge(_charge("first", patients=frozenset({"a", "b"})), limits, "eve")
    for other in (_charge("first"), _charge("first", Event(0.5, 0.08, 300), frozenset({"a", "b"}))):
        with pytest.raises(PolicyError, match="not the one that its patients were charged for"):
            ledger.charge(other, limits, "eve")


def test_keys_of_another_salt_may_be_the_same_people(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ledger, limits = Ledger(tmp_path), Limits(1e-5, a_patient=8.0)
    ledger.charge(_charge("first"), limits, "eve")
    others = frozenset(f"key{number}" for number in range(25))
    with pytest.raises(PolicyError, match="some of its patients is spent"):
        ledger.charge(_charge("second", patients=others, account="two"), limits, "eve")
    assert "25 of 25 patients" in caplog.text


def test_a_refusal_tells_the_same_whoever_was_in_an_earlier_job(tmp_path: Path) -> None:
    ledger, limits = Ledger(tmp_path), Limits(1e-5, a_patient=8.0)
    ledger.charge(_charge("first"), limits, "eve")
    told = set()
    for known in (1, 3, 30):
        people = frozenset(sorted(PATIENTS)[:known]) | {f"new{number}" for number in range(30 - known)}
        with pytest.raises(PolicyError) as refused:
            ledger.charge(_charge(f"probe{known}", A, people), limits, "eve")
        told.add(str(refused.value))
    assert len(told) == 1


def test_an_edited_line_or_list_stops_every_job(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    anchor = ledger.charge(_charge("first"), Limits(1e-5), "eve")
    path = tmp_path / LEDGER_FILE
    assert path.stat().st_mode & 0o777 == 0o600
    whole = path.read_text()
    entry = json.loads(whole)
    path.write_text(json.dumps({**entry, "steps": 1}, sort_keys=True) + "\n")
    assert ledger.verify()[0]
    with pytest.raises(AuditError, match="is broken at line 1"):
        ledger.charge(_charge("second"), Limits(1e-5), "eve")
    path.write_text("")
    assert ledger.verify((anchor,))[0]
    path.write_text(whole)
    (patients,) = (tmp_path / "audit" / "patients").iterdir()
    assert patients.stat().st_mode & 0o777 == 0o600
    patients.write_text("[]")
    with pytest.raises(AuditError, match="were changed"):
        ledger.charges()


@pytest.mark.parametrize("left", [None, 0, 1])
def test_a_ledger_that_lacks_what_the_audit_log_knows_gives_no_budget(tmp_path: Path, left: int | None) -> None:
    """Deleted, emptied, or cut after its first line."""
    ledger, path = Ledger(tmp_path), tmp_path / LEDGER_FILE
    for job in ("first", "second"):
        last = ledger.charge(_charge(job), Limits(1e-5), "eve")
        AuditLog(tmp_path).write(CHARGED, "eve", job=job, ledger=str(last))
    lines = path.read_bytes().splitlines(keepends=True)
    path.unlink() if left is None else path.write_bytes(b"".join(lines[:left]))
    with pytest.raises(AuditError, match=r"cut off at the end.* back from the latest backup"):
        ledger.charge(_charge("third"), Limits(1e-5), "eve")
    path.write_bytes(b"".join(lines))
    ledger.charge(_charge("third"), Limits(1e-5), "eve")


@pytest.mark.parametrize("torn", [b'{"n": 2, "wh', b"\0\0\0"])
def test_a_line_cut_by_a_crash_stops_no_job(tmp_path: Path, torn: bytes) -> None:
    ledger, path = Ledger(tmp_path), tmp_path / LEDGER_FILE
    ledger.charge(_charge("first"), Limits(1e-5), "eve")
    path.write_bytes(path.read_bytes() + torn)
    assert list(ledger.charges()) == ["first"]
    ledger.charge(_charge("second"), Limits(1e-5), "eve")
    assert list(ledger.charges()) == ["first", "second"]
    assert ledger.verify()[0] == []


def test_a_charge_that_lacks_its_lines_end_alone_is_kept(tmp_path: Path) -> None:
    ledger, path = Ledger(tmp_path), tmp_path / LEDGER_FILE
    last = ledger.charge(_charge("first"), Limits(1e-5), "eve")
    path.write_bytes(path.read_bytes()[:-1])
    ledger.charge(_charge("first"), Limits(1e-5), "eve")
    assert list(ledger.charges()) == ["first"]
    assert ledger.verify((last,))[0] == []
    AuditLog(tmp_path).write(CHARGED, "eve", job="first", ledger=str(last))
    path.write_bytes(path.read_bytes().partition(b"\n")[0])
    with pytest.raises(AuditError, match="cut off at the end"):
        ledger.charge(_charge("second"), Limits(1e-5), "eve")


def test_nothing_in_the_ledger_names_a_patient(tmp_path: Path) -> None:
    Ledger(tmp_path).charge(_charge("first"), Limits(1e-5), "eve")
    assert "patient1" not in (tmp_path / LEDGER_FILE).read_text()


def test_datasets_of_one_salt_have_one_account(tmp_path: Path) -> None:
    for name, salt in {"ct": b"a" * 32, "mri": b"a" * 32, "other": b"b" * 32}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / ".salt").write_bytes(salt)
    (tmp_path / "bare").mkdir()
    assert account_of(tmp_path / "ct") == account_of(tmp_path / "mri") != account_of(tmp_path / "other")
    assert account_of(tmp_path / "bare") not in {account_of(tmp_path / "ct"), account_of(tmp_path / "other")}


def test_a_thousand_patients_of_many_jobs_are_soon_looked_through(tmp_path: Path) -> None:
    """Most are settled by the looser bound, and equal histories are computed once."""
    ledger, limits = Ledger(tmp_path), Limits(1e-5, a_patient=12.0)
    people = [f"patient{number}" for number in range(1000)]
    for number in range(12):
        event = Event(4.0 + number % 3, 0.02, 200)
        some = frozenset(people[number::5])
        ledger.charge(_charge(f"job{number}", event, some), limits, "eve")
    assert len(ledger.charges()) == 12
    ledger.charge(_charge("all", Event(2.0, 0.02, 200), frozenset(people)), limits, "eve")


@pytest.mark.parametrize("kinds", [3, 50])
def test_a_thousand_patients_of_fifty_jobs_are_all_told(kinds: int) -> None:
    """Of as many histories as patients, close to what each may spend."""
    rng = np.random.default_rng(0)
    people = np.array([f"patient{number}" for number in range(1000)])
    events = [Event(8.0 + number % kinds / 10, 0.02 + number % kinds / 2000, 200) for number in range(50)]
    charges = [
        _charge(f"job{number}", event, frozenset(rng.permutation(people)[:700])) for number, event in enumerate(events)
    ]
    groups = spent(charges, 1e-5)
    assert sum(group.patients for group in groups) == 1000
    assert [group.epsilon for group in groups] == sorted((group.epsilon for group in groups), reverse=True)
    by_job = {charge.job: charge for charge in charges}
    for group in (groups[0], groups[500]):
        same = [patient for patient in people if {c.job for c in charges if patient in c.patients} == set(group.jobs)]
        assert len(same) == group.patients
        assert group.epsilon == pytest.approx(epsilon([by_job[job].event for job in group.jobs], 1e-5), abs=0.01)
    most, everybody = groups[0].epsilon, frozenset(people)
    assert (
        refusal(charges, _charge("new", Event(1000.0, 0.001, 1), everybody), Limits(1e-5, a_patient=most + 0.02))
        is None
    )
    reason = refusal(charges, _charge("new", Event(8.0, 0.02, 200), everybody), Limits(1e-5, a_patient=most))
    assert reason
    over, all_of_them = map(int, re.findall(r"^(\d+) of (\d+) patients", reason.here)[0])
    assert 0 < over < all_of_them == 1000
