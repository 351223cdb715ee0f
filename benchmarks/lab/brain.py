"""The job over generated brains, as the suites take it that need a federation and no particular task."""

from __future__ import annotations

from typing import Any

from oncofed.job.spec import JobSpec, read_job

# Half the resolution: an eighth of the voxels, for runs that only show that a suite runs.
_COARSE = {"spacing": [6, 6, 6], "patch": [16, 16, 16]}


def brain_job(quick: bool, changes: dict[str, dict[str, Any]]) -> JobSpec:
    """Return the job.

    Args:
        quick: train on coarse images.
        changes: other settings, by section.
    """
    spec = read_job("brain_tissue_segmentation").changed(changes)
    return spec.changed({"data": _COARSE}) if quick else spec
