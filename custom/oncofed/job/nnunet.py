"""Read a plan of nnU-Net (``nnUNetPlans.json``), so that a job trains the same network on the same patches.

What a plan asks for and a job cannot do is refused by name; what a job does in another way is listed as a remark.
Formats: nnU-Net 2.0 to 2.8 (Isensee et al., Nature Methods 2021).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from oncofed.data.planning import Reason, model_settings
from oncofed.data.topology import Resolutions, Topology
from oncofed.errors import SpecError

_PLAIN, _RESIDUAL = "PlainConvUNet", "ResidualEncoderUNet"
# Of each resolution, on both ways; beside residual blocks on the way up.
_CONVOLUTIONS, _CONVOLUTIONS_UP = 2, 1
_MODALITIES = {"ZScoreNormalization": "mri", "CTNormalization": "ct", "RGBTo01Normalization": "microscopy"}


class _Part(BaseModel):
    # Later releases add keys.
    model_config = ConfigDict(extra="ignore", frozen=True)


class _Arguments(_Part):
    features_per_stage: list[int]
    kernel_sizes: list[list[int]]
    strides: list[list[int]]
    n_conv_per_stage: list[int] | int | None = None
    n_conv_per_stage_decoder: list[int] | int = _CONVOLUTIONS
    n_blocks_per_stage: list[int] | int | None = None
    norm_op: str | None = None
    nonlin: str | None = "LeakyReLU"
    dropout_op: str | None = None

    @property
    def convolutions(self) -> set[int]:
        """Numbers of convolutions of a resolution, of both halves."""
        both = (self.n_conv_per_stage, self.n_conv_per_stage_decoder)
        return {n for part in both for n in (part if isinstance(part, list) else [part]) if n is not None}

    @property
    def blocks(self) -> list[int] | None:
        """Residual blocks of each resolution; None: the encoder has none."""
        given = self.n_blocks_per_stage
        return [given] * len(self.features_per_stage) if isinstance(given, int) else given


class _Architecture(_Part):
    network_class_name: str
    arch_kwargs: dict[str, Any]


class _Configuration(_Part):
    spacing: list[float]
    patch_size: list[int]
    batch_size: int
    normalization_schemes: list[str]
    use_mask_for_norm: list[bool] = []
    architecture: _Architecture
    previous_stage: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _of_older_releases(cls, values: Any) -> Any:
        """Before 2.5 the network's settings stood among the others."""
        if not isinstance(values, dict) or "architecture" in values or "UNet_class_name" not in values:
            return values
        first, most = values["UNet_base_num_features"], values["unet_max_num_features"]
        levels = len(values["n_conv_per_stage_encoder"])
        arguments = {
            "features_per_stage": [min(first * 2**level, most) for level in range(levels)],
            "kernel_sizes": values["conv_kernel_sizes"],
            "strides": values["pool_op_kernel_sizes"],
            "n_conv_per_stage": values["n_conv_per_stage_encoder"],
            "n_conv_per_stage_decoder": values["n_conv_per_stage_decoder"],
            "norm_op": "InstanceNorm",
        }
        return {**values, "architecture": {"network_class_name": values["UNet_class_name"], "arch_kwargs": arguments}}


class _Intensities(_Part):
    percentile_00_5: float
    percentile_99_5: float


class _Plans(_Part):
    configurations: dict[str, dict[str, Any]]
    transpose_backward: list[int]
    foreground_intensity_properties_per_channel: dict[str, _Intensities] = Field(default_factory=dict)


@dataclass(frozen=True)
class NnunetPlan:
    """A job's settings, as a plan of nnU-Net asks for them.

    Attributes:
        settings: section of ``job.yaml`` -> setting -> value.
        dimensions: axes of the images.
        reasons: of each setting.
        remarks: what a job does in another way than nnU-Net.
        channels: of an image.
    """

    settings: dict[str, dict[str, Any]]
    dimensions: int
    reasons: list[Reason]
    remarks: list[str]
    channels: int


def read_nnunet_plan(path: Path, configuration: str = "3d_fullres") -> NnunetPlan:
    """Return the settings of one of a plan's configurations.

    Args:
        path: of ``nnUNetPlans.json``.
        configuration: "3d_fullres", "3d_lowres" or "2d", or one of the plan's own.

    Raises:
        SpecError: it is no such file, has no such configuration, or asks for what a job cannot do.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SpecError(
            f"{path}: no such file. nnU-Net writes it as nnUNet_preprocessed/DatasetNNN_NAME/nnUNetPlans.json"
        ) from None
    except (UnicodeDecodeError, json.JSONDecodeError, OSError) as error:
        raise _no_plan(path, error) from None
    return nnunet_plan(values, configuration, path)


def nnunet_plan(values: Any, configuration: str, path: Path) -> NnunetPlan:
    """Return the settings of one of a plan's configurations; see ``read_nnunet_plan``.

    Args:
        values: of the plan, as its JSON holds them.
        configuration: its name.
        path: where the plan comes from, for messages.

    Raises:
        SpecError: as ``read_nnunet_plan``.
    """
    try:
        plans = _Plans.model_validate(values)
    except ValidationError as error:
        raise _no_plan(path, error) from None
    found = _configuration(plans, configuration, path)
    arguments = _network(found, path)
    axes = _axes_of_all(found, arguments, path)
    back = axes_of(plans.transpose_backward, axes, path)

    def ordered(values: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(values[axis] for axis in back)

    spacing = [float(f"{side:.6g}") for side in ordered(found.spacing)]
    resolutions = Resolutions(
        ordered(found.patch_size),
        tuple(ordered(stride) for stride in arguments.strides),
        tuple(ordered(kernel) for kernel in arguments.kernel_sizes),
    )
    blocks = tuple(arguments.blocks or ())
    planned = Topology(resolutions, tuple(arguments.features_per_stage), found.batch_size, blocks)
    modality, window = _intensities(found, plans, path)
    data = {
        # Images without a resolution have one pixel a unit.
        "spacing": None if axes == 2 and set(spacing) == {1.0} else spacing,
        "patch": list(resolutions.patch),
        "modality": modality,
        **({"window": window} if window else {}),
    }
    model = {"arguments": {"trans_bias": True}, **model_settings(planned)}
    channels = len(found.normalization_schemes)
    settings = {"data": data, "model": model, "training": {"batch_size": found.batch_size}}
    return NnunetPlan(settings, axes, _reasons(settings, configuration), _remarks(found, arguments, modality), channels)


def _no_plan(path: Path, error: Exception) -> SpecError:
    return SpecError(
        f"{path}: no plan of nnU-Net ({_first_line(error)}). Expected nnUNetPlans.json, with configurations and "
        "transpose_backward."
    )


def _configuration(plans: _Plans, name: str, path: Path) -> _Configuration:
    values: dict[str, Any] = {}
    inherited: str | None = name
    passed: list[str] = []
    while inherited:
        if inherited not in plans.configurations or inherited in passed:
            raise SpecError(
                f"{path}: no configuration {inherited!r}. Expected one of {', '.join(plans.configurations)}: "
                "--configuration NAME"
            )
        passed.append(inherited)
        own = plans.configurations[inherited]
        values = {**own, **values}
        inherited = own.get("inherits_from")
    if values.get("previous_stage"):
        raise SpecError(
            f"{path}: {name} is a cascade: it refines what {values['previous_stage']} put out, which no job does. "
            f"Expected a configuration of one stage, such as 3d_fullres or {values['previous_stage']}"
        )
    try:
        return _Configuration.model_validate(values)
    except (ValidationError, KeyError, TypeError) as error:
        raise SpecError(f"{path}: {name} cannot be read ({_first_line(error)}). Plan anew with nnU-Net 2.8") from None


def _network(found: _Configuration, path: Path) -> _Arguments:
    name = found.architecture.network_class_name.rsplit(".", 1)[-1]
    if name not in {_PLAIN, _RESIDUAL}:
        raise SpecError(
            f"{path}: its network is {name}, which no job can build; expected {_PLAIN} or {_RESIDUAL}. Plan anew with "
            "nnU-Net's default planner (ExperimentPlanner), or one of its residual ones (nnUNetPlannerResEncM)"
        )
    try:
        arguments = _Arguments.model_validate(found.architecture.arch_kwargs)
    except ValidationError as error:
        raise SpecError(
            f"{path}: its network cannot be read ({_first_line(error)}). Plan anew with nnU-Net 2.8"
        ) from None
    residual = name == _RESIDUAL
    stated = len(arguments.blocks) if arguments.blocks else 0
    if stated != (len(arguments.strides) if residual else 0):
        raise SpecError(
            f"{path}: n_blocks_per_stage: found {arguments.n_blocks_per_stage} for {len(arguments.strides)} "
            f"resolutions of {name}; expected a number for each of {_RESIDUAL}, and none of {_PLAIN}"
        )
    wanted = {_CONVOLUTIONS_UP} if residual else {_CONVOLUTIONS}
    for what, given, ok in (
        ("convolutions of a resolution", sorted(arguments.convolutions), arguments.convolutions == wanted),
        ("normalisation", arguments.norm_op, "InstanceNorm" in str(arguments.norm_op)),
        ("activation", arguments.nonlin, "LeakyReLU" in str(arguments.nonlin)),
        ("dropout", arguments.dropout_op, arguments.dropout_op is None),
    ):
        if not ok:
            raise SpecError(
                f"{path}: {what}: found {given}, expected {'one convolution' if residual else 'two convolutions'}, "
                "instance normalisation, LeakyReLU and no dropout, as nnU-Net's planners have them"
            )
    return arguments


def _axes_of_all(found: _Configuration, arguments: _Arguments, path: Path) -> int:
    """Return the number of axes, of which spacing, patch, strides and kernels state as many."""
    stated: list[Sequence[float]] = [found.spacing, found.patch_size, *arguments.strides, *arguments.kernel_sizes]
    lengths = {len(one) for one in stated}
    if len(lengths) != 1 or not lengths <= {2, 3} or len(arguments.strides) != len(arguments.kernel_sizes):
        raise SpecError(
            f"{path}: spacing, patch_size, strides and kernel_sizes are of {', '.join(map(str, sorted(lengths)))} axes "
            f"and {len(arguments.strides)} and {len(arguments.kernel_sizes)} resolutions; expected 2 or 3 axes in "
            "all, and strides and kernels of each resolution"
        )
    return len(found.patch_size)


def axes_of(transpose_backward: Sequence[int], axes: int, path: Path) -> list[int]:
    """Return which of the plan's axes is the job's first, second, third.

    nnU-Net reads files backwards (z, y, x) and puts the coarsest axis first; flat images have lost theirs.

    Args:
        transpose_backward: of the plan.
        axes: of the job's images.
        path: of the plan, for messages.

    Raises:
        SpecError: it is no order of three axes.
    """
    if sorted(transpose_backward) != [0, 1, 2]:
        raise SpecError(f"{path}: transpose_backward: found {list(transpose_backward)}, expected an order of 0, 1, 2")
    kept = [axis for axis in transpose_backward if axes == 3 or axis != 0]
    offset = 3 - axes
    return [axis - offset for axis in reversed(kept)]


def _intensities(found: _Configuration, plans: _Plans, path: Path) -> tuple[str, list[float] | None]:
    schemes = set(found.normalization_schemes)
    if len(schemes) != 1 or not schemes <= set(_MODALITIES):
        raise SpecError(
            f"{path}: normalisation: found {', '.join(found.normalization_schemes) or 'none'}, expected one of "
            f"{', '.join(_MODALITIES)} for all channels"
        )
    modality = _MODALITIES[schemes.pop()]
    stated = plans.foreground_intensity_properties_per_channel.get("0")
    if modality != "ct" or stated is None:
        return modality, None
    return modality, [round(stated.percentile_00_5, 3), round(stated.percentile_99_5, 3)]


def _reasons(settings: dict[str, dict[str, Any]], configuration: str) -> list[Reason]:
    because = f"nnU-Net's plan, {configuration}"
    return [
        Reason(setting=f"{section}.{name}", value=value, because=because, statistic="nnU-Net's fingerprint")
        for section, values in settings.items()
        for name, value in values.items()
    ]


def _remarks(found: _Configuration, arguments: _Arguments, modality: str) -> list[str]:
    remarks = []
    if not arguments.blocks and len({tuple(kernel) for kernel in arguments.kernel_sizes}) > 1:
        remarks.append(
            "on the way up MONAI's DynUNet has the kernels of the next coarser resolution: where nnU-Net's do not "
            "reach along an axis, some of these do"
        )
    if len(found.patch_size) == 3:
        remarks.append(
            "nnU-Net plans along the files' axes; here they are taken for right, anterior, superior, as in files that "
            "are stored slice by slice from the feet up. Of others, check data.patch and data.spacing"
        )
    if modality == "ct":
        remarks.append("nnU-Net standardises Hounsfield units after clipping; here the window becomes 0 to 1")
    if any(found.use_mask_for_norm):
        remarks.append("nnU-Net normalises within the non-zero voxels here; see data.modality for what a job does")
    return remarks


def _first_line(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "no text"
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return f"{type(error).__name__}: {error}".splitlines()[0]
