"""Tests of the bundle of a model with a pack.

It names the pack, and does not answer.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch
from monai.bundle import load
from safetensors.torch import save_file

from bundle_runs import command_of_monai
from oncofed.errors import SpecError
from oncofed.job.spec import JobSpec
from oncofed.packs.load import load_pack
from oncofed.packs.pack import make_pack
from oncofed.prediction.bundles import read_own_bundle
from oncofed.prediction.export.export import export
from oncofed.prediction.model import load_model
from oncofed.training import Plan
from synthetic import make_package


@pytest.fixture
def plan(spec: JobSpec, tmp_path: Path) -> Plan:
    pack = make_pack(make_package(tmp_path / "wide_net"), None)
    load_pack(pack)
    return Plan.model_validate(spec.plan().model_dump() | {"model": {"code": pack.digest, "network": "wide_net"}})


def test_monai_ends_with_one_line_instead_of_an_answer(plan: Plan, tmp_path: Path) -> None:
    weights = plan.initial_weights()
    bundle = plan.write_bundle(tmp_path, "Balls, $1 @each", weights)
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    assert metadata["required_code"]["pack"] == plan.model.code
    stored = torch.load(bundle / "models" / "model.pt", weights_only=True)
    assert all(torch.equal(stored[name], value) for name, value in weights.items())
    (bundle / "images").mkdir()
    command = command_of_monai("run", "--config_file", "configs/inference.json")
    done = subprocess.run(command, cwd=bundle, capture_output=True, text=True, timeout=300, check=False)
    said = f"This model answers only with the code of the pack {plan.model.code}, which no bundle holds"
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(said)
    assert "Traceback" not in done.stderr
    assert not (bundle / "eval").exists()
    assert said in (bundle / "docs" / "README.md").read_text()


def test_no_other_reader_takes_it_for_a_network(plan: Plan, tmp_path: Path) -> None:
    bundle = plan.write_bundle(tmp_path, "Balls", plan.initial_weights())
    with pytest.raises(SpecError, match=r"needs the code of the pack .* Name the folder of the run instead"):
        read_own_bundle(bundle)
    with pytest.raises(RuntimeError) as caught:
        load("bundle", bundle_dir=str(tmp_path))
    causes: list[BaseException | None] = [caught.value]
    while causes[-1] is not None:
        causes.append(causes[-1].__cause__)
    assert any("answers only with the code of the pack" in str(cause) for cause in causes)


def test_the_export_of_a_run_says_what_the_bundle_lacks(spec: JobSpec, tmp_path: Path) -> None:
    pack = make_pack(make_package(tmp_path / "wide_net"), None)
    load_pack(pack)
    run = tmp_path / "run"
    (run / "model").mkdir(parents=True)
    (run / "wide_net.pack.zip").write_bytes(pack.content)
    values = spec.model_dump(by_alias=True) | {"model": {"code": pack.digest, "network": "wide_net"}}
    trained = JobSpec.model_validate(values)
    (run / "job.yaml").write_text(trained.to_yaml())
    save_file(trained.plan().initial_weights(), run / "model" / "model.safetensors")
    model = load_model(run)
    done = export(model, "bundle", tmp_path / "out")
    assert f"answers nothing: it needs the pack {pack.digest[:12]}" in done.agreement
    assert (done.folder / "models" / "model.pt").is_file()
    with pytest.raises(SpecError, match="which ONNX cannot vouch for"):
        export(model, "onnx", tmp_path / "out")


def test_a_process_without_the_pack_writes_the_same(plan: Plan, tmp_path: Path) -> None:
    weights, declared = plan.initial_weights(), plan.declared()
    values = declared.model_dump()
    elsewhere = Plan.model_validate({**values, "model": {**values["model"], "code": "d" * 64}})
    bundle = elsewhere.write_bundle(tmp_path, "Balls", weights)
    assert json.loads((bundle / "configs" / "metadata.json").read_text())["required_code"]["pack"] == "d" * 64
