"""Job and sites with generated brains."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from oncofed.data.brain import HOSPITALS, make_hospitals
from oncofed.job.spec import JobSpec, read_job

# Half the resolution, an eighth of the voxels: if the model does not matter, or a run only shows that a suite works.
_COARSE = {"spacing": [6, 6, 6], "patch": [16, 16, 16]}
_FEW = tuple(replace(hospital, train=min(hospital.train, 2), validation=1, test=1) for hospital in HOSPITALS)


def brain_job(coarse: bool, changes: dict[str, dict[str, Any]]) -> JobSpec:
    """Return the job.

    Args:
        coarse: see and train on coarse images.
        changes: other settings, by section.
    """
    spec = read_job("brain_tissue_segmentation").changed(changes)
    return spec.changed({"data": _COARSE}) if coarse else spec


def brain_sites(quick: bool, folder: Path) -> dict[str, Path]:
    """Write the images of four hospitals; return folder by site."""
    return make_hospitals(folder, seed=1, hospitals=_FEW if quick else HOSPITALS)
