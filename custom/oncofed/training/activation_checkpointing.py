"""Activation checkpointing: recompute blocks to save memory.

PyTorch's ``apply_activation_checkpointing`` puts a wrapper around each block: ``named_parameters`` of the network then
gives other names, and blocks inside blocks are wrapped too, to be computed three times.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

# MONAI's building blocks, and those of our own networks; the outermost of each is computed again in the backward pass.
_BLOCKS = frozenset(
    {
        "BasicLayer",
        "Convolution",
        "MBConvBlock",
        "ResBlock",
        "ResNetBlock",
        "ResNetBottleneck",
        "ResidualUnit",
        "SwinTransformerBlock",
        "TransformerBlock",
        "UnetBasicBlock",
        "UnetResBlock",
        "UnetUpBlock",
        "UnetrBasicBlock",
        "UnetrUpBlock",
        "_DenseBlock",
        "_ResidualBlock",
    }
)


def checkpoint_blocks(network: nn.Module) -> int:
    """Recompute blocks in the backward pass; return their number.

    Chen et al., 2016.

    Weights and their names stay as they are.
    """
    count = 0
    for child in network.children():
        if type(child).__name__ in _BLOCKS:
            _recompute(child)
            count += 1
        else:
            count += checkpoint_blocks(child)
    return count


def _recompute(block: nn.Module) -> None:
    forward = block.forward

    def recomputed(*inputs: Any) -> Any:
        return checkpoint(forward, *inputs, use_reentrant=False) if block.training else forward(*inputs)

    block.forward = recomputed
