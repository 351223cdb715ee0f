"""nnunet_checkpoint.pth is of nnU-Net's own PlainConvUNet, in the form of nnunetv2 2.8.1's trainer.

nnunet_residual_checkpoint.pth is of its ResidualEncoderUNet. Their weights are drawn from a seed; VALUES are what they
put out for ``_image``, with dynamic-network-architectures 0.4.4.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from commands import Outcome
from oncofed.errors import SpecError
from oncofed.job.nnunet import axes_of, read_nnunet_plan
from oncofed.job.spec import JobSpec, read_job
from oncofed.models.nnunet import converted_weights, outputs_of, read_checkpoint
from oncofed.models.weights import load_weights, weights_of

Run = Callable[..., Outcome]
CHECKPOINT = Path(__file__).with_name("nnunet_checkpoint.pth")
RESIDUAL = Path(__file__).with_name("nnunet_residual_checkpoint.pth")
CLASSES = {1: "anterior", 2: "posterior"}
# Checkpoint -> mean and spread of the values, and (superior, anterior, right) -> logit of each class.
VALUES = {
    CHECKPOINT: (
        (-0.1306218, 0.2650639),
        {
            (3, 5, 7): (0.044382475, -0.377984792, -0.197360292),
            (7, 15, 0): (0.089973778, -0.475410581, -0.057367116),
        },
    ),
    RESIDUAL: (
        (0.0724321, 0.2919285),
        {
            (3, 5, 7): (-0.125778005, -0.138966054, 0.483810306),
            (7, 15, 0): (-0.091587126, -0.065345503, 0.646851003),
        },
    ),
}


def _image() -> Tensor:
    """Return an image in nnU-Net's order of axes, (1, 1, 8, 16, 32)."""
    return (torch.arange(8 * 16 * 32) % 17).reshape(1, 1, 8, 16, 32) / 17


def _job(folder: Path, path: Path = CHECKPOINT) -> JobSpec:
    (folder / "plans.json").write_text(json.dumps(read_checkpoint(path).plans))
    return read_job("hippocampus_segmentation").changed(read_nnunet_plan(folder / "plans.json").settings)


@pytest.mark.parametrize("path", [CHECKPOINT, RESIDUAL], ids=["plain", "residual"])
def test_a_converted_network_answers_as_nnunets(path: Path, tmp_path: Path) -> None:
    checkpoint = read_checkpoint(path)
    assert (checkpoint.levels, checkpoint.configuration) == (4, "3d_fullres")
    network = _job(tmp_path, path).plan().build_network()
    weights, stayed = converted_weights(
        checkpoint, axes_of((0, 1, 2), 3, CHECKPOINT), outputs_of(checkpoint, CLASSES), weights_of(network)
    )
    assert stayed == []
    load_weights(network, weights)
    network.eval()
    with torch.no_grad():
        output = network(_image().permute(0, 1, 4, 3, 2)).permute(0, 1, 4, 3, 2)
    (mean, spread), values_at = VALUES[path]
    assert float(output.mean()) == pytest.approx(mean, abs=1e-5)
    assert float(output.std()) == pytest.approx(spread, abs=1e-5)
    for (z, y, x), values in values_at.items():
        assert output[0, :, z, y, x].tolist() == pytest.approx(values, abs=1e-5)


def test_outputs_for_other_classes_start_anew(tmp_path: Path) -> None:
    job = _job(tmp_path)
    spec = job.changed({"task": {"classes": {1: "anterior"}, "codes": {}}})
    own = weights_of(spec.plan().build_network())
    checkpoint = read_checkpoint(CHECKPOINT)
    assert outputs_of(checkpoint, {1: "tumour"}) is None
    weights, stayed = converted_weights(checkpoint, (2, 1, 0), None, own)
    assert stayed
    assert all(name.startswith(("output_block.", "deep_supervision_heads.")) for name in stayed)
    assert set(weights) == set(own)


def test_outputs_go_by_the_names_of_classes(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(CHECKPOINT)
    swapped = outputs_of(checkpoint, {1: "Posterior", 2: "anterior"})
    assert swapped == [0, 2, 1]
    own = weights_of(_job(tmp_path).plan().build_network())
    usual, _ = converted_weights(checkpoint, (2, 1, 0), outputs_of(checkpoint, CLASSES), own)
    other, _ = converted_weights(checkpoint, (2, 1, 0), swapped, own)
    name = "output_block.conv.conv.bias"
    assert other[name].tolist() == usual[name][[0, 2, 1]].tolist()


def test_a_checkpoint_of_another_plan_is_refused(tmp_path: Path) -> None:
    wider = _job(tmp_path).changed({"model": {"channels": [8, 8, 8, 8]}})
    residual = _job(tmp_path, RESIDUAL).plan().build_network()
    with pytest.raises(SpecError, match="another network than the job's"):
        converted_weights(read_checkpoint(CHECKPOINT), (2, 1, 0), (0, 1, 2), weights_of(residual))
    with pytest.raises(SpecError, match=r"another network than the job's: .* is \[8, 1, .*--from-nnunet"):
        converted_weights(read_checkpoint(CHECKPOINT), (2, 1, 0), (0, 1, 2), weights_of(wider.plan().build_network()))


class _Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("exit 1",)


@pytest.mark.attack(
    "code in a checkpoint of nnU-Net",
    by="unpickling of tensors and plain values alone",
    logged="the command's own message",
)
def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    torch.save({"network_weights": {}, "init_args": _Code()}, tmp_path / "a.pth")
    with pytest.raises(SpecError, match=r"it holds .*system.* Code in such a file would run"):
        read_checkpoint(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("contents", "told"),
    [
        ({"state_dict": {}}, "no network_weights in it"),
        ({"network_weights": {"encoder.stem.convs.0.conv.weight": torch.zeros(1)}}, "is no PlainConvUNet"),
        (None, "not in PyTorch's format, or cut short"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, contents: dict[str, Any] | None, told: str) -> None:
    path = tmp_path / "a.pth"
    if contents is None:
        path.write_bytes(CHECKPOINT.read_bytes()[:5000])
    else:
        torch.save(contents, path)
    with pytest.raises(SpecError, match=told):
        read_checkpoint(path)


def test_a_plan_instead_of_a_checkpoint_is_no_code(tmp_path: Path) -> None:
    (tmp_path / "plans.json").write_text(json.dumps(read_checkpoint(CHECKPOINT).plans))
    with pytest.raises(SpecError, match="no checkpoint of nnU-Net"):
        read_checkpoint(tmp_path / "plans.json")


def test_a_plan_for_other_channels_is_refused(run: Run, tmp_path: Path) -> None:
    plans = Path(__file__).parents[1] / "job" / "nnUNetPlans.json"
    done = run("job", "plan", "hippocampus_segmentation", "--from-nnunet", plans, "--out", tmp_path / "a.yaml")
    assert done.status == 2
    assert "for images of 2 channels, the job's have 1" in done.text


def test_the_command_writes_weights_from_which_a_job_starts(run: Run, tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(yaml.safe_dump(yaml.safe_load(_job(tmp_path).to_yaml())))
    out = tmp_path / "start.safetensors"
    done = run("job", "convert", job, CHECKPOINT, "--out", out)
    assert done.status == 0
    assert "Start from it: oncofed job run" in done.text
    assert "trained with" not in done.text
    load_weights(read_job(job).plan().build_network(), load_file(out))
    coarse = tmp_path / "coarse.yaml"
    coarse.write_text(read_job(job).changed({"data": {"spacing": [5, 5, 5]}}).to_yaml())
    noted = run("job", "convert", coarse, CHECKPOINT, "--out", tmp_path / "c.safetensors")
    assert "trained with spacing [1.0, 1.0, 3.0], the job has [5.0, 5.0, 5.0]" in noted.text
    again = run("job", "convert", job, CHECKPOINT, "--out", out)
    assert again.status == 2
    assert "exists. Name another file" in again.text
    other = run("job", "convert", "hippocampus_segmentation", CHECKPOINT, "--out", tmp_path / "b.safetensors")
    assert other.status == 2
    assert "expected nnU-Net's. Write" in other.text.replace("\n", " ")
