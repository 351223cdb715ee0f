"""Four simulated hospitals whose patients' outcomes follow a stated law.

Anatomy and scanners are those of ``data.brain``, which differ less here. Each patient has a bright lesion; the hazard
of the event grows with its size and with the patient's age. What a model can learn is known exactly, so that a figure
can be compared with the law's own.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from oncofed.data.brain import HOSPITALS, Scanner, make_patient
from oncofed.data.workers import Workers

# Radius of a lesion of size 0, and of one more.
_MEAN_MM, _STEP_MM = 14.0, 5.0
# Coarse voxels in mm: lesions stay visible, and a patient is made in a moment.
_VOXEL_MM = (5.0, 5.0, 5.0)
# Share of the scanners' and visits' differences: as much as they have hides a lesion's size from so few patients. A
# contrast (gamma) far from one makes a small bright lesion of one scanner look like a large one of another.
_QUIET = 1 / 3
# Patients of each hospital: training, validation, test. Those of the test are many: a concordance of few says little.
SIZES = ((90, 16, 40), (60, 16, 40), (45, 12, 40), (35, 12, 40))


@dataclass(frozen=True)
class Law:
    """How outcomes follow from a patient.

    The hazard is ``rate * exp(per_size * s + per_decade * (age - 60) / 10)``, constant in time; s is the lesion's
    size, its radius less 14 mm, in steps of 5 mm. Follow-up ends between ``shortest`` and ``longest`` months.
    """

    rate: float = 0.02
    per_size: float = 1.6
    per_decade: float = 0.5
    shortest: float = 12.0
    longest: float = 60.0

    def log_hazard(self, size: float, age: float) -> float:
        """Return the logarithm of a patient's hazard a month."""
        return float(np.log(self.rate) + self.per_size * size + self.per_decade * (age - 60) / 10)

    def follow_up(self, size: float, age: float, rng: np.random.Generator) -> dict[str, Any]:
        """Return the months of follow-up, and whether the event came."""
        event = rng.exponential(1 / np.exp(self.log_hazard(size, age)))
        censored = rng.uniform(self.shortest, self.longest)
        return {"time": round(float(min(event, censored)), 2), "event": bool(event <= censored)}


@dataclass(frozen=True)
class _Patient:
    """A patient who is to be made."""

    folder: Path
    name: str
    scanner: Scanner
    seed: tuple[int, ...]
    law: Law


def make_outcome_hospitals(
    out: Path,
    seed: int,
    law: Law = Law(),
    sizes: tuple[tuple[int, int, int], ...] = SIZES,
    workers: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Path]:
    """Write a dataset for each hospital; return site -> folder.

    Cases state the target ``survival`` in months, and the columns ``age`` in years and ``log_hazard``, the law's own.

    Args:
        out: folder to write to; each hospital gets a sub-folder with its name.
        seed: the same seed writes the same patients.
        law: that outcomes follow.
        sizes: training, validation and test patients of each hospital.
        workers: processes that write patients.
        progress: called with (patients written, patients in all).
    """
    patients: list[_Patient] = []
    lists: dict[Path, dict[str, list[str]]] = {}
    for number, (hospital, counts) in enumerate(zip(HOSPITALS, sizes, strict=False), start=1):
        folder = out / hospital.name
        (folder / "imagesTr").mkdir(parents=True, exist_ok=True)
        scanner = replace(
            hospital.scanner,
            voxel_mm=_VOXEL_MM,
            gamma=hospital.scanner.gamma**_QUIET,
            bias=_QUIET * hospital.scanner.bias,
            noise=_QUIET * hospital.scanner.noise,
        )
        names = [f"{hospital.name}_{case:03d}" for case in range(1, sum(counts) + 1)]
        patients += [_Patient(folder, name, scanner, (seed, number, n), law) for n, name in enumerate(names)]
        first, second = counts[0], counts[0] + counts[1]
        lists[folder] = {"training": names[:first], "validation": names[first:second], "test": names[second:]}
    entries = {}
    with Workers(workers) as pool:
        for done, (name, entry) in enumerate(pool.map(_write_patient, patients, fewest=2), start=1):
            entries[name] = entry
            if progress:
                progress(done, len(patients))
    for folder, by_split in lists.items():
        manifest = {
            "name": "brain_outcomes",
            "description": "ICBM152 average brain, simulated patients and scanner; outcomes follow a stated law",
            "modality": {"0": "MRI T1"},
            "targets": {"survival": {"kind": "survival", "unit": "months"}},
            **{split: [entries[name] for name in names] for split, names in by_split.items()},
        }
        (folder / "dataset.json").write_text(json.dumps(manifest, indent=1))
    return {folder.name: folder for folder in lists}


def _write_patient(patient: _Patient) -> tuple[str, dict[str, Any]]:
    rng = np.random.default_rng(patient.seed)
    size, age = float(np.clip(rng.normal(), -2, 2)), float(np.clip(rng.normal(62, 10), 30, 90))
    follow_up = patient.law.follow_up(size, age, rng)
    image, _ = make_patient(patient.scanner, rng, lesion_mm=_MEAN_MM + _STEP_MM * size, visits=_QUIET)
    nib.save(image, patient.folder / "imagesTr" / f"{patient.name}.nii.gz")
    return patient.name, {
        "image": f"imagesTr/{patient.name}.nii.gz",
        "name": patient.name,
        "targets": {"survival": follow_up},
        "tags": {"age": f"{age:.0f}", "log_hazard": f"{patient.law.log_hazard(size, age):.4f}"},
    }
