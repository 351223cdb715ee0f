"""nnUNetPlans.json is as nnunetv2 2.8.1 wrote it for a made dataset ("prostate" of ``fingerprints``)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from oncofed.errors import SpecError
from oncofed.job.nnunet import read_nnunet_plan
from oncofed.job.spec import read_job

PLANS = Path(__file__).with_name("nnUNetPlans.json")
FULL = "3d_fullres"


def _changed(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    values = json.loads(PLANS.read_text())
    change(values)
    path = folder / "plans.json"
    path.write_text(json.dumps(values))
    return path


def test_a_job_trains_the_network_of_nnunets_plan() -> None:
    plan = read_nnunet_plan(PLANS)
    job = read_job("hippocampus_segmentation").changed(plan.settings)
    # nnU-Net's own order is superior, anterior, right: 20 x 320 x 256.
    assert job.data.patch == (256, 320, 20)
    assert job.data.spacing == pytest.approx((0.660055, 0.660055, 3.28556), rel=1e-4)
    assert job.training.batch_size == 2
    assert job.model.divisors(3) == (64, 64, 4)
    assert job.model.kernel_size is not None
    assert job.model.kernel_size[:3] == ((3, 3, 1), (3, 3, 1), (3, 3, 3))
    assert any("files' axes" in remark for remark in plan.remarks)


@pytest.mark.parametrize(("levels", "coarser"), [(7, 4), (5, 2), (4, 1), (3, 0)])
def test_as_many_coarser_outputs_are_learned_from_as_nnunet_weights(tmp_path: Path, levels: int, coarser: int) -> None:
    def shorter(values: dict[str, Any]) -> None:
        found = values["configurations"][FULL]["architecture"]["arch_kwargs"]
        for name in ("features_per_stage", "kernel_sizes", "strides", "n_conv_per_stage"):
            found[name] = found[name][:levels]
        found["n_conv_per_stage_decoder"] = found["n_conv_per_stage_decoder"][: levels - 1]

    # Its finest output and those of all resolutions but the two coarsest (``nnUNetTrainer._build_loss``).
    assert read_nnunet_plan(_changed(tmp_path, shorter)).settings["model"]["deep_supervision"] == coarser


def test_that_network_learns_from_a_patch() -> None:
    narrow = read_nnunet_plan(PLANS).settings
    narrow["model"]["channels"] = [4] * len(narrow["model"]["channels"])
    narrow["data"]["patch"] = [64, 64, 12]
    network = read_job("hippocampus_segmentation").changed(narrow).plan().build_network()
    output = network(torch.rand(1, 1, 64, 64, 12))
    assert output.shape == (1, 5, 3, 64, 64, 12)  # its coarser outputs are among the five
    output.square().mean().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_a_plan_with_a_residual_encoder_is_followed(tmp_path: Path) -> None:
    blocks = [1, 3, 4, 6, 6, 6, 6]

    def residual(values: dict[str, Any]) -> None:
        found = values["configurations"][FULL]["architecture"]
        found["network_class_name"] = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"
        arguments = found["arch_kwargs"]
        del arguments["n_conv_per_stage"]
        arguments |= {"n_blocks_per_stage": blocks, "n_conv_per_stage_decoder": [1] * 6}

    plan = read_nnunet_plan(_changed(tmp_path, residual))
    plain = read_nnunet_plan(PLANS)
    assert plan.settings["model"] == plain.settings["model"] | {
        "network": "residual_unet",
        "arguments": {"blocks": blocks},
    }
    assert plan.settings["data"] == plain.settings["data"]
    plan.settings["model"]["channels"] = [4] * 7
    plan.settings["data"]["patch"] = [64, 64, 12]
    network = read_job("hippocampus_segmentation").changed(plan.settings).plan().build_network()
    output = network(torch.rand(1, 1, 64, 64, 12))
    assert output.shape == (1, 5, 3, 64, 64, 12)
    output.square().mean().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_a_plan_of_an_older_release_is_read_too(tmp_path: Path) -> None:
    def older(values: dict[str, Any]) -> None:
        found = values["configurations"][FULL]
        arguments = found.pop("architecture")["arch_kwargs"]
        found |= {
            "UNet_class_name": "PlainConvUNet",
            "UNet_base_num_features": 32,
            "unet_max_num_features": 320,
            "n_conv_per_stage_encoder": arguments["n_conv_per_stage"],
            "n_conv_per_stage_decoder": arguments["n_conv_per_stage_decoder"],
            "pool_op_kernel_sizes": arguments["strides"],
            "conv_kernel_sizes": arguments["kernel_sizes"],
        }

    assert read_nnunet_plan(_changed(tmp_path, older)).settings == read_nnunet_plan(PLANS).settings


def test_hounsfield_units_bring_their_window(tmp_path: Path) -> None:
    def ct(values: dict[str, Any]) -> None:
        values["configurations"][FULL]["normalization_schemes"] = ["CTNormalization"]

    plan = read_nnunet_plan(_changed(tmp_path, ct))
    assert plan.settings["data"]["modality"] == "ct"
    assert plan.settings["data"]["window"] == [-950.0, 270.5]
    assert any("window becomes 0 to 1" in remark for remark in plan.remarks)


def _architecture(values: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = values["configurations"][FULL]["architecture"]
    return found


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda v: v["configurations"].pop(FULL), "no configuration '3d_fullres'"),
        (lambda v: v.pop("configurations"), "no plan of nnU-Net"),
        (lambda v: v["configurations"][FULL].update(previous_stage="3d_lowres"), "is a cascade"),
        (
            lambda v: _architecture(v).update(network_class_name="a.Primus"),
            "Primus, which no job can build; expected PlainConvUNet or ResidualEncoderUNet",
        ),
        (
            lambda v: _architecture(v).update(network_class_name="a.ResidualEncoderUNet"),
            "n_blocks_per_stage: found None for 7 resolutions of ResidualEncoderUNet",
        ),
        (lambda v: _architecture(v)["arch_kwargs"].update(n_blocks_per_stage=2), "and none of PlainConvUNet"),
        (lambda v: _architecture(v)["arch_kwargs"].update(n_conv_per_stage=[2, 3] * 3), "found .2, 3., expected two"),
        (lambda v: _architecture(v)["arch_kwargs"].update(norm_op="torch.nn.BatchNorm3d"), "expected two convolutions"),
        (lambda v: _architecture(v)["arch_kwargs"].pop("strides"), "strides: Field required"),
        (
            lambda v: v["configurations"][FULL].update(normalization_schemes=["NoNormalization"]),
            "found NoNormalization, expected one of ZScore",
        ),
        (lambda v: v["configurations"][FULL].update(spacing=[1.0, 1.0]), "are of 2, 3 axes"),
        (lambda v: v["configurations"][FULL].update(patch_size=[20]), "are of 1, 3 axes"),
        (lambda v: v.update(transpose_backward=[0, 0, 2]), "expected an order of 0, 1, 2"),
        (lambda v: v["configurations"][FULL].pop("spacing"), "cannot be read .spacing: Field required"),
    ],
)
def test_what_a_job_cannot_follow_is_named(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], told: str
) -> None:
    with pytest.raises(SpecError, match=told):
        read_nnunet_plan(_changed(tmp_path, change))


def test_a_file_that_is_no_plan_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[1]")
    with pytest.raises(SpecError, match="no plan of nnU-Net"):
        read_nnunet_plan(tmp_path / "a.json")
    with pytest.raises(SpecError, match="no such file"):
        read_nnunet_plan(tmp_path / "b.json")
