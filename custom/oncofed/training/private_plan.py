"""What a plan must be for a guarantee to each patient.

Whatever lets one patient change what another contributes to a step would void it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from oncofed.errors import SpecError
from oncofed.settings import SettingError

if TYPE_CHECKING:
    from oncofed.training.plan import Plan

_SECTION = "privacy.differential_privacy"


def check_private(plan: Plan) -> None:
    """Refuse a plan that differential privacy cannot hold for; one without it passes.

    Raises:
        SettingError: names the setting to change.
    """
    private = plan.privacy.differential_privacy
    if private is None:
        return
    training = plan.training
    if plan.model.norm == "batch":
        _refuse("batch", "normalises each patient by the others of a step. Expected instance or group", "model.norm")
    if training.precision == "float16":
        _refuse(
            "float16",
            "leaves out steps whose gradients overflow, which tells of patients. Expected auto, bfloat16 or float32",
            "training.precision",
        )
    if plan.model.code:
        _refuse(
            f"the pack {plan.model.code[:12]}…",
            "runs in the process that makes the noise, and could leave it out. Expected a network of oncofed's or of "
            "an installed package",
            "model.code",
        )
    if training.loss:
        _refuse(training.loss, "may join patients, as a pack can. Expected the task's own loss", "training.loss")
    if training.transforms:
        _refuse(list(training.transforms), "may join patients, as a pack can. Expected none", "training.transforms")
    if training.micro_batch and training.micro_batch > private.patches:
        _refuse(
            training.micro_batch,
            f"would join patients: samples of one alone are computed at once. Expected at most {private.patches} "
            "(patches), or null",
            "training.micro_batch",
        )
    if plan.task.least_batch > 1:
        _refuse(plan.task.type, "has a loss that compares patients. Expected targets that do not", "task.type")
    if plan.privacy.shares_noise:
        _check_one_step(plan)
    if plan.data.covariates:
        _refuse(
            [column.name for column in plan.data.covariates],
            "has sums over training patients leave without noise. Expected none",
            "data.covariates",
        )
    if plan.data.harmonization.is_used:
        _refuse(
            ", ".join(plan.data.harmonization.groups or ["intensity"]),
            "has sums over training patients leave without noise. Expected none",
            "data.harmonization",
        )
    if plan.data.stain.columns:
        _refuse(
            plan.data.stain.normalise,
            "has means over training slides leave without noise. Expected none",
            "data.stain.normalise",
        )


def _check_one_step(plan: Plan) -> None:
    """Refuse whatever makes an update more than one step's sum of gradients.

    With noise that sites make together, one site's alone is less than promised: it may reach nothing but the sum.
    """
    training = plan.training
    for place, found, expected, reason in (
        ("steps_per_round", training.steps_per_round, 1, "joins sites after each step. Expected 1"),
        ("optimizer", training.optimizer, "sgd", "needs updates that add up. Expected sgd"),
        (
            "momentum",
            training.momentum,
            0,
            "needs updates of one step alone. Expected 0; strategy: fedavgm has momentum at the server",
        ),
    ):
        if found != expected:
            problem = f"found {found} beside {_SECTION}.noise: shared, which {reason}"
            raise SettingError(problem, f"training.{place}", _SECTION)


def require_no_mixing(network: nn.Module) -> None:
    """Refuse layers that compute one patient's output from others.

    Raises:
        SpecError: names the first of them.
    """
    for name, module in network.named_modules():
        mixes = isinstance(module, nn.modules.batchnorm._BatchNorm)
        if mixes or getattr(module, "running_mean", None) is not None:
            raise SpecError(
                f"{_SECTION}: found the layer {name} ({type(module).__name__}), which keeps means over patients: "
                "expected a network without batch normalisation. Set model.norm: instance or group, or take another "
                "network"
            )


def require_same_buffers(network: nn.Module, before: Mapping[str, Tensor]) -> None:
    """Refuse buffers that a step of training changed: they have no noise.

    Args:
        network: after the step.
        before: a copy of its buffers, by name.

    Raises:
        SpecError: names the first of them.
    """
    for name, value in network.named_buffers():
        if name not in before or not torch.equal(value, before[name]):
            raise SpecError(
                f"{_SECTION}: found the buffer {name}, which training changes without noise: expected a network that "
                "keeps nothing of patients but its weights. Take another network"
            )


def _refuse(found: object, reason: str, place: str) -> None:
    raise SettingError(f"found {found} beside {_SECTION}: it {reason}", place, _SECTION)
