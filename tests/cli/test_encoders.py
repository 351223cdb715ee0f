"""``oncofed data encoders`` as a hospital types it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from commands import Outcome
from oncofed.models import ModelSpec, NetworkRequest, build_network
from oncofed.models.weights import weights_of

Run = Callable[..., Outcome]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of encoders of its own."""
    monkeypatch.setenv("ONCOFED_ENCODERS", str(tmp_path / "encoders"))
    monkeypatch.setenv("ONCOFED_WORKSPACE", str(tmp_path / "workspace"))
    return tmp_path / "encoders"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Weights of a ResNet-18 in PyTorch's format, with a prefix."""
    network = build_network(NetworkRequest(ModelSpec(network="resnet18"), 3, 9, 2, (64, 64)), 1)
    torch.save({"state_dict": {f"module.{n}": v for n, v in weights_of(network).items()}}, tmp_path / "model.bin")
    return tmp_path / "model.bin"


def test_from_a_makers_file_to_a_job(run: Run, folder: Path, weights: Path) -> None:
    listed = run("data", "encoders")
    assert listed.status == 0
    assert "\nuni\t1024\t256 px, 0.5 µm\t-\tCC BY-NC-ND 4.0\thttps://huggingface.co/MahmoodLab/UNI" in listed.output
    checked = run("data", "encoders", "check", "resnet18", weights)
    assert checked.status == 0
    assert "names begin with state_dict.module." in checked.text
    assert "no reference: nobody of this project had these weights" in checked.text
    assert not folder.exists()
    added = json.loads(run("data", "encoders", "add", "resnet18", weights, "--json").output)
    assert added["file"] == str(folder / "resnet18.safetensors")
    assert added["digest"] in checked.text
    again = run("data", "encoders", "add", "resnet18", folder / "resnet18.safetensors")
    assert f"encoder: {{network: resnet18, digest: {added['digest']}}}" in again.text
    values = json.loads(run("data", "encoders", "--json").output)
    at_hand = {entry["name"]: entry["at_hand"] for entry in values["encoders"]}
    assert at_hand["resnet18"] == added["digest"]
    assert set(at_hand.values()) == {None, added["digest"]}


def test_what_cannot_be_added_is_told(run: Run, folder: Path, weights: Path) -> None:
    assert "did you mean h-optimus-0" in run("data", "encoders", "check", "hoptimus0", weights).text
    assert "colour has no weights" in run("data", "encoders", "add", "colour", weights).text
    other = run("data", "encoders", "add", "resnet50", weights)
    assert other.status == 1
    assert "these are not the weights of MONAI's ResNet-50" in other.text
    missing = run("data", "encoders", "add", "resnet18", weights.with_name("none.bin"))
    assert "cannot be read: none.bin: no such file" in missing.text
    assert not folder.exists()
