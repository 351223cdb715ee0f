"""What a site's patients have spent, for its admin."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from oncofed.alliance.facts import read_facts
from oncofed.client.datasets import DATASETS_FILE, dataset_folder
from oncofed.data.cases import usable_cases
from oncofed.errors import SpecError
from oncofed.privacy.ledger import Charge, Ledger, Limits, Spent, account_of, refusal, spent
from oncofed.privacy.policy import Policy
from oncofed.privacy.settings import too_few_patients
from oncofed.site.policies import current_policy
from oncofed.training import Plan


@dataclass(frozen=True)
class Budget:
    """What patients have spent.

    Attributes:
        limits: of the policy in force.
        charges: of all jobs, oldest first.
        groups: patients who were in the same jobs, those who spent most first.
    """

    limits: Limits
    charges: tuple[Charge, ...]
    groups: tuple[Spent, ...]


def limits_of(policy: Policy) -> Limits:
    """Return the limits that a policy sets."""
    known = policy.leaves.differential_privacy
    return Limits(known.delta, known.largest_epsilon_a_job, known.largest_epsilon_a_patient)


def read_budget(folder: Path) -> Budget:
    """Return what a site's patients have spent.

    Raises:
        AllianceError: the folder is no site's kit.
        AuditError: the ledger is broken.
        SpecError: the accountant is not installed.
    """
    limits = limits_of(current_policy(folder))
    charges = tuple(Ledger(folder).charges().values())
    return Budget(limits, charges, tuple(spent(charges, limits.delta)))


def refusal_of_job(folder: Path, plan: Plan) -> str:
    """Return why a job would cost this site's patients too much, or they are too few; empty if neither.

    It tells numbers of patients, for the site alone.

    Args:
        folder: of the site's kit.
        plan: of the job.

    Raises:
        SpecError: the job has no differential privacy, or the site has not its dataset.
    """
    private = plan.privacy.differential_privacy
    if private is None:
        raise SpecError("the job has no differential privacy (privacy.differential_privacy): it charges nobody")
    site = read_facts(folder).participant
    data = dataset_folder(folder / "local" / DATASETS_FILE, site, plan.data.dataset)
    cases = usable_cases(data, plan.data, plan.supervision(), plan.seed, site).cases
    patients = frozenset(case.patient for case in cases.train)
    few = too_few_patients(private, len(patients))
    if few:
        return f"found {len(patients)} training patients here; {few}"
    charge = Charge("proposed", account_of(data), "", private.event(plan.total_steps), patients)
    limits = limits_of(current_policy(folder))
    found = refusal(list(Ledger(folder).charges().values()), charge, limits, private.delta)
    return found.here if found else ""
