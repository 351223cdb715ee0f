"""A bundle's ``metadata.json`` and ``README.md``, by the MONAI bundle specification."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import monai
import numpy as np
import torch

from oncofed.data.spec import DataSpec, Modality
from oncofed.data.transforms import intensity_range
from oncofed.models.answers import TargetAnswer
from oncofed.models.bundle import targets as of_targets
from oncofed.models.bundle.answer import Answer, LabelledVoxels, NumberedObjects, OfSlide, targets_of
from oncofed.models.bundle.expressions import Config, plain
from oncofed.models.networks import NetworkRequest

_SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
_USE = "Research only. Not a medical device."
_OF_SLIDES = (
    "Slides are neither cut nor encoded here: the input is a file .npy for each slide, one row of features a tile, of "
    "the encoder and the tiling that this file names. Whether they are of that encoder cannot be seen."
)
_OF_MODULE = "The network comes from the module {}, which must be installed beside MONAI: its code is not part of this."
_OF_CHANNELS = (
    "The channels of a volume are the fourth axis of its file, or a list of files in datalist, in the order of "
    "channel_def and on one grid."
)
_OF_PICTURES = (
    "Images are read by Pillow: one picture a file, 8 bits of colour, or grey of 8 to 32 bits; TIFF of one page, "
    "upright, without palette, opacity or JPEG."
)
_MODALITIES: dict[Modality, str] = {
    "mri": "MR",
    "ct": "CT",
    "pet": "PET",
    "xray": "X-ray",
    "microscopy": "microscopy",
}


def metadata(
    title: str,
    request: NetworkRequest,
    data: DataSpec,
    classes: dict[int, str],
    answer: Answer,
    packages: Sequence[str],
    module: str = "",
) -> Config:
    """Return the metadata.

    Args:
        title: of the model.
        request: what the network was built for.
        data: grid and normalisation of its input.
        classes: label values and names of its output.
        answer: form of the answer.
        packages: that it needs in addition to MONAI.
        module: of the network; empty: MONAI's.
    """
    slides, targets = isinstance(answer, OfSlide), targets_of(answer)
    output = _outputs_of_targets(request, targets) if targets else _output(request, data, classes)
    found: Config = {
        **_of_any(title, packages),
        "limits": [*limits(data, answer), *([_OF_MODULE.format(module)] if module else [])],
        "network_data_format": {
            "inputs": {"bag" if slides else "image": _bag(request) if slides else _image(data)},
            "outputs": {"pred": output},
        },
    }
    if targets:
        found["targets"] = of_targets.described(targets)
    if isinstance(answer, OfSlide):
        found["encoder"] = {"digest": plain(answer.encoder), "features": request.in_channels}
        found["tiling"] = {"tile_size_pixels": answer.tile, "microns_per_pixel": answer.microns}
    return found


def metadata_without_code(title: str, pack: str, classes: dict[int, str], why: str) -> Config:
    """Return metadata of a model that MONAI alone cannot run.

    Args:
        title: of the model.
        pack: digest of the pack that it needs; empty: none.
        classes: label values and names that it learned.
        why: it cannot.
    """
    return {
        **_of_any(title, []),
        "required_code": {
            **({"pack": pack} if pack else {}),
            "classes": {str(value): plain(name) for value, name in classes.items()},
        },
        "limits": [why],
        "network_data_format": {"inputs": {}, "outputs": {}},
    }


def _of_any(title: str, packages: Sequence[str]) -> Config:
    return {
        "schema": _SCHEMA,
        "version": "1.0.0",
        "changelog": {"1.0.0": "trained in a federation"},
        "monai_version": monai.__version__,
        "pytorch_version": torch.__version__.split("+")[0],
        "numpy_version": np.__version__,
        "required_packages_version": {name: _version(name) for name in packages},
        "name": plain(title),
        "task": plain(title),
        "description": plain(f"{title}: trained by oncofed with federated averaging"),
        "authors": "the sites of the federation",
        "copyright": "see the agreement of the alliance",
        "intended_use": _USE,
    }


def limits(data: DataSpec, answer: Answer) -> list[str]:
    """Return the bundle's limits, a sentence each.

    Its inference refuses input beyond them.
    """
    if isinstance(answer, OfSlide):
        return [_OF_SLIDES]
    if data.dimensions == 3:
        found = ["Volumes are read from NIfTI alone, of real numbers, with lengths in millimetres where they count."]
        if len(data.channels) > 1:
            found.append(_OF_CHANNELS)
        return found
    found = [_OF_PICTURES]
    if data.spacing or data.spacing_range:
        found.append("Files do not say how large pixels are: pixel_size, x and y in mm, must be given.")
    return found


def readme(title: str, data: DataSpec, classes: dict[int, str], answer: Answer) -> str:
    """Return the bundle's description for people."""
    dense = isinstance(answer, LabelledVoxels | NumberedObjects)
    names = {0: "background", **classes} if dense else classes
    labels = "\n".join(f"- {value}: {name}" for value, name in names.items())
    targets = targets_of(answer)
    what = f"Targets:\n\n{of_targets.in_words(targets)}" if targets else f"Labels:\n\n{labels}"
    grid = f"{list(data.spacing)} mm" if data.spacing else "the image's own"
    axes = f", axes {data.orientation}" if data.dimensions == 3 else ""
    more = "".join(f"- {limit}\n" for limit in limits(data, answer))
    return (
        f"# {title}\n\nTrained by oncofed in a federation of sites. {_USE}\n\n{what}\n\n"
        f"Input: {', '.join(data.channels)}; {data.modality.upper()}, voxel size {grid}{axes}.\n\n"
        f"{_answers(answer, data)}\n\n"
        "```sh\npip install monai fire\npython -m monai.bundle run --config_file configs/inference.json "
        "--dataset_dir IMAGES --output_dir OUT\n```\n\n"
        "Packages and their versions are in `configs/metadata.json`, `required_packages_version`.\n\n"
        f"Limits; what is beyond them is refused:\n\n{more}\n"
        "```python\nfrom monai.bundle import load\n\n"
        'network = load("bundle", bundle_dir="..")\n```\n'
    )


def _answers(answer: Answer, data: DataSpec) -> str:
    ending = ".nii.gz" if data.dimensions == 3 else ".png"
    if isinstance(answer, LabelledVoxels):
        return f"Each image of a folder gets a file of labels on its own grid, `NAME_seg{ending}`:"
    if isinstance(answer, NumberedObjects):
        ending = ".nii.gz" if data.dimensions == 3 else ".tif"
        return f"Each image of a folder gets a file with a number for each object, `NAME_seg{ending}`:"
    what = "slide's bag of features" if isinstance(answer, OfSlide) else "image"
    if targets_of(answer):
        return (
            f"The answers of each {what} of a folder are written into `predictions.json`, by target and number. The "
            "network's outputs become them by the steps that `configs/metadata.json` names under `targets`:"
        )
    return (
        f"The probabilities of each {what} of a folder are written into `predictions.json`. Logits are divided by "
        "`temperature` of `configs/inference.json`, which `calibration.json` explains where there is one:"
    )


def _image(data: DataSpec) -> dict[str, Any]:
    found = intensity_range(data)
    return {
        "type": "image",
        "format": "hounsfield" if data.modality == "ct" else "magnitude",
        "modality": _MODALITIES[data.modality],
        "num_channels": len(data.channels),
        "spatial_shape": list(data.patch),
        "dtype": "float32",
        "value_range": [found["b_min"], found["b_max"]] if found else [],
        "is_patch_data": True,
        "channel_def": {str(n): plain(name) for n, name in enumerate(data.channels)},
    }


def _bag(request: NetworkRequest) -> dict[str, Any]:
    return {
        "type": "tuples",
        "format": "latent",
        "modality": "microscopy",
        "num_channels": request.in_channels,
        "spatial_shape": ["*"],
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": False,
        "channel_def": {},
    }


def _output(request: NetworkRequest, data: DataSpec, classes: dict[int, str]) -> dict[str, Any]:
    dense = request.spec.kind == "dense"
    names = {0: "background", **classes} if dense else dict(classes)
    # A further output: the depth of a pixel inside its object.
    names |= dict.fromkeys(range(len(names), request.out_channels), "depth inside the object")
    return {
        "type": "image" if dense else "probabilities",
        "format": "labels" if dense else "classes",
        "modality": "n/a",
        "num_channels": request.out_channels,
        "spatial_shape": list(data.patch) if dense else [],
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": dense,
        "channel_def": {str(number): plain(name) for number, name in sorted(names.items())},
    }


def _outputs_of_targets(request: NetworkRequest, targets: Sequence[TargetAnswer]) -> dict[str, Any]:
    names = {str(number): plain(name) for number, name in enumerate(of_targets.output_names(targets))}
    return {
        "type": "tuples",
        "format": "raw",
        "modality": "n/a",
        "num_channels": request.out_channels,
        "spatial_shape": [],
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": False,
        "channel_def": names,
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
