"""Outcomes of real hippocampus volumes, by a stated law.

Images and masks are patients' (Medical Segmentation Decathlon, task 4); the follow-up is made: the hazard grows as the
structure of the mask shrinks. What a model can learn is known, so that a figure can be compared with the law's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from oncofed.data.brain_outcomes import Law
from oncofed.data.case import Case, case_of
from oncofed.data.manifest import SPLITS, Entry, Manifest, read_manifest, write_manifest
from oncofed.data.targets import DatasetTarget, FollowUp

# Of both parts together: 198 patients have 3.3 ml on average, with a spread of 0.43 ml.
MEAN_ML, STEP_ML = 3.3, 0.43
LAW = Law(per_size=-1.2, per_decade=0.0)
# The law's age of 60 years counts nothing.
_AGE = 60.0


def volume_ml(case: Case) -> float:
    """Return how much a case's mask draws, in ml."""
    label = case.read_label()
    return float(np.count_nonzero(label.values) * abs(np.linalg.det(label.affine[:3, :3])) / 1000)


def log_hazard(millilitres: float, law: Law = LAW) -> float:
    """Return the logarithm of a patient's hazard a month."""
    return law.log_hazard((millilitres - MEAN_ML) / STEP_ML, _AGE)


def state_outcomes(sites: Mapping[str, Path], seed: int, law: Law = LAW) -> None:
    """Write outcomes into sites' datasets, by the volumes of their masks.

    Each case with a mask gets the target ``survival`` in months, and the columns ``volume_ml`` and ``log_hazard``, the
    law's own.

    Args:
        sites: site -> folder of its dataset.
        seed: of the follow-ups; with the same one, patients of the same order have the same.
        law: that outcomes follow.
    """
    rng = np.random.default_rng(seed)
    for _, folder in sorted(sites.items()):
        manifest = read_manifest(folder)
        lists: dict[str, Any] = {
            split: [_with_outcome(entry, folder, manifest, rng, law) for entry in getattr(manifest, split)]
            for split in SPLITS
        }
        targets = {**manifest.targets, "survival": DatasetTarget(kind="survival", unit="months")}
        write_manifest(folder, manifest.model_copy(update={**lists, "targets": targets}))


def _with_outcome(
    entry: Entry | str, folder: Path, manifest: Manifest, rng: np.random.Generator, law: Law
) -> Entry | str:
    if isinstance(entry, str) or not isinstance(entry.label, str):
        return entry
    millilitres = volume_ml(case_of(folder, manifest, entry))
    follow_up = FollowUp(**law.follow_up((millilitres - MEAN_ML) / STEP_ML, _AGE, rng))
    tags = {"volume_ml": f"{millilitres:.4f}", "log_hazard": f"{log_hazard(millilitres, law):.4f}"}
    return entry.model_copy(
        update={"targets": {**entry.targets, "survival": follow_up}, "tags": {**entry.tags, **tags}}
    )
