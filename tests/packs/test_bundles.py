"""Tests of MONAI bundles that bring code, as packs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from oncofed.algorithms.plan import FederationPlan
from oncofed.client.local_training import SiteContext
from oncofed.client.sandboxed import SandboxedTraining
from oncofed.errors import SpecError, TrainingError
from oncofed.job.flare import export_job
from oncofed.job.spec import JobSpec, parse_job
from oncofed.models.known import networks_of_pack
from oncofed.packs.bundles import is_bundle, make_bundle_pack
from oncofed.packs.findings import findings_of
from oncofed.packs.pack import Pack
from oncofed.sandbox import what_is_missing
from synthetic import JOB, Voice, write_job

_NET = """
from torch import nn

from scripts.blocks import Block


class Net(nn.Sequential):
    def __init__(self, in_channels, out_channels, width):
        super().__init__(nn.Conv3d(in_channels, width, 3, padding=1), Block(), nn.Conv3d(width, out_channels, 1))
"""
_CONFIG = {
    "width": "$4 * 2",
    "network_def": {"_target_": "scripts.net.Net", "in_channels": 1, "out_channels": 9, "width": "@width"},
    "preprocessing": {"_target_": "Compose", "transforms": [{"_target_": "Spacingd", "pixdim": [1.5, 1.5, 1.5]}]},
    "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [16, 16, 16]},
}
_METADATA = {
    "network_data_format": {
        "inputs": {"image": {"spatial_shape": ["8*n", "8*n", "8*n"]}},
        "outputs": {"pred": {"type": "image", "format": "segmentation"}},
    }
}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "own_net"
    files = {
        "configs/inference.json": json.dumps(_CONFIG, indent=1),
        "configs/metadata.json": json.dumps(_METADATA),
        "configs/logging.conf": "[loggers]",
        "scripts/net.py": _NET,
        "scripts/blocks.py": f"# {tmp_path}\nfrom torch import nn\n\n\nclass Block(nn.ReLU):\n    pass\n",
        "LICENSE": "as you like",
    }
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    (folder / "models").mkdir()
    weights = {"0.weight": torch.ones(8, 1, 3, 3, 3), "0.bias": torch.ones(8), "2.weight": torch.ones(9, 8, 1, 1, 1)}
    torch.save(weights, folder / "models" / "model.pt")
    return folder


@pytest.fixture
def pack(bundle: Path) -> Pack:
    return make_bundle_pack(bundle, None)


def _job(pack: Pack, folder: Path) -> JobSpec:
    file = write_job(folder, JOB)
    values = yaml.safe_load(file.read_text())
    values["model"] = {"network": "own_net", "code": pack.digest}
    file.write_text(yaml.safe_dump(values))
    (folder / "own_net.pack.zip").write_bytes(pack.content)
    return parse_job(file, with_code=True)


def test_its_configuration_and_scripts_are_packed_and_code_in_them_is_found(bundle: Path, pack: Pack) -> None:
    assert is_bundle(bundle)
    assert sorted(pack.files) == [
        "__init__.py",
        "configs/inference.json",
        "configs/metadata.json",
        "scripts/__init__.py",
        "scripts/blocks.py",
        "scripts/net.py",
    ]
    found = {(finding.file, finding.what, finding.text) for finding in findings_of(pack)}
    assert ("configs/inference.json", "eval", '"width": "$4 * 2",') in found
    assert ("configs/inference.json", "classes", '"_target_": "scripts.net.Net",') in found
    assert not is_bundle(bundle / "scripts")
    (bundle / "configs" / "inference.json").write_text("{}")
    with pytest.raises(SpecError, match="defines no network"):
        make_bundle_pack(bundle, None)


def test_the_command_packs_it_and_a_job_starts_from_its_weights(run, bundle: Path, tmp_path: Path) -> None:
    job = tmp_path / "job"
    made = run("job", "pack", bundle, "--out", job)
    assert made.status == 0, made.text
    assert "spacing: [1.5, 1.5, 1.5]" in made.text
    assert "patch: [16, 16, 16]" in made.text
    (weights,) = job.glob("*.safetensors")
    assert f"--model {weights}" in made.text
    spec = _job(make_bundle_pack(bundle, None), job)
    network = networks_of_pack(str(spec.model.code))[0]
    assert (network.name, network.kind, network.divisor, network.dimensions) == ("own_net", "dense", 8, (3,))
    folder = export_job(spec, tmp_path / "exported", model=weights)
    initial = load_file(folder / "app" / "config" / "initial_model.safetensors")
    assert bool((initial["0.weight"] == 1).all())
    assert initial["2.weight"].shape[0] == len(spec.task.classes) + 1
    with pytest.raises(SpecError, match="to score it all must"):
        export_job(spec, tmp_path / "again", model=weights, evaluate_only=True)


def test_several_bundles_in_one_process_have_their_own_scripts(bundle: Path, pack: Pack, tmp_path: Path) -> None:
    first = _job(pack, tmp_path / "one").plan()
    assert len(first.build_network()) == 3
    (bundle / "scripts" / "net.py").write_text(_NET.replace("Block(), ", "Block(), Block(), "))
    other = _job(make_bundle_pack(bundle, None), tmp_path / "two").plan()
    assert len(other.build_network()) == 4
    assert len(first.build_network()) == 3


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.skipif(what_is_missing() is not None, reason=f"no process can be confined: {what_is_missing()}")
@pytest.mark.attack(
    "a bundle from others whose configuration runs a program",
    by="the confined process in which a site's approved packs run",
    logged="the site's log",
)
def test_a_site_runs_it_confined(bundle: Path, two_sites: dict[str, Path], tmp_path: Path) -> None:
    left = tmp_path / "left"
    config = {
        **_CONFIG,
        "width": f"$__import__('os').environ.get('HOME', '').endswith('scratch') and open('{left}', 'w') or 8",
    }
    harmless = make_bundle_pack(bundle, None)
    plan = _job(harmless, tmp_path / "job").plan().declared()
    context = SiteContext(site="east", data=two_sites["east"], state=tmp_path / "state")
    training = SandboxedTraining(
        plan=plan, federation=FederationPlan(), context=context, reporter=Voice(), pack=harmless
    )
    assert training.prepare()["train"] == 5
    training.close()
    (bundle / "configs" / "inference.json").write_text(json.dumps(config))
    pack = make_bundle_pack(bundle, None)
    evil = plan.model_copy(update={"model": plan.model.model_copy(update={"code": pack.digest})})
    quiet = Voice()
    training = SandboxedTraining(plan=evil, federation=FederationPlan(), context=context, reporter=quiet, pack=pack)
    with pytest.raises(TrainingError, match="its process of the pack own_net ended in a SpecError"):
        training.prepare()
    training.close()
    assert "Permission denied" in quiet.notes[0]
    assert not left.exists()
