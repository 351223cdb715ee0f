"""A trained model as a MONAI bundle, which predicts with MONAI alone.

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
from oncofed.models.bundle.answer import Answer, ImageClasses, LabelledVoxels, NumberedObjects, SlideClasses
from oncofed.models.bundle.inference import inference
from oncofed.models.bundle.metadata import metadata, readme
from oncofed.models.bundle.networks import exported
from oncofed.models.networks import NetworkRequest, build_network
from oncofed.models.weights import Weights, digest_of, load_weights

__all__ = [
    "BUNDLE_NAME",
    "JOB_IN_BUNDLE",
    "WEIGHTS_IN_BUNDLE",
    "Answer",
    "ImageClasses",
    "LabelledVoxels",
    "NumberedObjects",
    "SlideClasses",
    "write_bundle",
]

BUNDLE_NAME = "bundle"
# Of the job that trained it, and the digest of its weights: beside configs/, where MONAI looks for none.
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

    Layout and metadata follow the MONAI bundle specification. Expressions of the configuration are fixed here: nothing
    that a job says becomes part of one but numbers.

    Args:
        folder: where the bundle goes.
        title: of the model.
        request: what the network was built for.
        data: grid and normalisation of its input.
        classes: label values and names of its output.
        weights: of the network.
        answer: what is made of its output; None: what its kind of network is for.
        job: that trained it, as ``job.yaml`` holds it; None: nobody can read the model from the bundle alone.
    """
    bundle = folder / BUNDLE_NAME
    for sub in ("configs", "models", "docs"):
        (bundle / sub).mkdir(parents=True, exist_ok=True)
    # Under every name that the network has for them, as MONAI asks for.
    network = build_network(request, 0)
    load_weights(network, weights)
    # MONAI reads weights with torch.load(weights_only=True): tensors only.
    torch.save(dict(network.state_dict()), bundle / WEIGHTS_IN_BUNDLE)
    answer = answer or _usual(request, data)
    alone = exported(request)
    inferring, packages = inference(alone, data, answer, classes)
    said = metadata(title, request, data, classes, answer, packages, alone.module)
    _write(bundle / "configs" / "metadata.json", said)
    _write(bundle / "configs" / "inference.json", inferring)
    # monai.bundle.load looks for the network in train.json unless told otherwise.
    _write(bundle / "configs" / "train.json", alone.definition)
    (bundle / "docs" / "README.md").write_text(readme(title, data, classes, answer), encoding="utf-8")
    if job is not None:
        digest = digest_of(weights, hashlib.sha256).hexdigest()
        _write(bundle / JOB_IN_BUNDLE, {"job": dict(job), "weights": digest})
    return bundle


def _usual(request: NetworkRequest, data: DataSpec) -> Answer:
    if request.spec.kind == "dense":
        return LabelledVoxels()
    return ImageClasses() if request.spec.kind == "image" else SlideClasses("", data.patch[0])


def _write(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
