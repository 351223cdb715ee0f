"""A trained model with all that is known of it, from what a run, a site or a bundle holds."""

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

from oncofed.errors import SpecError, TrainingError
from oncofed.federation.provenance import PROVENANCE_FILE, read_provenance
from oncofed.job.spec import JOB_FILE, JobSpec, parse_job
from oncofed.models.weights import Weights, digest_of, load_weights
from oncofed.tasks import Task

WEIGHTS_FILE = "model.safetensors"
MODEL_FOLDER = "model"


@dataclass(frozen=True)
class TrainedModel:
    """A trained model.

    Attributes:
        folder: where it was found.
        job: that it was trained by.
        weights: by name.
        digest: SHA-256 of the weights, as ``provenance.json`` has it.
        provenance: what the server vouches for; empty where nothing came along.
        members: further models of the same run, by name, whose disagreement says how sure it is: files of weights.
    """

    folder: Path
    job: JobSpec
    weights: Weights = field(repr=False)
    digest: str
    provenance: Mapping[str, Any] = field(default_factory=dict, repr=False)
    members: Mapping[str, Path] = field(default_factory=dict)

    @cached_property
    def task(self) -> Task[Any]:
        """The job's task."""
        return self.job.plan().build_task()

    def network(self, device: torch.device) -> nn.Module:
        """Return the network with its weights on a device, in evaluation mode."""
        return network_of(self.job, self.weights, device)


def network_of(job: JobSpec, weights: Weights, device: torch.device) -> nn.Module:
    """Return a job's network with given weights on a device, in evaluation mode.

    Raises:
        SpecError: they are not those of the job's network.
    """
    network = job.plan().build_network()
    try:
        load_weights(network, weights)
    except (TrainingError, RuntimeError):
        raise SpecError(
            f"the weights are not those of the job {job.name} ({job.model.network}): expected the model of the same run"
        ) from None
    return network.to(device).eval()


def load_model(path: Path) -> TrainedModel:
    """Load a model from a run's folder.

    Args:
        path: the folder that ``oncofed job run`` or ``oncofed job fetch`` wrote.

    Raises:
        SpecError: it holds no model, or the weights are not those that its provenance was written for.
    """
    if not path.is_dir():
        raise SpecError(f"{path}: no such folder. Expected the folder of a run, such as workspace/runs/TIME-JOB")
    if not (path / JOB_FILE).is_file():
        raise SpecError(f"{path}: no {JOB_FILE}. Expected the folder of a run, which holds it beside {MODEL_FOLDER}/")
    job = parse_job(path / JOB_FILE)
    weights = read_weights(path / MODEL_FOLDER / WEIGHTS_FILE)
    digest = digest_of(weights, hashlib.sha256).hexdigest()
    provenance = read_provenance(path / PROVENANCE_FILE)["provenance"] if (path / PROVENANCE_FILE).is_file() else {}
    if provenance and provenance["model"] != digest:
        raise SpecError(
            f"{path}: the weights are not those that {PROVENANCE_FILE} was written for ({digest[:12]}…, expected "
            f"{str(provenance['model'])[:12]}…). Fetch the run again, or take the folder as it was written"
        )
    return TrainedModel(path, job, weights, digest, provenance)


def read_weights(path: Path) -> Weights:
    """Read weights as safetensors.

    Raises:
        SpecError: there are none, or they are broken.
    """
    try:
        return dict(load_file(path))
    except FileNotFoundError:
        raise SpecError(
            f"{path}: no such file. A run that ended early has no model; expected one that completed"
        ) from None
    except (OSError, SafetensorError):
        raise SpecError(f"{path}: the weights cannot be read: the file is cut off or damaged. Copy it again") from None
