"""Networks of timm, and files of weights as makers write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from oncofed.models.encoders import EncoderEntry, build_network, find_entry
from oncofed.models.encoders.torchvision_operators import declare_where_missing
from oncofed.models.encoders.weights import _core


def need_timm() -> Any:
    """Return timm; skips the calling tests without it."""
    declare_where_missing()
    return pytest.importorskip("timm")


def small(name: str = "uni", **changes: Any) -> EncoderEntry:
    """Return an entry of the catalogue with a transformer that takes milliseconds."""
    entry = find_entry(name)
    sizes = {"embed_dim": 48, "depth": 2, "num_heads": 2}
    arguments = {**entry.arguments, **sizes, **changes.pop("arguments", {})}
    features = 96 if entry.pooling == "class and mean" else 48
    return entry.model_copy(update={"arguments": arguments, "features": features, **changes})


def random_weights(entry: EncoderEntry, seed: int = 0) -> dict[str, Tensor]:
    """Return weights of an entry's network, none of them zero."""
    network: nn.Module = _core(build_network(entry))
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(value.shape, generator=generator) * 0.2 + 0.01
        for name, value in network.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }


def write(weights: dict[str, Tensor], path: Path) -> Path:
    """Write weights as safetensors, or in PyTorch's format, by the file's name."""
    if path.suffix == ".safetensors":
        save_file({name: value.contiguous() for name, value in weights.items()}, path)
    else:
        torch.save(weights, path)
    return path
