"""Of which patients a site sent sums, so that the sums of two jobs do not tell by their difference of one patient.

A site keeps it beside what it keeps of its jobs, for each dataset: salted hashes, readable for its own account alone.
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
from oncofed.data.manifest import write_whole
from oncofed.errors import StateError
from oncofed.suppression import LEAST_PATIENTS

# Under which a site's turns name the patients of the sums beside it: it is taken out before anything leaves.
PATIENTS_OF_SUMS = "patients_of_sums"
FOLDER = "told"
_HASH_LETTERS = 32
_LONGEST_HOLD_SECONDS = 60.0


def patients_in_common(folder: Path, dataset: str, groups: Sequence[Sequence[str]]) -> str:
    """Note groups of patients of whom sums are to leave; return why they may not, or nothing where they may.

    They may not where a group differs by one to four patients from one that was told of before. The same group again
    tells nothing new.

    Args:
        folder: of the site's kit for its state.
        dataset: that the patients are of.
        groups: keys of the patients of each.

    Raises:
        StateError: what was told before cannot be read, or this not noted.
    """
    path = folder / FOLDER / f"{dataset}.json"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with path.with_suffix(".lock").open("w") as file:
            deadline = time.monotonic() + _LONGEST_HOLD_SECONDS
            if not wait_for_lock([file], lambda: time.monotonic() > deadline):
                raise StateError(f"{path}: another job did not let go of it for a minute")
            return _noted(path, groups)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StateError(f"{path}: of whom sums left before cannot be read or noted ({error})") from None


def _noted(path: Path, groups: Sequence[Sequence[str]]) -> str:
    known: dict[str, Any] = {"schema": 1, "salt": secrets.token_hex(16), "groups": []}
    if path.exists():
        known = json.loads(path.read_text(encoding="utf-8"))
    salt, told = str(known["salt"]), {frozenset(group) for group in known["groups"]}
    new = {frozenset(_hash(salt, patient) for patient in group) for group in groups} - told
    for group in new:
        apart = min((len(group ^ one) for one in told), default=LEAST_PATIENTS)
        if apart < LEAST_PATIENTS:
            return (
                f"sums over {len(group)} patients stay here: with those of nearly the same patients, which left in an "
                f"earlier job, they would tell of {apart}"
            )
    if new:
        written = {"schema": 1, "salt": salt, "groups": sorted(sorted(group) for group in told | new)}
        write_whole(path, json.dumps(written) + "\n", mode=0o600)
    return ""


def _hash(salt: str, patient: str) -> str:
    return hashlib.sha256(f"{salt} {patient}".encode()).hexdigest()[:_HASH_LETTERS]
