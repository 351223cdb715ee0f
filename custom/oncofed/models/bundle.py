"""A trained model as a MONAI bundle, which ``monai.bundle.load(name, bundle_dir=...)`` returns with its weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import monai
import numpy as np
import torch
from torch import Tensor

from oncofed.data.spec import DataSpec
from oncofed.models.networks import Request, build_network, network_config
from oncofed.models.weights import load_weights

BUNDLE_NAME = "bundle"


def write_bundle(
    folder: Path, title: str, request: Request, data: DataSpec, classes: dict[int, str], weights: dict[str, Tensor]
) -> Path:
    """Write ``folder/bundle`` and return it.

    Layout and metadata follow the MONAI bundle specification. The configuration holds no expression that runs code
    beyond naming MONAI's own classes.

    Args:
        folder: where the bundle goes.
        title: of the model.
        request: what the network was built for.
        data: grid and normalisation of its input.
        classes: label values and names of its output.
        weights: of the network.
    """
    bundle = folder / BUNDLE_NAME
    for sub in ("configs", "models", "docs"):
        (bundle / sub).mkdir(parents=True, exist_ok=True)
    # Under every name that the network has for them, as MONAI asks for.
    network = build_network(request, 0)
    load_weights(network, weights)
    # MONAI reads weights with torch.load(weights_only=True): tensors only.
    torch.save(dict(network.state_dict()), bundle / "models" / "model.pt")
    _write(bundle / "configs" / "metadata.json", _metadata(title, request, data, classes))
    inference = _inference(request, data)
    _write(bundle / "configs" / "inference.json", inference)
    # monai.bundle.load looks for the network in train.json unless told otherwise.
    _write(bundle / "configs" / "train.json", {"network_def": inference["network_def"]})
    (bundle / "docs" / "README.md").write_text(_readme(title, request, data, classes), encoding="utf-8")
    return bundle


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _metadata(title: str, request: Request, data: DataSpec, classes: dict[int, str]) -> dict[str, Any]:
    return {
        "schema": "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json",
        "version": "1.0.0",
        "changelog": {"1.0.0": "trained in a federation"},
        "monai_version": monai.__version__,
        "pytorch_version": torch.__version__.split("+")[0],
        "numpy_version": np.__version__,
        "required_packages_version": {"nibabel": "5.4.2"},
        "task": title,
        "description": f"{title}: trained by oncofed with federated averaging",
        "authors": "the sites of the federation",
        "copyright": "see the agreement of the alliance",
        "intended_use": "Research only. Not a medical device.",
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image",
                    "format": "hounsfield" if data.modality == "ct" else "magnitude",
                    "modality": data.modality.upper(),
                    "num_channels": len(data.channels),
                    "spatial_shape": list(data.patch),
                    "dtype": "float32",
                    "value_range": [],
                    "is_patch_data": True,
                    "channel_def": {str(n): name for n, name in enumerate(data.channels)},
                }
            },
            "outputs": {"pred": _output(request, data, classes)},
        },
    }


def _output(request: Request, data: DataSpec, classes: dict[int, str]) -> dict[str, Any]:
    dense = request.spec.kind == "dense"
    names = {0: "background", **classes} if dense else classes
    # What the network gives beyond its classes: how deep inside its object a pixel lies.
    names |= dict.fromkeys(range(len(names), request.out_channels), "depth inside the object")
    return {
        "type": "image" if dense else "probabilities",
        "format": "segmentation" if dense else "classes",
        "num_channels": request.out_channels,
        "spatial_shape": list(data.patch) if dense else [],
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": dense,
        "channel_def": {str(number): name for number, name in sorted(names.items())},
    }


def _inference(request: Request, data: DataSpec) -> dict[str, Any]:
    network = {"network_def": network_config(request)}
    if request.spec.kind == "bag":
        return {**network, "inferer": {"_target_": "SimpleInferer"}}
    steps = _reading(data)
    if data.spacing:
        steps.append({"_target_": "Spacingd", "keys": "image", "pixdim": list(data.spacing), "mode": "bilinear"})
    if data.modality == "ct":
        steps.append(
            {
                "_target_": "ScaleIntensityRanged",
                "keys": "image",
                "a_min": data.window[0] if data.window else -1000.0,
                "a_max": data.window[1] if data.window else 1000.0,
                "b_min": 0.0 if data.window else -1.0,
                "b_max": 1.0,
                "clip": True,
            }
        )
    else:
        steps.append({"_target_": "NormalizeIntensityd", "keys": "image", "channel_wise": True})
    if request.spec.kind == "image":
        steps.append({"_target_": "ResizeWithPadOrCropd", "keys": "image", "spatial_size": list(data.patch)})
        inferer: dict[str, Any] = {"_target_": "SimpleInferer"}
    else:
        inferer = {
            "_target_": "SlidingWindowInferer",
            "roi_size": list(data.patch),
            "sw_batch_size": 4,
            "overlap": 0.25,
            "mode": "gaussian",
        }
    return {**network, "preprocessing": {"_target_": "Compose", "transforms": steps}, "inferer": inferer}


def _reading(data: DataSpec) -> list[dict[str, Any]]:
    several = len(data.channels) > 1
    reader = "NibabelReader" if data.dimensions == 3 else "PILReader"
    steps: list[dict[str, Any]] = [
        {"_target_": "LoadImaged", "keys": "image", "reader": reader, "image_only": True},
        {"_target_": "EnsureChannelFirstd", "keys": "image", "channel_dim": -1 if several else "no_channel"},
    ]
    if data.dimensions == 3:
        steps.append({"_target_": "Orientationd", "keys": "image", "axcodes": data.orientation, "labels": None})
    return steps


def _readme(title: str, request: Request, data: DataSpec, classes: dict[int, str]) -> str:
    names = {0: "background", **classes} if request.spec.kind == "dense" else classes
    labels = "\n".join(f"- {value}: {name}" for value, name in names.items())
    grid = f"{list(data.spacing)} mm" if data.spacing else "the image's own"
    return (
        f"# {title}\n\nTrained by oncofed in a federation of sites.\n\nLabels:\n\n{labels}\n\n"
        f"Input: {', '.join(data.channels)}; {data.modality.upper()}, voxel size {grid}, axes {data.orientation}.\n\n"
        "```python\nfrom monai.bundle import load\n\n"
        f'network = load("{BUNDLE_NAME}", bundle_dir=".")\n```\n'
    )
