"""Weights of nnU-Net's networks under the names of MONAI's.

nnU-Net's ``PlainConvUNet`` and MONAI's ``DynUNet`` with ``trans_bias`` compute the same. What differs: names; the order
of the axes, for nnU-Net reads files backwards; a bias before an instance norm, which changes nothing and is left out;
and kernels on the way up, which DynUNet takes from the next coarser resolution: smaller ones are filled up with zeros.
Its ``ResidualEncoderUNet`` is ``ResidualUNet`` here, by the same names.
"""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from oncofed.data.label_names import name_key
from oncofed.errors import SpecError
from oncofed.models.weights import Weights

_CONVOLUTION = re.compile(r"convs\.(\d+)\.(conv|norm)\.(weight|bias)$")
_OUTPUTS = ("output_block.", "deep_supervision_heads.", "decoder.seg_layers.")
_PLAIN, _RESIDUAL = "encoder.stages.0.0.convs.0.conv.weight", "encoder.stages.0.blocks.0.conv1.conv.weight"
_PREFIXES = ("module.", "_orig_mod.")


@dataclass(frozen=True)
class NnunetCheckpoint:
    """A checkpoint of nnU-Net.

    Attributes:
        weights: of its network, by nnU-Net's names.
        plans: with which it was trained; None: the file does not say.
        configuration: of the plans, such as "3d_fullres"; None: the file does not say.
        labels: name -> label value, or values of a region; empty: the file does not say.
    """

    weights: Weights
    plans: dict[str, Any] | None
    configuration: str | None
    labels: dict[str, Any]

    @property
    def residual(self) -> bool:
        """Whether its encoder is residual."""
        return _RESIDUAL in self.weights

    @property
    def levels(self) -> int:
        """Number of resolutions."""
        return 1 + sum(name.endswith(".weight") for name in self.weights if name.startswith("decoder.transpconvs."))


def read_checkpoint(path: Path) -> NnunetCheckpoint:
    """Read ``checkpoint_final.pth``, running none of its code.

    Raises:
        SpecError: it is no checkpoint of nnU-Net, holds code, or is of a network that no job can build.
    """
    contents = _unpickled(path)
    stored = contents.get("network_weights") if isinstance(contents, Mapping) else None
    if not isinstance(stored, Mapping) or not all(isinstance(value, Tensor) for value in stored.values()):
        raise SpecError(
            f"{path}: no network_weights in it. Expected a checkpoint of nnU-Net 2, such as fold_0/checkpoint_final.pth"
        )
    weights = {_plain(str(name)): value.detach() for name, value in stored.items()}
    if not {_PLAIN, _RESIDUAL} & set(weights) or "decoder.transpconvs.0.weight" not in weights:
        raise SpecError(
            f"{path}: its network is no PlainConvUNet and no ResidualEncoderUNet (first tensor: "
            f"{next(iter(weights), 'none')}); other trainers' networks cannot be converted"
        )
    arguments = contents.get("init_args")
    arguments = arguments if isinstance(arguments, Mapping) else {}
    plans, configuration = arguments.get("plans"), arguments.get("configuration")
    dataset = arguments.get("dataset_json")
    labels = dataset.get("labels") if isinstance(dataset, Mapping) else None
    return NnunetCheckpoint(
        weights,
        dict(plans) if isinstance(plans, Mapping) else None,
        configuration if isinstance(configuration, str) else None,
        dict(labels) if isinstance(labels, Mapping) else {},
    )


def outputs_of(checkpoint: NnunetCheckpoint, classes: Mapping[int, str]) -> list[int] | None:
    """Return which of a checkpoint's outputs is which of a job's, by the classes' names; background first.

    Args:
        checkpoint: of nnU-Net.
        classes: of the job, label value -> name.

    Returns:
        None where the checkpoint lacks a class, or has regions: no output then means what the job's does.
    """
    named = {name_key(str(name)): value for name, value in checkpoint.labels.items()}
    if any(not isinstance(value, int) or isinstance(value, bool) for value in named.values()):
        return None
    wanted = [name_key(classes[value]) for value in sorted(classes)]
    return [0, *(named[name] for name in wanted)] if all(name in named for name in wanted) else None


def _plain(name: str) -> str:
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _unpickled(path: Path) -> Any:
    # The log of a training holds single numbers of numpy.
    numbers = [
        np.float64(0).__reduce__()[0],
        np.dtype,
        *(type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8", "?")),
    ]
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(numbers):
            warnings.simplefilter("ignore")  # the error says more
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise SpecError(f"{path}: no such file. nnU-Net writes fold_N/checkpoint_final.pth") from None
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        if not found:
            raise SpecError(f"{path}: no checkpoint of nnU-Net. Expected fold_N/checkpoint_final.pth") from None
        raise SpecError(
            f"{path}: it holds {found.group(1)}. Code in such a file would run when it is opened, so it was not. Save "
            "network_weights and init_args alone"
        ) from None
    except (RuntimeError, EOFError, BadZipFile, ValueError, KeyError, OSError, IndexError, AttributeError):
        raise SpecError(f"{path}: not in PyTorch's format, or cut short. Copy the file again") from None


def converted_weights(
    checkpoint: NnunetCheckpoint, axes: Sequence[int], outputs: Sequence[int] | None, network: Weights
) -> tuple[Weights, list[str]]:
    """Return a checkpoint's weights as a DynUNet's, or a ResidualUNet's.

    Args:
        checkpoint: of nnU-Net.
        axes: which of nnU-Net's axes is the job's first, second, third.
        outputs: which of the checkpoint's outputs is the job's first, second …; None: they are others.
        network: the network's own weights, a DynUNet's with ``trans_bias``; those of its outputs stay where they are
            others.

    Returns:
        All of the network's weights, and the names of those that stayed.

    Raises:
        SpecError: it is another network.
    """
    converted = {}
    for name, values in checkpoint.weights.items():
        new = name if checkpoint.residual else _renamed(name, checkpoint.levels)
        if new:
            along = values.permute(0, 1, *(2 + axis for axis in axes)) if values.ndim == len(axes) + 2 else values
            converted[new] = along.contiguous().clone()
    found, stayed = {}, []
    for name, own in network.items():
        given = converted.get(name)
        if name.startswith(_OUTPUTS) and given is not None:
            given = given[list(outputs)] if outputs and max(outputs) < len(given) else None
        fitted = None if given is None else _filled(given, own)
        if fitted is None and not name.startswith(_OUTPUTS):
            stored = list(converted[name].shape) if name in converted else "nothing of that name"
            raise SpecError(
                f"the checkpoint is of another network than the job's: {name} is {list(own.shape)} here, the "
                f"checkpoint has {stored}. Plan the job with its plans: oncofed job plan JOB --from-nnunet "
                "nnUNetPlans.json"
            )
        if fitted is None:
            stayed.append(name)
        found[name] = (own if fitted is None else fitted).to(own.dtype)
    return found, stayed


def _filled(values: Tensor, own: Tensor) -> Tensor | None:
    """Return a kernel with zeros around it, to the size of another; None where it is no part of it."""
    if values.ndim != own.ndim or values.shape[:2] != own.shape[:2]:
        return None
    missing = [wanted - side for wanted, side in zip(own.shape[2:], values.shape[2:], strict=True)]
    if any(gap < 0 or gap % 2 for gap in missing):
        return None
    return functional.pad(values, [half for gap in reversed(missing) for half in (gap // 2, gap // 2)])


def _renamed(name: str, levels: int) -> str | None:
    """Return DynUNet's name of a tensor; None for what it has not, or has under another name already."""
    parts = name.split(".")
    if name.startswith("decoder.encoder.") or "all_modules" in parts:
        return None
    half, what, number = parts[0], parts[1], int(parts[2])
    if half == "decoder" and what == "transpconvs":
        return f"upsamples.{number}.transp_conv.conv.{parts[-1]}"
    if half == "decoder" and what == "seg_layers":
        finer = levels - 2 - number
        head = "output_block" if finer == 0 else f"deep_supervision_heads.{finer - 1}"
        return f"{head}.conv.conv.{parts[-1]}"
    block = f"upsamples.{number}.conv_block" if half == "decoder" else _encoder_block(number, levels)
    found = _CONVOLUTION.search(name)
    if not found:
        return None
    convolution, kind, values = int(found.group(1)) + 1, found.group(2), found.group(3)
    if kind == "norm":
        return f"{block}.norm{convolution}.{values}"
    return f"{block}.conv{convolution}.conv.weight" if values == "weight" else None


def _encoder_block(number: int, levels: int) -> str:
    if number == 0:
        return "input_block"
    return "bottleneck" if number == levels - 1 else f"downsamples.{number - 1}"
