"""A trained model as a self-contained MONAI bundle.

``monai.bundle.load(name, bundle_dir=...)`` returns its network with its weights; ``python -m monai.bundle run
--config_file configs/inference.json`` answers for a folder of images as the job's own scoring does.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from oncofed.data.spec import DataSpec
from oncofed.models.bundle.answer import (
    Answer,
    ImageClasses,
    ImageTargets,
    LabelledVoxels,
    NumberedObjects,
    SlideClasses,
    SlideTargets,
)
from oncofed.models.bundle.inference import inference
from oncofed.models.bundle.metadata import metadata, metadata_without_code, readme
from oncofed.models.bundle.networks import exported, runs_alone
from oncofed.models.bundle.without_code import reason, refusing_definition, refusing_inference, refusing_readme
from oncofed.models.networks import NetworkRequest, build_network
from oncofed.models.weights import Weights, digest_of, load_weights

__all__ = [
    "BUNDLE_NAME",
    "JOB_IN_BUNDLE",
    "WEIGHTS_IN_BUNDLE",
    "Answer",
    "ImageClasses",
    "ImageTargets",
    "LabelledVoxels",
    "NumberedObjects",
    "SlideClasses",
    "SlideTargets",
    "runs_alone",
    "write_bundle",
    "write_bundle_without_code",
]

BUNDLE_NAME = "bundle"
# The job that trained it, and its weights' digest. Next to configs/, where MONAI looks for no files.
JOB_IN_BUNDLE = "oncofed.json"
WEIGHTS_IN_BUNDLE = Path("models", "model.pt")


def write_bundle(
    folder: Path,
    title: str,
    request: NetworkRequest,
    data: DataSpec,
    classes: dict[int, str],
    weights: Weights,
    answer: Answer | None = None,
    job: Mapping[str, Any] | None = None,
) -> Path:
    """Write ``folder/bundle`` and return it.

    Layout and metadata follow the MONAI bundle specification. Expressions of the configuration are fixed here: only
    numbers of a job become part of one.

    Args:
        folder: where the bundle goes.
        title: of the model.
        request: what the network was built for.
        data: grid and normalisation of its input.
        classes: label values and names of its output.
        weights: of the network.
        answer: form of the answer; None: the default of its kind of network.
        job: that trained it, as ``job.yaml`` holds it; None: the bundle alone does not restore the model.
    """
    bundle = _folders(folder)
    # Under every name that the network has for them, as MONAI asks for.
    network = build_network(request, 0)
    load_weights(network, weights)
    # MONAI reads weights with torch.load(weights_only=True): tensors only.
    torch.save(dict(network.state_dict()), bundle / WEIGHTS_IN_BUNDLE)
    answer = answer or _usual(request, data)
    alone = exported(request)
    inferring, packages = inference(alone, data, answer, classes)
    described = metadata(title, request, data, classes, answer, packages, alone.module)
    _write(bundle / "configs" / "metadata.json", described)
    _write(bundle / "configs" / "inference.json", inferring)
    # By default monai.bundle.load looks for the network in train.json.
    _write(bundle / "configs" / "train.json", alone.definition)
    (bundle / "docs" / "README.md").write_text(readme(title, data, classes, answer), encoding="utf-8")
    _write_job(bundle, weights, job)
    return bundle


def write_bundle_without_code(
    folder: Path,
    title: str,
    pack: str,
    classes: dict[int, str],
    weights: Weights,
    lacks: str,
    job: Mapping[str, Any] | None = None,
) -> Path:
    """Write ``folder/bundle`` of a model that MONAI alone cannot run, and return it.

    It holds weights and facts. Instead of an answer MONAI ends with one line that says what the model needs: a bundle
    never brings code that its user would have to trust.

    Args:
        folder: where the bundle goes.
        title: of the model.
        pack: digest of the pack whose code it needs; empty: none.
        classes: label values and names that it learned.
        weights: of the network.
        lacks: what the model needs and MONAI has not, as a sentence without its full stop; not used for a pack.
        job: that trained it, as ``job.yaml`` holds it; None: unknown.
    """
    bundle, why = _folders(folder), reason(pack, lacks)
    torch.save(dict(weights), bundle / WEIGHTS_IN_BUNDLE)
    _write(bundle / "configs" / "metadata.json", metadata_without_code(title, pack, classes, why))
    _write(bundle / "configs" / "inference.json", refusing_inference(why))
    _write(bundle / "configs" / "train.json", refusing_definition(why))
    (bundle / "docs" / "README.md").write_text(refusing_readme(title, why), encoding="utf-8")
    _write_job(bundle, weights, job)
    return bundle


def _folders(folder: Path) -> Path:
    bundle = folder / BUNDLE_NAME
    for sub in ("configs", "models", "docs"):
        (bundle / sub).mkdir(parents=True, exist_ok=True)
    return bundle


def _write_job(bundle: Path, weights: Weights, job: Mapping[str, Any] | None) -> None:
    if job is not None:
        digest = digest_of(weights, hashlib.sha256).hexdigest()
        _write(bundle / JOB_IN_BUNDLE, {"job": dict(job), "weights": digest})


def _usual(request: NetworkRequest, data: DataSpec) -> Answer:
    if request.spec.kind == "dense":
        return LabelledVoxels()
    return ImageClasses() if request.spec.kind == "image" else SlideClasses("", data.patch[0])


def _write(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
