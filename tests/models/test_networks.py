from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from oncofed.data.covariates import Covariate
from oncofed.errors import SpecError
from oncofed.models import ModelSpec, NetworkRequest, build_network, list_networks
from oncofed.models.known import find_network
from oncofed.plugins import MODULES_VARIABLE, NETWORKS, Kind

SMALL = {"unet": (4, 8, 16), "dynunet": (4, 8, 16), "residual_unet": (4, 8, 16), "segresnet": (8, 16, 32)}
LISTED = [network for network in list_networks() if network.name != "bundle"]  # which has tests of its own
NAMES = [(network.name, axes) for network in LISTED for axes in network.dimensions]


def _request(name: str, axes: int) -> NetworkRequest:
    spec = ModelSpec(network=name, channels=SMALL.get(name))
    if name == "vit":
        spec = ModelSpec(network=name, arguments={"num_layers": 2, "hidden_size": 48, "mlp_dim": 64})
    if name == "swinunetr":
        spec = ModelSpec(network=name, arguments={"feature_size": 12, "depths": [1, 1, 1, 1]})
    least = {"swinunetr": 64}.get(name, 32)
    side = max(least, 2 * spec.divisor if name in SMALL else spec.divisor)
    columns = (Covariate(name="age", range=(0, 1)),) if spec.kind == "table" else ()
    # Of boxes, three classes and what it takes to place them.
    outputs = 3 + 4 * axes + 1 if spec.kind == "boxes" else 3
    return NetworkRequest(spec, 8 if spec.kind == "bag" else 1, outputs, axes, (side,) * axes, columns)


def _answer(request: NetworkRequest, network: nn.Module) -> torch.Tensor:
    if request.spec.kind == "bag":
        return network(torch.rand(2, 5, request.in_channels), torch.ones(2, 5, dtype=torch.bool))
    if request.spec.kind == "table":
        return network(torch.rand(2, 1))
    return network(torch.randn(2, request.in_channels, *request.patch))


@pytest.mark.parametrize(("name", "axes"), [n for n in NAMES if n not in {("hovernet", 2), ("resnet50", 3)}])
def test_each_network_answers_in_the_shape_of_its_kind_and_learns(name: str, axes: int) -> None:
    request = _request(name, axes)
    network = build_network(request, seed=1)
    output = _answer(request, network)
    of_one = output[..., 0] if request.spec.kind == "boxes" else output[:, : request.out_channels]
    assert of_one.shape == (2, request.out_channels, *(request.patch if request.spec.kind == "dense" else ()))
    output.square().mean().backward()
    grads = [p.grad for p in network.parameters() if p.requires_grad]
    assert all(g is not None and torch.isfinite(g).all() for g in grads)


@pytest.mark.parametrize("name", [network.name for network in LISTED])
def test_no_network_keeps_batch_statistics_unless_asked_to(name: str) -> None:
    axes = find_axes(name)
    assert not [key for key in build_network(_request(name, axes), 1).state_dict() if "running" in key]


class _Growing(str):
    """A module's name that adds a module while the names are walked, once."""

    def startswith(self, *prefix: Any) -> bool:
        sys.modules.setdefault("oncofed_imported_meanwhile", ModuleType("oncofed_imported_meanwhile"))
        return super().startswith(*prefix)


def test_an_import_in_another_thread_spoils_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = build_network(_request("unet", 3), seed=1).state_dict()
    monkeypatch.setitem(sys.modules, "oncofed_imported_meanwhile", ModuleType("x"))  # so that it is removed then
    del sys.modules["oncofed_imported_meanwhile"]
    monkeypatch.setitem(sys.modules, _Growing("oncofed_growing"), ModuleType("oncofed_growing"))
    found = build_network(_request("unet", 3), seed=1).state_dict()
    assert "oncofed_imported_meanwhile" in sys.modules, "the first walk broke off"
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def find_axes(name: str) -> int:
    return find_network(name).dimensions[0]


def test_batch_statistics_where_a_job_asks_for_them() -> None:
    request = NetworkRequest(ModelSpec(network="resnet18", norm="batch"), 3, 2, 2, (64, 64))
    assert [key for key in build_network(request, 1).state_dict() if "running" in key]


def test_initial_weights_follow_from_the_seed_alone() -> None:
    request = _request("unet", 3)
    torch.manual_seed(1)
    first = build_network(request, seed=5).state_dict()
    before = torch.random.get_rng_state()
    again = build_network(request, seed=5).state_dict()
    assert torch.equal(before, torch.random.get_rng_state())
    other = build_network(request, seed=6).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"network": "segresnet", "channels": (8, 16, 20)}, "doubles its channels"),
        ({"network": "densenet121", "channels": (8, 16)}, "has no channels to set"),
        ({"network": "unet", "deep_supervision": 1}, "deep_supervision is of dynunet and residual_unet"),
        ({"network": "dynunet", "channels": (8, 16, 32), "deep_supervision": 3}, "expected at most 1"),
        ({"network": "resnet18", "norm": "instance"}, "normalised by group or batch"),
    ],
)
def test_settings_that_do_not_fit_a_network_are_refused(settings: dict[str, object], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        ModelSpec(**settings)  # type: ignore[arg-type]


def test_networks_that_cannot_be_built_are_reported() -> None:
    with pytest.raises(ValidationError, match="unknown network 'u-net'; known are attention_mil, bundle, clam_sb"):
        ModelSpec(network="u-net")
    with pytest.raises(SpecError, match="hovernet is for images of 2 axes, the job's have 3"):
        build_network(_request("hovernet", 3), 1)
    with pytest.raises(SpecError, match="unet cannot be built"):
        build_network(NetworkRequest(ModelSpec(arguments={"kernel": 3}), 1, 2, 3, (16, 16, 16)), 1)


OWN = """
from torch import nn
from oncofed.models import register_network

@register_network("two_convolutions", kind="dense")
def two_convolutions(in_channels, out_channels, spatial_dims, width=8):
    convolution = nn.Conv3d if spatial_dims == 3 else nn.Conv2d
    return nn.Sequential(
        convolution(in_channels, width, 3, padding=1), nn.ReLU(), convolution(width, out_channels, 3, padding=1)
    )
"""


def test_a_network_of_ones_own_is_one_file_that_the_site_installs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_networks.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValidationError, match="unknown network"):
        ModelSpec(network="two_convolutions")
    monkeypatch.setenv(MODULES_VARIABLE, "my_networks")
    monkeypatch.setattr(NETWORKS, "_known", dict(NETWORKS._known))
    spec = ModelSpec(network="two_convolutions", arguments={"width": 4})
    kind: Kind = spec.kind
    network = build_network(NetworkRequest(spec, 1, 3, 3, (8, 8, 8)), 1)
    assert kind == "dense"
    assert network(torch.zeros(1, 1, 8, 8, 8)).shape == (1, 3, 8, 8, 8)
    assert network[0].out_channels == 4  # type: ignore[index]


@pytest.mark.attack(
    "a job whose model.arguments hold an expression, a reference, or an instruction to MONAI's parser",
    by="the job's schema, at the engineer, the server and each site",
    logged="the command's error; the job's log",
)
@pytest.mark.parametrize(
    "arguments",
    [
        {"act": "$__import__('os').system('true')"},
        {"act": "@network"},
        {"act": "%/etc/passwd"},
        {"_target_": "os.system"},
        {"_requires_": "$print(1)"},
        {"_mode_": "debug"},
        {"act#0": "relu"},
        {"pretrained": True},
        {"model_path": "/etc/passwd"},
    ],
)
def test_arguments_are_plain_values(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"expected a plain value|expected the name of an argument|come with the job"):
        ModelSpec(arguments=arguments)


def test_a_number_is_not_taken_for_a_path() -> None:
    assert ModelSpec(network="swinunetr", arguments={"dropout_path_rate": 0.1}).arguments


def test_residual_blocks_begin_as_their_skips() -> None:
    network = build_network(_request("residual_unet", 2), seed=1)
    block = network.encoder.stages[1].blocks[0]
    values = torch.rand(1, 4, 8, 8)
    assert torch.equal(block(values), torch.nn.functional.leaky_relu(block.skip(values), 0.01))
