"""Memory layout of activations, and in-place operations.

Both depend on the network's normalisation, whose kernels may copy their input.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.instancenorm import _InstanceNorm

_CONVOLUTIONS = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def memory_format(network: nn.Module, axes: int) -> torch.memory_format:
    """Return a network's fastest memory format on a GPU.

    Tensor cores take channels last. Normalisation by batch keeps that; on CUDA that by instance and by group makes its
    input contiguous and returns it so, and each convolution would convert it again: a quarter more bytes in a step
    than contiguous throughout (https://github.com/pytorch/pytorch/issues/59168).

    Args:
        network: of any kind.
        axes: of its images, 2 or 3.

    Returns:
        ``torch.channels_last`` or ``torch.channels_last_3d``; ``torch.contiguous_format`` where that costs more, or
        where there is no convolution.
    """
    modules = list(network.modules())
    convolves = any(isinstance(module, _CONVOLUTIONS) for module in modules)
    if not convolves or any(isinstance(module, _InstanceNorm | nn.GroupNorm) for module in modules):
        return torch.contiguous_format
    return torch.channels_last_3d if axes == 3 else torch.channels_last


def overwriting_activations(network: nn.Module) -> list[nn.Module]:
    """Return activations that overwrite the output of instance normalisation.

    See ``overwrite``.

    Instance normalisation returns a view of another tensor: overwriting it costs each activation's backward pass three
    copies, a new tensor costs none. Other networks have no such activations.
    """
    modules = list(network.modules())
    if not any(isinstance(module, _InstanceNorm) for module in modules):
        return []
    return [module for module in modules if getattr(module, "inplace", False)]


def overwrite(activations: list[nn.Module], wanted: bool) -> None:
    """Let activations write over their input.

    Valid without a backward pass, and takes no memory.

    Values and weights are the same either way.
    """
    for activation in activations:
        activation.inplace = wanted  # type: ignore[assignment]
