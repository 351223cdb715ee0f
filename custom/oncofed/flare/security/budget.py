"""The ledger of patients, as a job's process charges it."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

from nvflare.apis.fl_context import FLContext

from oncofed.audit import CHARGED
from oncofed.client.private_steps import Charge as ChargeSteps
from oncofed.client.private_steps import steps_taken
from oncofed.errors import AuditError
from oncofed.flare.folders import kit_folder
from oncofed.flare.security.admission import dataset_digest
from oncofed.flare.security.recording import name_and_person, record
from oncofed.privacy.accountant import Event
from oncofed.privacy.ledger import Charge, Ledger, Limits, account_of
from oncofed.privacy.policy import Policy


def charge_of(fl_ctx: FLContext, policy: Policy, dataset: str, data: Path) -> ChargeSteps:
    """Return what charges a job's patients before its first step.

    Args:
        fl_ctx: of the job's process.
        policy: of the site.
        dataset: of the job.
        data: its folder here.
    """
    return partial(_charge, fl_ctx, policy, dataset, data)


def _charge(
    fl_ctx: FLContext, policy: Policy, dataset: str, data: Path, event: Event, delta: float, patients: tuple[str, ...]
) -> bool:
    """Charge a job's patients; return whether they were charged for it before.

    Raises:
        PolicyError: they have not enough left; the text may leave the site.
        AuditError: it cannot be written.
    """
    known, (_, person) = policy.leaves.differential_privacy, name_and_person(fl_ctx)
    limits = Limits(known.delta, known.largest_epsilon_a_job, known.largest_epsilon_a_patient)
    job, digest = str(fl_ctx.get_job_id()), dataset_digest(fl_ctx, dataset) or ""
    charge = Charge(job, account_of(data), digest, event, frozenset(patients))
    ledger = Ledger(kit_folder(fl_ctx))
    before = job in ledger.charges()
    last = ledger.charge(charge, limits, person or "unknown", delta)
    record(
        fl_ctx,
        CHARGED,
        ledger=str(last),
        noise_multiplier=event.noise_multiplier,
        sampling=event.sampling,
        steps=event.steps,
        patients=len(patients),
    )
    return before


def counts_folder(fl_ctx: FLContext) -> Path:
    """Return where a job's private steps are counted: beside the ledger.

    The job's state may be lost, or restored from a copy: steps would count as never taken.
    """
    return kit_folder(fl_ctx) / "audit" / "steps" / str(fl_ctx.get_job_id())


def settle(fl_ctx: FLContext) -> None:
    """Lower an ended job's charge to the steps whose result left.

    Where that cannot be written the whole charge stays, which is on the safe side.
    """
    taken = steps_taken(counts_folder(fl_ctx))
    if taken is None:
        return
    try:
        last = Ledger(kit_folder(fl_ctx)).settle(
            str(fl_ctx.get_job_id()), taken, name_and_person(fl_ctx)[1] or "unknown"
        )
        if last:
            record(fl_ctx, CHARGED, ledger=str(last), settled=taken)
    except AuditError as error:
        logging.getLogger(__name__).error(str(error))
