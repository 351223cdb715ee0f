"""What differential privacy has cost each patient of a site, over all its jobs.

A job is charged before its first step for all steps that it plans, and settled at its end to those whose result left. A
process that is killed leaves the whole charge. The ledger is chained, and the audit log knows its lines: emptied, cut
or deleted, it gives no budget anew. It holds patients by the keys of their datasets, which are salted hashes.

What several jobs cost together is computed from all their steps (privacy loss distributions): less than their epsilons
added up.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

from oncofed.audit import BREAKS_OFF, CHARGED, Anchor, AuditLog, Problem
from oncofed.data.manifest import SALT_FILE
from oncofed.data.patient_keys import way_of_keys
from oncofed.errors import AuditError, PolicyError
from oncofed.privacy.accountant import Event, epsilon, epsilons, renyi_epsilon, rounded_up
from oncofed.private_files import open_private, write_private

LEDGER_FILE = Path("audit") / "ledger.jsonl"
_PATIENTS_FOLDER = Path("audit") / "patients"
_CHARGED, _SETTLED = "charged", "settled"
_RESTORED_FILE, _BEGUN_FILE = Path("audit") / "restored.json", Path("audit") / "begun_before_restore.json"
CONFIRMED = "ledger confirmed"


@dataclass(frozen=True)
class Limits:
    """What a site's policy allows.

    Attributes:
        delta: at which epsilons are told.
        a_job: largest epsilon of a job; None: no limit.
        a_patient: largest epsilon of a patient over all jobs, ever; None: no limit.
    """

    delta: float
    a_job: float | None = None
    a_patient: float | None = None


@dataclass(frozen=True)
class Restored:
    """A ledger that was put back from a backup.

    Attributes:
        made: when the backup was made, in UTC.
        at: when it was put back.
    """

    made: str
    at: str


@dataclass(frozen=True)
class Charge:
    """A job's cost to its training patients.

    Attributes:
        job: its identifier.
        account: of the patients' keys, see ``account_of``; those of another may be the same people.
        dataset: digest of its manifest.
        event: its steps, planned or settled.
        patients: their keys.
    """

    job: str
    account: str
    dataset: str
    event: Event
    patients: frozenset[str]


@dataclass(frozen=True)
class Spent:
    """Patients who were in the same jobs.

    Attributes:
        account: of their keys.
        patients: how many.
        jobs: that trained with them, or with patients of another account, who may be the same.
        epsilon: of all these jobs together.
    """

    account: str
    patients: int
    jobs: tuple[str, ...]
    epsilon: float


@dataclass(frozen=True)
class Refusal:
    """Why a job costs too much.

    Attributes:
        told: may leave the site: no more than the policy's limits and the job's own cost.
        here: with numbers of patients, who depend on earlier jobs; for the site alone.
    """

    told: str
    here: str


def account_of(dataset: Path) -> str:
    """Return the account of a dataset's patients.

    Datasets that were registered with one salt, and tell patients apart in one way, have one account. Of others nobody
    can tell whether a patient is in both: each patient is then charged for the jobs of both. So one that is registered
    anew with other keys is another.

    Args:
        dataset: its folder.
    """
    salt = dataset / SALT_FILE
    known = salt.read_bytes() if salt.is_file() else str(dataset.resolve()).encode()
    return hashlib.sha256(b"oncofed account " + known + way_of_keys(dataset).encode()).hexdigest()[:16]


class Ledger:
    """The ledger of one site.

    Args:
        folder: of its kit.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._log = AuditLog(folder, LEDGER_FILE)

    def charge(self, charge: Charge, limits: Limits, who: str, delta: float | None = None) -> Anchor:
        """Charge a job before its first step.

        A job that was charged before is not charged again: a process that goes on with it finds its charge, or lifts
        one that was settled back to what it plans.

        Args:
            charge: with all planned steps.
            limits: of the site's policy.
            who: the job's submitter.
            delta: of the job, as ``refusal``.

        Returns:
            The ledger's last line.

        Raises:
            PolicyError: it would cost more than the policy allows; the text may leave the site. How many patients are
                concerned is in this process's log alone.
            AuditError: it cannot be written: nothing runs that is not charged.
        """
        with self._held():
            charges = self.charges()
            charged = charges.pop(charge.job, None)
            self._require_confirmed(charge.job)
            if charged:
                _require_same(charged, charge)
                if charged.event.steps >= charge.event.steps:
                    return self._anchor()
            reason = refusal(list(charges.values()), charge, limits, delta)
            if reason:
                logging.getLogger(__name__).warning("job %s is not charged: %s", charge.job, reason.here)
                raise PolicyError(f"its policy does not allow this job: {reason.told}")
            digest = self._keep_patients(charge.patients)
            return self._log.write(
                _CHARGED,
                who,
                job=charge.job,
                account=charge.account,
                dataset=charge.dataset,
                unit="patient",
                noise_multiplier=charge.event.noise_multiplier,
                sampling=charge.event.sampling,
                steps=charge.event.steps,
                patients=digest,
                number=len(charge.patients),
                delta=limits.delta,
            )

    def settle(self, job: str, steps: int, who: str) -> Anchor | None:
        """Lower an ended job's charge to the steps whose result left.

        Args:
            job: its identifier.
            steps: that it took.
            who: the job's submitter.

        Returns:
            The ledger's last line; None where nothing was charged, or no less than was taken.

        Raises:
            AuditError: it cannot be written; the whole charge stays.
        """
        with self._held():
            charged = self.charges().get(job)
            # How many steps left after a backup is not known.
            if self.restored() or job in self._begun_before_restore():
                return None
            if charged is None or steps >= charged.event.steps:
                return None
            return self._log.write(_SETTLED, who, job=job, steps=steps)

    def charges(self) -> dict[str, Charge]:
        """Return what was charged, by job, in order.

        A last line that breaks off is none: its job has not begun.

        Raises:
            AuditError: a line or a list of patients is broken, or a line is gone that the audit log knows: nothing
                runs, for what they have spent is not known.
        """
        problems = [problem for problem in self.verify()[0] if problem.what != BREAKS_OFF]
        if problems:
            first = problems[0]
            where = f"broken at line {first.line}" if first.line else "not the one that the audit log knows"
            raise AuditError(
                f"the ledger {self._log.path} is {where}: {first.what}. What patients have spent is not known, so that "
                f"no job with differential privacy runs. Put {self._log.path.name} and "
                f"{_PATIENTS_FOLDER.name}/ back from the latest backup of {self._log.path.parent}, then see: oncofed "
                "site audit verify"
            )
        found: dict[str, Charge] = {}
        for entry in self._log.entries():
            job = str(entry.get("job"))
            if entry["what"] == _CHARGED:
                event = Event(float(entry["noise_multiplier"]), float(entry["sampling"]), int(entry["steps"]))
                patients = self._patients(str(entry["patients"]))
                found[job] = Charge(job, str(entry["account"]), str(entry["dataset"]), event, patients)
            elif entry["what"] == _SETTLED and job in found:
                charge = found[job]
                event = Event(charge.event.noise_multiplier, charge.event.sampling, int(entry["steps"]))
                found[job] = Charge(job, charge.account, charge.dataset, event, charge.patients)
        return found

    def verify(self, anchors: tuple[Anchor, ...] = ()) -> tuple[list[Problem], Anchor | None]:
        """Return the ledger's problems and its last line; see ``AuditLog.verify``.

        Args:
            anchors: lines that it must contain, besides those that the site's audit log knows.
        """
        known = self._known()  # first: a process may be writing to the ledger, then to the audit log
        return self._log.verify((*known, *anchors))

    def restored(self) -> Restored | None:
        """Return from what this was put back; None: it was not, or it is confirmed."""
        path = self._folder / _RESTORED_FILE
        return Restored(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None

    def confirm(self, reason: str) -> None:
        """Take charges of further jobs again after a ledger was put back.

        Jobs that were charged in it stay out: their steps after the backup were counted in what is lost.

        Args:
            reason: why nothing is missing, or that it is accepted; the site's audit log keeps it.

        Raises:
            AuditError: it cannot be written.
        """
        found = self.restored()
        AuditLog(self._folder).write(CONFIRMED, made=found.made if found else "", reason=reason)
        begun = sorted(self._begun_before_restore() | self.charges().keys())
        write_private(self._folder / _BEGUN_FILE, json.dumps(begun).encode())
        (self._folder / _RESTORED_FILE).unlink(missing_ok=True)

    def _begun_before_restore(self) -> set[str]:
        path = self._folder / _BEGUN_FILE
        return set(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else set()

    def _require_confirmed(self, job: str) -> None:
        if job in self._begun_before_restore():
            raise PolicyError(
                "its ledger was put back from a backup that was made while this job ran: how many of its steps left "
                "since is not known, so it takes no further one here"
            )
        found = self.restored()
        if found:
            logging.getLogger(__name__).warning(
                "the ledger was put back from a backup of %s: what patients spent since is not known, so no further "
                "job with differential privacy runs until the admin has compared it: oncofed site budget confirm",
                found.made,
            )
            raise PolicyError("its ledger was put back from a backup, and its admin has not confirmed it yet")

    def _known(self) -> tuple[Anchor, ...]:
        """Return the ledger's lines that the audit log has."""
        entries = AuditLog(self._folder).entries()
        try:
            return tuple(Anchor.parse(str(entry["ledger"])) for entry in entries if entry["what"] == CHARGED)
        except (KeyError, ValueError):
            raise AuditError(
                f"the audit log in {self._log.path.parent} has an entry that lacks the ledger's line or its kind. See: "
                "oncofed site audit verify"
            ) from None

    def _anchor(self) -> Anchor:
        _, last = self._log.verify()
        assert last, "something was charged"
        return last

    def _keep_patients(self, patients: frozenset[str]) -> str:
        """Write a list of patients under its digest, and return that."""
        content = (json.dumps(sorted(patients)) + "\n").encode()
        digest = hashlib.sha256(content).hexdigest()
        try:
            write_private(self._folder / _PATIENTS_FOLDER / f"{digest}.json", content)
        except OSError as error:
            raise AuditError(
                f"the ledger's patients cannot be written ({error.strerror}). Nothing runs that is not charged: free "
                "some space"
            ) from None
        return digest

    def _patients(self, digest: str) -> frozenset[str]:
        path = self._folder / _PATIENTS_FOLDER / f"{digest}.json"
        try:
            content = path.read_bytes()
        except OSError as error:
            raise AuditError(f"{path}: the patients of a charged job cannot be read ({error.strerror})") from None
        if hashlib.sha256(content).hexdigest() != digest:
            raise AuditError(f"{path}: the patients of a charged job were changed")
        return frozenset(json.loads(content))

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        """Let one process at a time look and write."""
        path = self._folder / LEDGER_FILE.with_suffix(".lock")
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with open(path, "w", opener=open_private) as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                yield
        except OSError as error:
            raise AuditError(f"the ledger {self._log.path} cannot be locked ({error.strerror})") from None


def refusal(charges: Sequence[Charge], new: Charge, limits: Limits, delta: float | None = None) -> Refusal | None:
    """Return why a job costs too much; None if it does not.

    Args:
        charges: of earlier jobs.
        new: of the job.
        limits: of the site's policy.
        delta: at which the job states its own epsilon; a refusal says this one, too. None: as the limits.
    """
    own = partial(_by_itself, new.event, limits.delta if delta is None else delta, limits.delta)
    if limits.a_job is not None:
        cost = epsilon([new.event], limits.delta)
        if cost > limits.a_job:
            reason = (
                f"it costs each patient epsilon {rounded_up(cost):.4g} at delta {limits.delta:g}, expected at most "
                f"{limits.a_job:g}{own()}"
            )
            return Refusal(reason, reason)
    if limits.a_patient is None:
        return None
    # The looser bound costs little, and mostly settles it.
    numbers = _groups([*charges, new], new.account, new.patients)
    doubtful = [events for events in numbers if renyi_epsilon(events, limits.delta) > limits.a_patient]
    costs = dict(zip(doubtful, epsilons(doubtful, limits.delta), strict=True))
    over = [events for events in doubtful if costs[events] > limits.a_patient]
    if not over:
        return None
    return Refusal(
        # How many, or how much, would tell who was in an earlier job.
        f"the budget of some of its patients is spent, expected at most epsilon {limits.a_patient:g} at delta "
        f"{limits.delta:g} for each over all jobs{own()}. The site's admin sees more with: oncofed site budget test",
        f"{sum(numbers[events] for events in over)} of {len(new.patients)} patients would come to epsilon "
        f"{rounded_up(max(costs.values())):.4g} at delta {limits.delta:g} over all jobs, expected at most "
        f"{limits.a_patient:g}{own()}",
    )


def _by_itself(event: Event, delta: float, compared: float) -> str:
    """Return what a job states of itself, for a reader who finds another epsilon; empty at the same delta."""
    if delta == compared:
        return ""
    return f"; by itself, at its own delta {delta:g}, the job's epsilon is {rounded_up(epsilon([event], delta)):.4g}"


def spent(charges: Sequence[Charge], delta: float) -> list[Spent]:
    """Return what patients have spent, those who spent most first.

    Args:
        charges: of all jobs.
        delta: at which epsilons are told.
    """
    members: list[tuple[str, tuple[int, ...], int]] = []
    for account in sorted({charge.account for charge in charges}):
        known = frozenset().union(*(charge.patients for charge in charges if charge.account == account))
        members += [(account, where, number) for where, number in _members(charges, account, known).items()]
    costs = epsilons([[charges[one].event for one in where] for _, where, _ in members], delta)
    found = [
        Spent(account, patients, tuple(charges[one].job for one in where), rounded_up(cost))
        for (account, where, patients), cost in zip(members, costs, strict=True)
    ]
    return sorted(found, key=lambda one: (-one.epsilon, one.account, one.jobs))


def _groups(charges: Sequence[Charge], account: str, patients: frozenset[str]) -> Mapping[tuple[Event, ...], int]:
    """Return how many patients were in the same steps."""
    groups: Counter[tuple[Event, ...]] = Counter()
    for where, number in _members(charges, account, patients).items():
        groups[tuple(sorted(charges[one].event for one in where))] += number
    return groups


def _members(charges: Sequence[Charge], account: str, patients: frozenset[str]) -> Mapping[tuple[int, ...], int]:
    """Return how many of an account's patients were in the same jobs, by the jobs' places in ``charges``.

    Those of other accounts may be the same people, and each of these jobs counts for everybody.
    """
    everybody = sum(1 << place for place, charge in enumerate(charges) if charge.account != account)
    jobs = dict.fromkeys(patients, everybody)  # a bit for each job
    for place, charge in enumerate(charges):
        if charge.account == account:
            for patient in charge.patients & patients:
                jobs[patient] |= 1 << place
    places = range(len(charges))
    return {tuple(one for one in places if bits >> one & 1): number for bits, number in Counter(jobs.values()).items()}


def _require_same(charged: Charge, now: Charge) -> None:
    """Refuse a job that changed since it was charged."""
    facts = [(one.account, one.patients, one.event.sampling, one.event.noise_multiplier) for one in (charged, now)]
    if facts[0] != facts[1]:
        raise PolicyError("its policy does not allow this job: it is not the one that its patients were charged for")


def note_restored(folder: Path, made: str) -> None:
    """Note that a ledger was put back from a backup: it takes no charge until ``Ledger.confirm``.

    Args:
        folder: of the kit.
        made: when the backup was made.
    """
    found = Restored(made, datetime.now(timezone.utc).isoformat(timespec="seconds"))
    write_private(folder / _RESTORED_FILE, json.dumps(asdict(found)).encode())
