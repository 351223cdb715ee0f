"""A trained model, loaded from a run, site or bundle."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from oncofed.artifacts.provenance import PROVENANCE_FILE, read_provenance
from oncofed.errors import SpecError, TrainingError
from oncofed.job.spec import JOB_FILE, JobSpec, parse_job
from oncofed.models.adapters import merge_adapters
from oncofed.models.weights import Weights, digest_of, load_weights
from oncofed.prediction.bundles import is_bundle, read_own_bundle
from oncofed.tasks import Task
from oncofed.tasks.calibration import Calibration, read_calibration

WEIGHTS_FILE = "model.safetensors"
MODEL_FOLDER = "model"
_EXPECTED = (
    "the folder of a run (workspace/runs/TIME-JOB), of a job in a site's kit (KIT/oncofed/ID), or a bundle of oncofed's"
)


@dataclass(frozen=True)
class TrainedModel:
    """A trained model.

    Attributes:
        folder: where it was loaded from.
        job: its training job.
        weights: by name.
        digest: SHA-256 of the weights, as ``provenance.json`` has it.
        provenance: signed by the server; empty if missing.
        members: weight files of further models of the same run, by name, for ensemble disagreement.
    """

    folder: Path
    job: JobSpec
    weights: Weights = field(repr=False)
    digest: str
    provenance: Mapping[str, Any] = field(default_factory=dict, repr=False)
    members: Mapping[str, Path] = field(default_factory=dict)

    @cached_property
    def task(self) -> Task[Any]:
        """The job's task, with the model's temperature and thresholds."""
        plan = self.job.plan()
        plan.data.take_agreed(self.weights)
        task = plan.build_task()
        task.temperature = self.temperature or 1.0
        task.use_thresholds(self.thresholds)
        task.use_temperatures(self.temperatures)
        return task

    @property
    def temperature(self) -> float | None:
        """Calibration temperature of a classifier's logits; None if unknown.

        Raises:
            SpecError: the calibration file is broken.
        """
        return self._calibration.temperature if self._calibration else None

    @property
    def thresholds(self) -> Mapping[str, Mapping[str, float]]:
        """Target -> finding -> probability from which it is said; empty if unknown."""
        return self._calibration.thresholds if self._calibration else {}

    @property
    def temperatures(self) -> Mapping[str, Mapping[str, float]]:
        """Target -> finding ("" of a class) -> temperature of its logits; empty if unknown."""
        return self._calibration.temperatures if self._calibration else {}

    @cached_property
    def _calibration(self) -> Calibration | None:
        found = (read_calibration(folder) for folder in (self.folder / MODEL_FOLDER, self.folder))
        return next((calibration for calibration in found if calibration), None)

    def network(self, device: torch.device) -> nn.Module:
        """Return the network on a device, in evaluation mode."""
        return network_of(self.job, self.weights, device)


def network_of(job: JobSpec, weights: Weights, device: torch.device) -> nn.Module:
    """Return a job's network with weights, in evaluation mode.

    Raises:
        SpecError: they do not fit the job's network.
    """
    network = job.plan().build_network()
    try:
        load_weights(network, weights)
    except (TrainingError, RuntimeError):
        raise SpecError(
            f"the weights are not those of the job {job.name} ({job.model.network}): expected the model of the same run"
        ) from None
    merge_adapters(network)
    return network.to(device).eval()


def load_model(path: Path) -> TrainedModel:
    """Load a model from a run, site or bundle.

    Args:
        path: the folder that ``oncofed job run`` or ``oncofed job fetch`` wrote; that of a job in a site's kit,
            ``KIT/oncofed/ID``, where the site keeps its own model; a MONAI bundle that oncofed wrote; or ``model`` or
            ``model.safetensors`` of one of the first two.

    Raises:
        SpecError: it holds no model, or the weights are not those that its provenance was written for.
    """
    path = path.expanduser()
    if not path.exists():
        raise SpecError(f"{path}: no such file or folder. Expected {_EXPECTED}")
    if is_bundle(path):
        return _of_bundle(path)
    folder, kept = _found(path)
    job = parse_job((kept or folder) / JOB_FILE, with_code=True)
    weights = read_weights(folder / MODEL_FOLDER / WEIGHTS_FILE)
    digest = digest_of(weights, hashlib.sha256).hexdigest()
    provenance = _provenance((kept or folder) / PROVENANCE_FILE, digest)
    return TrainedModel(folder=folder, job=job, weights=weights, digest=digest, provenance=provenance)


def _found(path: Path) -> tuple[Path, Path | None]:
    """Find the folder of a run or site's job.

    For a site's job, the second path is the folder that holds model and job.
    """
    inside = path.parent if path.is_file() and path.name in {WEIGHTS_FILE, JOB_FILE} else path
    for folder in (inside, inside.absolute().parent) if inside.absolute().name == MODEL_FOLDER else (inside,):
        if (folder / JOB_FILE).is_file() and not (folder / WEIGHTS_FILE).is_file():
            return folder, None
        if (folder / MODEL_FOLDER / JOB_FILE).is_file():
            return folder, folder / MODEL_FOLDER
    raise SpecError(
        f"{path}: no {JOB_FILE}, which says what the model was trained for. Expected {_EXPECTED}"
        if path.is_dir()
        else f"{path}: no model of oncofed, nor in a folder of one. Expected {_EXPECTED}"
    )


def _of_bundle(bundle: Path) -> TrainedModel:
    """Load a bundle's model.

    If the bundle lies next to the run's own model, the run is loaded with all its records.
    """
    job, weights, digest = read_own_bundle(bundle)
    bundle_parent = bundle.absolute().parent
    if (bundle_parent / WEIGHTS_FILE).is_file() and bundle_parent.name == MODEL_FOLDER:
        run_model = load_model(bundle_parent)
        if run_model.digest == digest:
            return run_model
    provenance = _provenance(bundle / PROVENANCE_FILE, digest)
    return TrainedModel(folder=bundle, job=job, weights=weights, digest=digest, provenance=provenance)


def _provenance(path: Path, digest: str) -> Mapping[str, Any]:
    """Return verified provenance; empty if there is no file."""
    if not path.is_file():
        return {}
    provenance: Mapping[str, Any] = read_provenance(path)["provenance"]
    if provenance.get("model") != digest:
        raise SpecError(
            f"{path.parent}: the weights are not those that {PROVENANCE_FILE} was written for ({digest[:12]}…, "
            f"expected {str(provenance.get('model'))[:12]}…). Fetch the run again, or take the folder as it was written"
        )
    return provenance


def read_weights(path: Path) -> Weights:
    """Read weights from safetensors.

    Raises:
        SpecError: they are missing or broken.
    """
    try:
        return dict(load_file(path))
    except FileNotFoundError:
        raise SpecError(
            f"{path}: no such file. A run that ended early has no model; expected one that completed"
        ) from None
    except (OSError, SafetensorError):
        raise SpecError(f"{path}: the weights cannot be read: the file is cut off or damaged. Copy it again") from None
