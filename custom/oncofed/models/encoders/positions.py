"""Position embeddings of another size of input."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from oncofed.errors import TrainingError
from oncofed.models.encoders.entry import EncoderEntry
from oncofed.models.weights import Weights

_NAMES = ("pos_embed", "trunk.pos_embed")
_PATCH = 16
# DINO adds it to a side, against rounding of the number of patches.
_OFFSET = 0.1


def fitted_positions(entry: EncoderEntry, weights: Weights, expected: Weights) -> Weights:
    """Return weights whose position embedding has the network's size.

    Args:
        entry: says whether another size may be resampled, as its maker does.
        weights: of a file, under the network's names.
        expected: of the network, whose shapes count alone.

    Raises:
        TrainingError: it has another size, and the entry says exact.
    """
    name = next((name for name in _NAMES if name in expected), None)
    if name is None or name not in weights or weights[name].dim() != 3:
        return weights
    found, wanted = weights[name], expected[name].shape
    if found.shape[2] != wanted[2] or (found.shape == wanted and entry.positions != "by way of 224"):
        return weights
    # Tokens beyond a square of patches, such as the class token.
    side, wanted_side = math.isqrt(found.shape[1]), math.isqrt(wanted[1])
    before = wanted[1] - wanted_side**2
    if found.shape[1] != side**2 + before:
        return weights
    if entry.positions == "exact":
        raise TrainingError(
            f"these weights of {entry.title} are for another size of input: their position embedding is for {side} x "
            f"{side} patches, expected {wanted_side} x {wanted_side}. Take those of {entry.source}"
        )
    tokens, grid = found[:, :before], found[:, before:].float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    grid = _bilinear(grid, wanted_side) if entry.positions == "bilinear" else _by_way_of_224(grid, wanted_side)
    patches = grid.permute(0, 2, 3, 1).flatten(1, 2)
    return {**weights, name: torch.cat([tokens, patches.to(found.dtype)], dim=1).contiguous()}


def _bilinear(grid: Tensor, side: int) -> Tensor:
    return functional.interpolate(grid, (side, side), mode="bilinear")


def _by_way_of_224(grid: Tensor, side: int) -> Tensor:
    """Return a grid as TRIDENT makes it for CONCH v1.5.

    First that of 224 pixels, then by DINO's rule that of the input.
    """
    middle = 224 // _PATCH
    if grid.shape[-1] != middle:
        grid = _bilinear(grid, middle)
    scale = (side + _OFFSET) / middle
    return functional.interpolate(grid, scale_factor=(scale, scale), mode="bicubic")
