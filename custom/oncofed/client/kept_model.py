"""A job's model, kept for the site's use."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file

from oncofed.algorithms.plan import FederationPlan
from oncofed.artifacts.kept_bundle import complete_bundle
from oncofed.artifacts.kept_job import BESIDE_MODEL, write_kept_job
from oncofed.atomic import write_whole
from oncofed.models.bundle import BUNDLE_NAME
from oncofed.models.weights import Weights
from oncofed.tasks.calibration import CALIBRATION_FILE
from oncofed.training import Plan


def keep_model(folder: Path, weights: Weights, *, name: str, site: str, plan: Plan, federation: FederationPlan) -> None:
    """Replace the kept model in a folder.

    It has weights, bundle, job file and provenance.

    Args:
        folder: readable by the site's account alone.
        weights: of the model as it serves this site.
        name: of the job.
        site: that keeps it.
        plan: of the job.
        federation: of the job.

    Raises:
        OSError: it could not be written, for example because the disk is full.
    """
    unfinished = folder.with_suffix(".unfinished")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(mode=0o700)
        save_file(weights, unfinished / "model.safetensors")
        plan.write_bundle(unfinished, name, weights)
        write_kept_job(unfinished, name, site, plan, federation, weights)
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.replace(folder)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch.save raises the second on a full disk
        shutil.rmtree(unfinished, ignore_errors=True)
        raise OSError(str(error)) from error


def add_artifacts(folder: Path, files: Mapping[str, str], *, personal: bool) -> None:
    """Write a kept model's small files, and complete its bundle.

    Args:
        folder: of the model; nothing is written where it is missing.
        files: contents by name, as the server sent them; unknown names are left out.
        personal: it is a model of the site's own. The calibration belongs to the global one then, and is left out.

    Raises:
        OSError: a file could not be written.
        SpecError: a file is broken.
    """
    if not folder.is_dir():
        return
    for name in BESIDE_MODEL & files.keys():
        if name != CALIBRATION_FILE or not personal:
            write_whole(folder / name, files[name])
    complete_bundle(folder / BUNDLE_NAME, [folder])
