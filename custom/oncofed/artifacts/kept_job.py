"""What a site keeps of a job beside its model, so that the model can be used there without the run's own folder."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from oncofed.algorithms.plan import FederationPlan
from oncofed.artifacts.provenance import PROVENANCE_FILE, write_provenance
from oncofed.artifacts.training_profile import PROFILE_FILE
from oncofed.atomic import write_whole
from oncofed.models.weights import Weights
from oncofed.tasks.calibration import CALIBRATION_FILE
from oncofed.training import Plan

KEPT_JOB = "job.yaml"
# Small files that belong to a model, and lie beside it wherever it lies.
BESIDE_MODEL = frozenset({PROFILE_FILE, CALIBRATION_FILE})
_NO_NAME = re.compile(r"[^a-z0-9_-]+")


def write_kept_job(
    folder: Path, name: str, site: str, plan: Plan, federation: FederationPlan, weights: Weights
) -> None:
    """Write ``job.yaml`` and ``provenance.json`` of a model that a site keeps.

    Nobody signs what the site says of its own copy; its digest tells whether the weights are still those.

    Args:
        folder: of the model.
        name: of the job.
        site: that keeps it.
        plan: what was trained.
        federation: how the sites worked together.
        weights: of the model as it serves this site.

    Raises:
        OSError: the folder cannot be written to.
    """
    values = {
        "schema": 1,
        "name": _NO_NAME.sub("_", name.lower()).strip("_-")[:63] or "job",
        "title": name[:120] or "job",
        **plan.model_dump(mode="json", by_alias=True),
        **federation.model_dump(mode="json", by_alias=True),
    }
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    (folder / KEPT_JOB).write_text(text, encoding="utf-8")
    write_provenance(folder / PROVENANCE_FILE, weights, {"job": values["name"], "kept_by": site}, folder)


def copy_beside_model(source: Path, target: Path) -> None:
    """Copy the small files that lie beside one model's weights to beside another's, as far as there are any."""
    for name in sorted(BESIDE_MODEL):
        if (source / name).is_file():
            write_whole(target / name, (source / name).read_bytes())
