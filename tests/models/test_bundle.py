from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, load

from oncofed.data.spec import DataSpec
from oncofed.models import ModelSpec, NetworkRequest, build_network
from oncofed.models.bundle import (
    BUNDLE_NAME,
    ImageClasses,
    LabelledVoxels,
    NumberedObjects,
    SlideClasses,
    write_bundle,
)
from oncofed.models.foreign import read_bundle
from oncofed.models.weights import weights_of

DATA = DataSpec(dataset="balls", spacing=(1.5, 1.5, 1.5), patch=(16, 16, 16))
REQUEST = NetworkRequest(ModelSpec(channels=(4, 8)), 1, 3, 3, DATA.patch)
# Of the MONAI bundle specification.
MANDATORY = (
    "version",
    "monai_version",
    "pytorch_version",
    "numpy_version",
    "required_packages_version",
    "task",
    "description",
    "authors",
    "copyright",
    "network_data_format",
)
OF_TENSORS = (
    "type",
    "format",
    "modality",
    "num_channels",
    "spatial_shape",
    "dtype",
    "value_range",
    "is_patch_data",
    "channel_def",
)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    weights = build_network(REQUEST, seed=9).state_dict()
    return write_bundle(tmp_path, "Two balls", REQUEST, DATA, {1: "shell", 2: "core"}, weights)


def _metadata(bundle: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((bundle / "configs" / "metadata.json").read_text())
    return found


@pytest.mark.filterwarnings("ignore")
def test_monai_loads_the_network_with_its_weights(bundle: Path) -> None:
    network = load(BUNDLE_NAME, bundle_dir=bundle.parent)
    expected = build_network(REQUEST, seed=9)
    image = torch.randn(1, 1, 16, 16, 16)
    torch.testing.assert_close(network.eval()(image), expected.eval()(image))


NETWORKS = [
    ({"network": "unet", "channels": (4, 8)}, (16, 16), 3),
    ({"network": "dynunet", "channels": (4, 8, 16), "deep_supervision": 1}, (16, 16, 16), 2),
    ({"network": "segresnet", "channels": (8, 16), "norm": "group"}, (16, 16, 16), 2),
    ({"network": "swinunetr", "arguments": {"feature_size": 12}}, (64, 64), 2),
    pytest.param({"network": "hovernet"}, (256, 256), 3, marks=pytest.mark.slow),
    ({"network": "densenet121"}, (64, 64), 2),
    ({"network": "efficientnet-b0"}, (64, 64), 2),
    ({"network": "resnet18"}, (32, 32, 32), 2),
    ({"network": "resnet18", "norm": "batch"}, (64, 64), 2),
    ({"network": "vit", "arguments": {"num_layers": 1}}, (32, 32), 2),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("spec", "patch", "out"), NETWORKS, ids=lambda value: str(value)[:40])
def test_every_network_is_made_of_what_monai_and_torch_have(
    tmp_path: Path, spec: dict[str, Any], patch: tuple[int, ...], out: int
) -> None:
    data = DataSpec(dataset="balls", patch=patch, channels=("red", "green", "blue"))
    request = NetworkRequest(ModelSpec(**spec), 3, out, len(patch), patch)
    expected = build_network(request, seed=9)
    answer = NumberedObjects() if spec["network"] == "hovernet" else None
    bundle = write_bundle(tmp_path, "One", request, data, {0: "a", 1: "b"}, weights_of(expected), answer)
    parser = ConfigParser()
    parser.read_config(bundle / "configs" / "inference.json")
    assert "oncofed" not in (bundle / "configs" / "inference.json").read_text()
    parser["bundle_root"], parser["device"] = str(bundle), "cpu"
    image = torch.randn(1, 3, *patch)
    with torch.no_grad():
        parser.get_parsed_content("network").load_state_dict(parser.get_parsed_content("weights"))
        network = parser.get_parsed_content("predictor")
        torch.testing.assert_close(network(image), expected.eval()(image))
        loaded = load(BUNDLE_NAME, bundle_dir=tmp_path)
        state = expected.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())


@pytest.mark.filterwarnings("ignore")
def test_a_file_comes_out_of_its_preprocessing_on_the_jobs_grid(bundle: Path, tmp_path: Path) -> None:
    nib.save(
        nib.Nifti1Image(np.random.default_rng(0).random((9, 10, 11)), np.diag([-3.0, 3, 3, 1])), tmp_path / "a.nii"
    )
    parser = ConfigParser()
    parser.read_config(bundle / "configs" / "inference.json")
    image = parser.get_parsed_content("preprocessing")({"image": str(tmp_path / "a.nii")})["image"]
    assert image.dtype == torch.float32
    assert image.pixdim.tolist() == [1.5, 1.5, 1.5]
    assert read_bundle(str(bundle)).preprocessing == {"spacing": [1.5] * 3, "orientation": "RAS", "patch": [16] * 3}


def test_small_voxels_are_said_in_millimetres(tmp_path: Path) -> None:
    data = DataSpec(dataset="cells", patch=(16, 16), spacing=(0.001, 0.002), modality="microscopy")
    request = NetworkRequest(ModelSpec(channels=(4, 8)), 1, 2, 2, data.patch)
    bundle = write_bundle(tmp_path, "Cells", request, data, {1: "a"}, build_network(request, 0).state_dict())
    assert read_bundle(str(bundle)).preprocessing == {"spacing": [0.001, 0.002], "patch": [16, 16]}


@pytest.mark.attack(
    "a job whose title, classes or channels are expressions, references or macros of MONAI's parser",
    by="the writer of bundles",
    logged="nothing: they stay text",
)
def test_no_text_of_a_job_is_evaluated(tmp_path: Path) -> None:
    evil = ["$open('evil', 'w')", "@network", "%evil.json", "$import this", "a @#b %#c", "a'b\"c\\"]
    data = DataSpec(dataset="balls", patch=(16, 16), channels=tuple(evil), modality="xray")
    request = NetworkRequest(ModelSpec(channels=(4, 8)), 6, 7, 2, data.patch)
    names = dict(enumerate(evil, start=1))
    weights = build_network(request, 0).state_dict()
    for kind, answer in enumerate((LabelledVoxels(), ImageClasses(), SlideClasses(evil[0], 16))):
        if isinstance(answer, SlideClasses):
            request = NetworkRequest(ModelSpec(network="attention_mil"), 6, 6, 2, data.patch)
            weights = build_network(request, 0).state_dict()
        bundle = write_bundle(tmp_path / str(kind), evil[0], request, data, names, weights, answer)
        plain = write_bundle(
            tmp_path / f"{kind}.plain",
            "A",
            request,
            data.model_copy(update={"channels": tuple("abcdef")}),
            names,
            weights,
            answer,
        )
        for name in ("inference.json", "train.json", "metadata.json"):
            found, usual = (_expressions(json.loads((b / "configs" / name).read_text())) for b in (bundle, plain))
            assert found == usual
        parser = ConfigParser()
        parser.read_config(bundle / "configs" / "inference.json")
        parser.read_meta(bundle / "configs" / "metadata.json")
        assert evil[0] in parser.get_parsed_content("_meta_")["task"]
    with pytest.raises(FileNotFoundError):
        Path("evil").read_bytes()


def _expressions(value: Any) -> set[str]:
    """Return what MONAI's parser would evaluate or replace."""
    if isinstance(value, dict):
        return set().union(*map(_expressions, value.values()))
    if isinstance(value, list):
        return set().union(*map(_expressions, value))
    return {value} if isinstance(value, str) and (value[:1] in set("$@%") or "@#" in value or "%#" in value) else set()


def test_metadata_has_what_the_specification_asks_for(bundle: Path) -> None:
    said = _metadata(bundle)
    assert set(MANDATORY) <= set(said)
    assert all(said[name] for name in MANDATORY)
    assert said["intended_use"].startswith("Research only")
    for tensors in said["network_data_format"].values():
        assert all(set(OF_TENSORS) <= set(tensor) for tensor in tensors.values())
    assert said["network_data_format"]["outputs"]["pred"]["channel_def"] == {
        "0": "background",
        "1": "shell",
        "2": "core",
    }
    assert said["required_packages_version"] == {"nibabel": nib.__version__}


@pytest.mark.parametrize(
    ("data", "modality", "form", "values"),
    [
        ({"modality": "ct", "window": (-160, 240)}, "CT", "hounsfield", [0, 1]),
        ({"modality": "ct"}, "CT", "hounsfield", [-1, 1]),
        ({"modality": "mri"}, "MR", "magnitude", []),
        ({"modality": "pet"}, "PET", "magnitude", []),
        ({"modality": "xray"}, "X-ray", "magnitude", []),
        ({"modality": "microscopy"}, "microscopy", "magnitude", []),
    ],
)
def test_metadata_names_modality_format_and_range(
    tmp_path: Path, data: dict[str, Any], modality: str, form: str, values: list[float]
) -> None:
    spec = DataSpec(dataset="balls", patch=(16, 16), **data)
    request = NetworkRequest(ModelSpec(channels=(4, 8)), 1, 2, 2, spec.patch)
    weights = build_network(request, 0).state_dict()
    image = _metadata(write_bundle(tmp_path, "A", request, spec, {1: "a"}, weights))["network_data_format"]["inputs"][
        "image"
    ]
    assert (image["modality"], image["format"], image["value_range"]) == (modality, form, values)


def test_a_slides_bundle_names_encoder_and_tiling_and_says_what_it_does_not_do(tmp_path: Path) -> None:
    data = DataSpec(dataset="slides", patch=(64, 64), spacing=(0.0005, 0.0005), channels=("red", "green", "blue"))
    request = NetworkRequest(ModelSpec(network="attention_mil"), 8, 2, 2, data.patch)
    weights = build_network(request, 0).state_dict()
    answer = SlideClasses("resnet18 0a1b", 64, 0.5)
    said = _metadata(write_bundle(tmp_path, "Slides", request, data, {0: "a", 1: "b"}, weights, answer))
    assert said["encoder"] == {"digest": "resnet18 0a1b", "features": 8}
    assert said["tiling"] == {"tile_size_pixels": 64, "microns_per_pixel": 0.5}
    assert "neither cut nor encoded" in said["limits"][0]
    assert said["network_data_format"]["inputs"]["bag"]["num_channels"] == 8
