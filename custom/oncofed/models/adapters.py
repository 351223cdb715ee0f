"""Low-rank adapters of linear layers.

LoRA (Hu et al., ICLR 2022): a layer's weight stays, and the product of two small matrices is added to it. PyTorch's
parametrizations do all of it, so that no library of adapters is needed, whose wrappers would rename every tensor.
"""

from __future__ import annotations

import fnmatch
import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils import parametrize

from oncofed.errors import SpecError
from oncofed.models.weights import Weights
from oncofed.settings import StrictModel

# How PyTorch names the parts of a parametrized weight.
_ORIGINAL, _DOWN, _UP = (f".parametrizations.weight.{part}" for part in ("original", "0.down", "0.up"))


class AdapterSpec(StrictModel):
    """Small matrices that are trained in place of a network's linear layers."""

    type: Literal["lora"] = "lora"
    rank: int = Field(8, ge=1, le=1024, description="of the product that is added to a layer's weight")
    layers: tuple[str, ...] = Field(
        ("*qkv", "*attn.proj", "*attn.out_proj"),
        min_length=1,
        description="patterns of the linear layers; by default those of attention",
    )


class LowRank(nn.Module):
    """Adds a product of low rank to a weight.

    Args:
        outputs: rows of the weight.
        inputs: its columns.
        rank: of the product.
    """

    def __init__(self, outputs: int, inputs: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(rank, inputs))
        # Zero: the network starts as it is.
        self.up = nn.Parameter(torch.zeros(outputs, rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight with the product added."""
        return weight + self.up @ self.down


def add_adapters(network: nn.Module, spec: AdapterSpec, seed: int) -> None:
    """Give a network's linear layers adapters, and fix all but these and the output layer.

    Args:
        network: changed in place.
        spec: of the adapters.
        seed: of their initial weights; the caller's random state is left as it was.

    Raises:
        SpecError: no linear layer that is trained fits the patterns.
    """
    linear = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and module.weight.requires_grad
    }
    chosen = [module for name, module in linear.items() if any(fnmatch.fnmatch(name, p) for p in spec.layers)]
    if not chosen:
        known = ", ".join(list(linear)[:4]) or "none"
        raise SpecError(
            f"model.adapter.layers: found {list(spec.layers)}, which fits no linear layer; the network has {known}"
        )
    head = [module for module in network.modules() if next(module.parameters(recurse=False), None) is not None][-1]
    network.requires_grad_(False)
    head.requires_grad_(True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for layer in chosen:
            if layer is not head:
                adapter = LowRank(layer.out_features, layer.in_features, spec.rank)
                parametrize.register_parametrization(layer, "weight", adapter)


def is_adapter(name: str) -> bool:
    """Return whether a tensor of this name is an adapter's."""
    return name.endswith((_DOWN, _UP))


def merge_adapters(network: nn.Module) -> None:
    """Add adapters to the weights of a network's layers, in place."""
    for module in list(network.modules()):
        if isinstance(module, nn.Linear) and parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight")


def merged(weights: Weights) -> Weights:
    """Return weights with adapters added to them, under the layers' own names."""
    found = {}
    for name, value in weights.items():
        layer = name.removesuffix(_ORIGINAL)
        if layer != name:
            has_adapter = layer + _UP in weights
            product = weights[layer + _UP] @ weights[layer + _DOWN] if has_adapter else torch.zeros_like(value)
            found[f"{layer}.weight"] = value + product
        elif not is_adapter(name):
            found[name] = value
    return found


def for_network(stored: Weights, own: Weights) -> Weights:
    """Return weights under a network's names, be it with adapters or without.

    Adapters of the same rank are taken as they are. Others are added to their layers, and the network's start anew.

    Args:
        stored: of a network with or without adapters.
        own: the network's.
    """
    if not any(name.endswith(_ORIGINAL) for name in (*stored, *own)):
        return stored
    found = merged(stored)
    for name in own:
        layer = name.removesuffix(_ORIGINAL)
        if layer == name:
            continue
        parts = [layer + part for part in (_ORIGINAL, _DOWN, _UP)]
        alike = all(part in stored and stored[part].shape == own[part].shape for part in parts)
        plain = found.pop(f"{layer}.weight", None)
        if alike:
            found |= {part: stored[part] for part in parts}
        elif plain is not None:
            found[name] = plain
    return found
