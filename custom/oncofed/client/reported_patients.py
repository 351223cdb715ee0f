"""Patients behind the sums that a site sent.

The difference of two jobs' sums must not reveal a single patient. Patients are kept for each dataset next to the state
of the site's jobs, as salted hashes that only the site's account can read.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from oncofed.client.locks import wait_for_lock
from oncofed.errors import StateError
from oncofed.private_files import write_private
from oncofed.suppression import LEAST_PATIENTS

FOLDER = "told"
_HASH_LETTERS = 32
_LONGEST_WAIT_SECONDS = 60.0


def refuse_overlap(folder: Path, dataset: str, groups: Sequence[Sequence[str]]) -> str:
    """Record groups of patients whose sums leave.

    Returns a reason where they may not: a group differs from a recorded one by one to four patients. The same group
    again reveals nothing new.

    Args:
        folder: of the states of this site's jobs.
        dataset: of the patients.
        groups: keys of each group's patients.

    Returns:
        A reason; "" where they may leave.

    Raises:
        StateError: the record cannot be read or written.
    """
    path = folder / FOLDER / f"{dataset}.json"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with path.with_suffix(".lock").open("w") as file:
            deadline = time.monotonic() + _LONGEST_WAIT_SECONDS
            if not wait_for_lock([file], lambda: time.monotonic() > deadline):
                raise StateError(f"{path}: another job did not let go of it for a minute")
            return _record(path, groups)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StateError(f"{path}: of whom sums left before cannot be read or noted ({error})") from None


def _record(path: Path, groups: Sequence[Sequence[str]]) -> str:
    recorded: dict[str, Any] = {"schema": 1, "salt": secrets.token_hex(16), "groups": []}
    if path.exists():
        recorded = json.loads(path.read_text(encoding="utf-8"))
    salt, earlier = str(recorded["salt"]), {frozenset(group) for group in recorded["groups"]}
    new = {frozenset(_hash(salt, patient) for patient in group) for group in groups} - earlier
    for group in new:
        difference = min((len(group ^ other) for other in earlier), default=LEAST_PATIENTS)
        if difference < LEAST_PATIENTS:
            return (
                f"sums over {len(group)} patients stay here: with those of nearly the same patients, which left in an "
                f"earlier job, they would tell of {difference}"
            )
    if new:
        values = {"schema": 1, "salt": salt, "groups": sorted(sorted(group) for group in earlier | new)}
        write_private(path, (json.dumps(values) + "\n").encode())
    return ""


def _hash(salt: str, patient: str) -> str:
    return hashlib.sha256(f"{salt} {patient}".encode()).hexdigest()[:_HASH_LETTERS]
