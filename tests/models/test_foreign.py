"""A bundle as a job's model, without running its code."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from commands import Outcome
from oncofed.data.spec import DataSpec
from oncofed.errors import SpecError
from oncofed.job.spec import parse_job
from oncofed.models import ModelSpec, NetworkRequest, build_network
from oncofed.models.bundle import write_bundle
from oncofed.models.foreign import FOLDER_VARIABLE, read_bundle
from synthetic import JOB, write_job

DATA = DataSpec(dataset="balls", spacing=(1.5, 1.5, 1.5), patch=(16, 16, 16))
REQUEST = NetworkRequest(ModelSpec(channels=(4, 8)), 1, 3, 3, DATA.patch)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    weights = build_network(REQUEST, seed=9).state_dict()
    return write_bundle(tmp_path, "Two balls", REQUEST, DATA, {1: "shell", 2: "core"}, weights)


def _spec(bundle: Path, **more: Any) -> ModelSpec:
    return ModelSpec(network="bundle", bundle=str(bundle), **more)


def test_network_and_weights_are_the_bundles(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = build_network(NetworkRequest(_spec(bundle), 1, 3, 3, DATA.patch), seed=1)
    expected = build_network(REQUEST, seed=9).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in network.state_dict().items())
    expected_input = {"spacing": [1.5, 1.5, 1.5], "orientation": "RAS", "patch": [16, 16, 16]}
    assert read_bundle(str(bundle)).preprocessing == expected_input
    monkeypatch.setenv(FOLDER_VARIABLE, str(bundle.parent))
    assert read_bundle(bundle.name).digest == read_bundle(str(bundle)).digest


def test_an_output_layer_for_other_classes_is_initialised(bundle: Path) -> None:
    network = build_network(NetworkRequest(_spec(bundle), 1, 5, 3, DATA.patch), seed=1)
    assert network(torch.zeros(1, 1, 16, 16, 16)).shape[1] == 5
    expected = build_network(REQUEST, seed=9).state_dict()
    first = next(iter(expected))
    assert torch.equal(network.state_dict()[first], expected[first])


@pytest.mark.parametrize(
    ("network", "why"),
    [
        ({"_target_": "UNet", "channels": "$__import__('os').system('true')"}, "expressions are code"),
        ({"_target_": "scripts.net.Net"}, "other classes are code"),
        ({"_target_": "os.system", "command": "true"}, "other classes are code"),
        ({"_target_": "UNet", "channels": "@missing"}, "needs the expression '@missing'"),
        ({"_target_": "UNet", "norm": {"_target_": "os.system", "command": "true"}}, "other classes are code"),
        ({"_target_": "UNet", "norm": [1, {"_target_": "os.system", "command": "true"}]}, "other classes are code"),
        ({"_target_": "UNet", "_mode_": "debug"}, "other classes are code"),
        ({"_target_": "UNet", "_disabled_": "$print(1)"}, "other classes are code"),
    ],
)
@pytest.mark.attack(
    "a bundle whose network is os.system, holds it in an argument, or is an expression",
    by="the reader of bundles",
    logged="the error of the command",
)
def test_a_bundle_that_needs_code_is_refused(bundle: Path, network: dict[str, Any], why: str) -> None:
    (bundle / "configs" / "inference.json").write_text(json.dumps({"network_def": network}))
    with pytest.raises(SpecError, match=why):
        read_bundle(str(bundle))


def test_references_to_plain_values_are_followed(bundle: Path) -> None:
    config = json.loads((bundle / "configs" / "inference.json").read_text())
    config["network_def"]["channels"] = "@widths"
    (bundle / "configs" / "inference.json").write_text(json.dumps({**config, "widths": [4, 8]}))
    assert read_bundle(str(bundle)).network["channels"] == [4, 8]


@pytest.mark.attack("a pickle as a model's weights", by="torch.load(weights_only=True)", logged="the command's error")
def test_weights_that_are_a_program_are_not_run(bundle: Path, tmp_path: Path) -> None:
    class Program:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    torch.save({"first": Program()}, bundle / "models" / "model.pt")
    with pytest.raises(SpecError, match="no weights that can be read as tensors alone"):
        build_network(NetworkRequest(_spec(bundle), 1, 3, 3, DATA.patch), 1)
    assert not (tmp_path / "ran").exists()


def test_other_weights_and_another_digest_are_refused(bundle: Path) -> None:
    digest = read_bundle(str(bundle)).digest
    assert build_network(NetworkRequest(_spec(bundle, bundle_digest=digest), 1, 3, 3, DATA.patch), 1)
    torch.save({"something.else": torch.zeros(3)}, bundle / "models" / "model.pt")
    with pytest.raises(SpecError, match="these are another network's weights"):
        build_network(NetworkRequest(_spec(bundle), 1, 3, 3, DATA.patch), 1)
    with pytest.raises(SpecError, match=r"its digest is .*, the job expects"):
        build_network(NetworkRequest(_spec(bundle, bundle_digest=digest), 1, 3, 3, DATA.patch), 1)
    (bundle / "models" / "model.pt").write_bytes(b"no weights")
    with pytest.raises(SpecError, match="no weights that can be read as tensors alone"):
        build_network(NetworkRequest(_spec(bundle), 1, 3, 3, DATA.patch), 1)


def test_a_folder_that_is_no_bundle_is_reported(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no MONAI bundle"):
        read_bundle(str(tmp_path))
    with pytest.raises(ValidationError, match="go together"):
        ModelSpec(network="bundle")
    with pytest.raises(ValidationError, match="go together"):
        ModelSpec(bundle="x")


def test_a_job_takes_its_input_from_the_bundle_and_may_override_it(bundle: Path, tmp_path: Path) -> None:
    text = """
schema: 1
name: further
title: A bundle trained on
data: {dataset: balls, orientation: LPS}
task: {type: segmentation, classes: {1: shell, 2: core}}
model: {network: bundle, bundle: BUNDLE}
"""
    file = tmp_path / "job.yaml"
    file.write_text(text.replace("BUNDLE", str(bundle)))
    spec = parse_job(file)
    assert (spec.data.spacing, spec.data.patch, spec.data.orientation) == ((1.5, 1.5, 1.5), (16, 16, 16), "LPS")
    assert spec.plan().try_network()
    file.write_text(text.replace("BUNDLE", str(tmp_path / "nowhere")))
    with pytest.raises(SpecError, match="no MONAI bundle"):
        parse_job(file)


def test_a_bundle_a_run_and_a_file_become_weights_to_start_from(
    bundle: Path, run: Callable[..., Outcome], tmp_path: Path
) -> None:
    trained = build_network(REQUEST, seed=9).state_dict()
    (tmp_path / "run" / "model").mkdir(parents=True)
    file = tmp_path / "run" / "model" / "model.safetensors"
    save_file({name: value.contiguous() for name, value in trained.items()}, file)
    # The job of one residual unit has other inner layers than REQUEST's; that of two has the same.
    same = write_job(tmp_path / "same", JOB.replace("residual_units: 1", "residual_units: 2"))
    for number, source in enumerate((bundle, tmp_path / "run", file)):
        out = tmp_path / f"{number}.safetensors"
        done = run("job", "convert", same, source, "--out", out)
        assert done.status == 0, done.text
        assert f"{len(trained)} of {len(trained)} tensors converted" in done.text
        assert all(torch.equal(value, trained[name]) for name, value in load_file(out).items())
    classes = write_job(tmp_path / "more", same.read_text().replace("2: core", "2: core, 3: crust"))
    said = json.loads(run("job", "convert", classes, file, "--out", tmp_path / "m.safetensors", "--json").output)
    assert said["converted"] == len(trained) - len(said["initial"])
    assert said["initial"] == said["unused"] != []
    start = load_file(tmp_path / "m.safetensors")
    own = parse_job(classes).plan().initial_weights()
    assert all(torch.equal(start[name], own[name]) for name in said["initial"])
    other = run("job", "convert", "tile_classification", file, "--out", tmp_path / "o.safetensors")
    assert (other.status, "these are another network's weights" in other.text) == (2, True)
    nothing = run("job", "convert", same, tmp_path, "--out", tmp_path / "n.safetensors")
    assert (nothing.status, "found neither model/model.safetensors" in nothing.text) == (2, True)
