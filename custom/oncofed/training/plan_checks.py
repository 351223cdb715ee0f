"""Checks of a plan's sections against each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from oncofed.data.label_names import name_key
from oncofed.errors import SpecError
from oncofed.packs.extensions import find_loss, find_transforms
from oncofed.plugins import KINDS
from oncofed.settings import SettingError
from oncofed.training.private_plan import check_private

if TYPE_CHECKING:
    from oncofed.training.plan import Plan


def _batch_can_be_shared(plan: Plan) -> None:
    gpus = plan.resources.gpus
    if plan.training.batch_size % gpus:
        raise SettingError(
            f"found {plan.training.batch_size}, expected a multiple of the {gpus} GPUs (resources.gpus)",
            "training.batch_size",
            "resources.gpus",
        )


def _loss_has_enough_at_once(plan: Plan) -> None:
    share = plan.training.batch_size // plan.resources.gpus
    at_once, least = min(plan.training.micro_batch or share, share), plan.task.least_batch
    if at_once < least:
        raise SettingError(
            f"the loss compares at least {least} samples, found {at_once} at once: make batch_size (of each GPU) "
            "larger, and micro_batch too, which is how many of a batch are compared",
            "training.batch_size" if share < least else "training.micro_batch",
            "training",
        )
    if 0 < share % at_once < least:
        raise SettingError(
            f"the loss compares at least {least} samples, found {share % at_once} in the last part of a batch of "
            f"{share} in parts of {at_once}: choose a micro_batch that leaves none or {least} of batch_size (of "
            "each GPU)",
            "training.micro_batch",
            "training.batch_size",
        )


def _network_fits(plan: Plan) -> None:
    try:
        kind, given = plan.build_task().network_kind, plan.model.kind
    except SpecError as error:
        raise SettingError(str(error), "task") from None
    if given != kind:
        raise SettingError(
            f"the task {plan.task.type} needs a network that gives {KINDS[kind]}; {plan.model.network} gives "
            f"{KINDS[given]}. See: oncofed job networks",
            "model.network",
            "task.type",
        )
    dimensions = len(plan.data.patch)
    stated = {len(axes) for axes in (*(plan.model.strides or ()), *(plan.model.kernel_size or ()))}
    if stated - {dimensions}:
        raise SettingError(
            f"strides and kernel_size are for images of {min(stated - {dimensions})} axes, the job's have {dimensions}",
            "model.strides" if plan.model.strides else "model.kernel_size",
            "data.patch",
        )
    divisors = plan.model.divisors(dimensions)
    if any(side % divisor for side, divisor in zip(plan.data.patch, divisors, strict=True)):
        resolutions = f" of {len(plan.model.feature_maps)} resolutions" if plan.model.feature_maps else ""
        raise SettingError(
            f"{list(plan.data.patch)} does not fit a {plan.model.network}{resolutions}: each side must be a "
            f"multiple of {divisors[0] if len(set(divisors)) == 1 else ', '.join(map(str, divisors))}",
            "data.patch",
            "model.network",
        )


def _covariates_can_be_used(plan: Plan) -> None:
    columns = plan.data.covariates
    if columns and not plan.task.named_targets:
        raise SettingError(
            f"covariates are for jobs with targets, found the task {plan.task.type}: declare what it learns under "
            "targets, such as {name: outcome, kind: class, classes: [absent, present]}",
            "data.covariates",
            "task.type",
        )
    if plan.model.kind == "table" and not columns:
        raise SettingError(
            "found table, which learns from columns of a table: name them in data.covariates", "model.network", "data"
        )
    targets = {name_key(target.name) for target in plan.task.named_targets}
    for number, column in enumerate(columns):
        if name_key(column.name) in targets:
            raise SettingError(
                f"the covariate {column.name} is a target of the job: leave it out of data.covariates",
                f"data.covariates.{number}",
                "data.covariates",
            )


def _stain_changes_images(plan: Plan) -> None:
    if plan.data.stain.augment != "none" and plan.model.kind in ("bag", "table"):
        raise SettingError(
            f"changes images at random at each step, and features of a slide are computed once: found "
            f"{plan.data.stain.augment}, expected none. Normalise slides instead: data.stain.normalise",
            "data.stain.augment",
            "task.type",
        )


def _values_can_be_harmonized(plan: Plan) -> None:
    spec, kind = plan.data.harmonization, plan.model.kind
    if spec.intensity != "none" and kind in ("bag", "table"):
        raise SettingError(
            f"is of images, found a network of {KINDS[kind]}: leave it out", "data.harmonization.intensity", "model"
        )
    if spec.features != "none" and kind != "bag":
        raise SettingError(
            f"is of slides' tiles, found a network of {KINDS[kind]}: leave it out",
            "data.harmonization.features",
            "model",
        )
    if spec.features != "none" and plan.data.stain.columns:
        raise SettingError(
            f"found combat beside data.stain.normalise: {plan.data.stain.normalise}, on which features depend: sites "
            "agree on both at once. Choose one of them",
            "data.harmonization.features",
            "data.stain.normalise",
        )
    if spec.groups and plan.resources.gpus > 1:
        raise SettingError(
            f"found {plan.resources.gpus}, expected 1 beside data.harmonization", "resources.gpus", "data.harmonization"
        )


def _teacher_is_alone(plan: Plan) -> None:
    if plan.resources.gpus > 1 and plan.build_task().learns_from_teacher:
        raise SettingError(
            f"found {plan.resources.gpus}, expected 1: task.distillation is learned on one GPU. Or leave distillation "
            "out",
            "resources.gpus",
            "task.distillation",
        )


def _pack_has_what_is_named(plan: Plan) -> None:
    transforms, loss = plan.training.transforms, plan.training.loss
    if transforms:
        _require_brought(plan, lambda pack: find_transforms(pack, transforms), transforms[0], "training.transforms")
    if loss and plan.model.adds_loss:
        raise SettingError(
            f"found a loss of the pack beside {plan.model.network}, which adds one of its own to the task's. "
            "Choose another network, or leave training.loss out",
            "training.loss",
            "model.network",
        )
    if loss:
        _require_brought(plan, lambda pack: find_loss(pack, loss), loss, "training.loss")


def _require_brought(plan: Plan, find: Callable[[str], object], name: str, place: str) -> None:
    """Refuse a name that the pack does not bring.

    A pack that is declared is not loaded here.
    """
    if not plan.model.code:
        raise SettingError(f"{name} comes with a pack: name it in model.code (oncofed job pack)", place)
    if not plan.model.declared:
        try:
            find(plan.model.code)
        except SpecError as error:
            raise SettingError(str(error), place) from None


# In the order in which mistakes are told; each raises SettingError.
CHECKS: tuple[Callable[[Plan], None], ...] = (
    _batch_can_be_shared,
    _loss_has_enough_at_once,
    _network_fits,
    _covariates_can_be_used,
    _stain_changes_images,
    _values_can_be_harmonized,
    _teacher_is_alone,
    check_private,
    _pack_has_what_is_named,
)
