"""Steps under differential privacy that a site has taken for a job."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

from oncofed.data.cases import Cases
from oncofed.errors import PolicyError
from oncofed.privacy.accountant import Event
from oncofed.privacy.settings import too_few_patients
from oncofed.private_files import write_private
from oncofed.training import Plan

_FILE = "private_steps.json"

# Called before a job's first step with all that it will do, its delta, and the keys of the training patients. It raises
# PolicyError where the patients' budget does not allow it, and returns whether the job was charged before.
Charge = Callable[[Event, float, tuple[str, ...]], bool]


class PrivateSteps:
    """Counts the steps whose result leaves, up to those that were planned.

    A round that is trained anew from another model is another release. Without a limit, a server could ask for any
    number of them, and each would cost the patients more than the job says.

    Args:
        folder: of the job's count at this site.
        planned: steps of the whole job.
        charge: called before the first of them, and by each later process that goes on with the job; returns whether
            that was done before.
    """

    def __init__(self, folder: Path, planned: int, charge: Callable[[], bool] | None = None) -> None:
        self._path, self._planned, self._charge = folder / _FILE, planned, charge
        kept = json.loads(self._path.read_text()) if self._path.is_file() else {}
        self._found = bool(kept)
        self._taken: int = kept.get("taken", 0)
        self._open: str | None = kept.get("open")

    def begin(self, turn: str, steps: int) -> None:
        """Count a turn's steps, before the first of them.

        One that was begun and never ended is counted once: nothing of it left.

        Args:
            turn: key of the request.
            steps: that it takes.

        Raises:
            PolicyError: they are more than were planned, the patients' budget is spent, or the count is lost.
        """
        if turn == self._open:
            return
        if self._taken + steps > self._planned:
            raise PolicyError(
                f"{self._taken} of the {self._planned} steps that its privacy was planned for are taken: {steps} more "
                "would cost patients more than the job says"
            )
        if self._charge:
            charged_before = self._charge()
            if charged_before and not self._found:
                raise PolicyError(
                    "its patients were charged for this job, and how many of its steps left is not known: their count "
                    "here is lost. Expected it beside the ledger; else submit a new job, which is charged anew"
                )
            self._charge = None
        self._write(self._taken + steps, turn)

    def end(self) -> None:
        """Note that the turn's result is kept, and may leave."""
        self._write(self._taken, None)

    def _write(self, taken: int, turn: str | None) -> None:
        self._taken, self._open = taken, turn
        write_private(self._path, json.dumps({"taken": taken, "open": turn}).encode())


def steps_taken(folder: Path) -> int | None:
    """Return how many steps left a site for a job; None for a job without differential privacy.

    A turn that was begun and never ended counts: it may leave yet.

    Args:
        folder: of the job's count at this site.
    """
    path = folder / _FILE
    return int(json.loads(path.read_text())["taken"]) if path.is_file() else None


def private_steps(plan: Plan, cases: Cases, folder: Path, charge: Charge | None) -> PrivateSteps | None:
    """Return the count of a private job's steps; None for a job without differential privacy.

    Args:
        plan: what to train.
        cases: the site's.
        folder: of the job's count at this site.
        charge: see ``Charge``; None: nothing is charged.

    Raises:
        PolicyError: too few patients.
    """
    private = plan.privacy.differential_privacy
    if private is None:
        return None
    patients = tuple(sorted({case.patient for case in cases.train}))
    reason = too_few_patients(private, len(patients))
    if reason:
        raise PolicyError(reason)
    event = private.event(plan.total_steps)
    planned = partial(charge, event, private.delta, patients) if charge else None
    return PrivateSteps(folder, plan.total_steps, planned)
