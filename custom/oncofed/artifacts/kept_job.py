"""Files that make a model usable without its run."""

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
# Small files that belong to a model, and are stored next to it.
BESIDE_MODEL = frozenset({PROFILE_FILE, CALIBRATION_FILE})
_NOT_IN_NAMES = re.compile(r"[^a-z0-9_-]+")


def write_kept_job(
    folder: Path, name: str, site: str, plan: Plan, federation: FederationPlan, weights: Weights
) -> None:
    """Write a kept model's ``job.yaml`` and ``provenance.json``.

    A site's own copy is not signed; the digest shows whether the weights changed.

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
        "name": _NOT_IN_NAMES.sub("_", name.lower()).strip("_-")[:63] or "job",
        "title": name[:120] or "job",
        **plan.model_dump(mode="json", by_alias=True),
        # Of the section ``privacy`` the plan has all.
        **federation.model_dump(mode="json", by_alias=True, exclude={"secure_aggregation", "lost"}),
    }
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    (folder / KEPT_JOB).write_text(text, encoding="utf-8")
    write_provenance(folder / PROVENANCE_FILE, weights, {"job": values["name"], "kept_by": site}, folder)


def copy_beside_model(source: Path, target: Path) -> None:
    """Copy a model's existing small files to another folder."""
    for name in sorted(BESIDE_MODEL):
        if (source / name).is_file():
            write_whole(target / name, (source / name).read_bytes())
