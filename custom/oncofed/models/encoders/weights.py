"""From a maker's file to the weights of an encoder."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from oncofed.data.grouping import counted
from oncofed.errors import TrainingError
from oncofed.models.encoders.entry import EncoderEntry
from oncofed.models.encoders.files import read_tensors
from oncofed.models.encoders.names import timm_names
from oncofed.models.encoders.networks import ClassAndMean, build_network
from oncofed.models.encoders.positions import fitted_positions
from oncofed.models.weights import Weights

# Where the first convolution of a vision transformer is called otherwise than by timm.
_OTHER_FIRST = "embeddings.patch_embeddings.projection.weight"
# Of two networks in one file, the one that self-distillation keeps (DINO: Caron et al., ICCV 2021).
_KEPT = re.compile(r"teacher|ema")
# Parts of a maker's file that no feature needs: of the training, or of another way to pool.
_UNUSED = ("mask_token", "head.", "pooler.", "dino_head.", "ibot_head.", "relative_position_index", "attn_mask")
_COUNTS = "num_batches_tracked"
_EXAMPLES = 3
# What networks compute with: integers and 8 bits need scales that no maker's file states.
_PRECISIONS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}


@dataclass(frozen=True)
class LoadedEncoder:
    """A network with its weights.

    Attributes:
        network: maps images to features; its tensors are in single precision.
        weights: its tensors as the file has them, under the network's names.
        digest: SHA-256 of names, shapes and values in single precision, in the order of names: the same for each format
            and naming of the same weights.
        notes: what was done to the file's contents, in words.
    """

    network: nn.Module
    weights: Weights
    digest: str
    notes: tuple[str, ...]


def load_encoder(entry: EncoderEntry, path: Path, may_be_pickle: bool = False) -> LoadedEncoder:
    """Return an encoder with the weights of a file.

    Args:
        entry: which one.
        path: of a file of safetensors.
        may_be_pickle: PyTorch's own format is read too, as tensors alone.

    Raises:
        TrainingError: the file cannot be read, or its weights are not those of this encoder; says what differs.
    """
    stored = read_tensors(path, entry.name, may_be_pickle)
    network = _unfilled(entry, stored)
    weights, notes = _fitted(entry, _core(network), stored)
    digest = weights_digest(weights)
    single = {name: value.float() if value.is_floating_point() else value for name, value in weights.items()}
    _core(network).load_state_dict(single, strict=False, assign=True)
    return LoadedEncoder(network.requires_grad_(False), weights, digest, notes)


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of weights, whatever their precision."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        value = weights[name].detach().float().contiguous()
        digest.update(f"{name} {tuple(value.shape)}".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _core(network: nn.Module) -> nn.Module:
    """Return the module whose names the weights have."""
    return network.network if isinstance(network, ClassAndMean) else network


def _unfilled(entry: EncoderEntry, stored: Weights) -> nn.Module:
    if entry.family in {"vit", "conch", "conch_v1.5"}:
        with torch.device("meta"):  # billions of random numbers would be thrown away
            return build_network(entry)
    return build_network(entry, stored)


def _fitted(entry: EncoderEntry, network: nn.Module, stored: Weights) -> tuple[Weights, tuple[str, ...]]:
    """Return a file's weights under the network's names, with what was done.

    Raises:
        TrainingError: they are another network's, too few or too many, or not finite.
    """
    expected = {name: value for name, value in network.state_dict().items() if not name.endswith(_COUNTS)}
    prefix = _prefix(entry, expected, stored)
    inside = {name.removeprefix(prefix): value for name, value in stored.items() if name.startswith(prefix)}
    weights, naming = timm_names(inside, expected)
    unused = (*entry.unused, *_UNUSED)
    # Of nested names too: Swin has its attention masks in each block.
    weights = {
        name: value
        for name, value in weights.items()
        if name in expected or not (name.startswith(unused) or name.endswith((*_UNUSED[-2:], _COUNTS)))
    }
    weights = fitted_positions(entry, weights, expected)
    _require_same(entry, expected, weights)
    notes = [f"names begin with {prefix}"] if prefix else []
    if len(inside) < len(stored):
        notes.append(f"{len(stored) - len(inside):,} tensors of other parts are left out")
    if naming:
        notes.append(f"named as {naming} does")
    if halves := sorted({str(v.dtype).removeprefix("torch.") for v in weights.values() if v.dtype.itemsize == 2}):
        notes.append(
            f"in half precision ({', '.join(halves)}): digest and features differ from those of weights in single "
            "precision, so all sites have to take the same file"
        )
    return weights, tuple(notes)


def _prefix(entry: EncoderEntry, expected: Weights, stored: Weights) -> str:
    """Return what precedes the network's names in a file, such as ``module.``."""
    first = next(name for name, value in expected.items() if value.dim() == 4)
    anchors = (first, _OTHER_FIRST) if entry.family == "vit" else (first,)
    found = {
        name.removesuffix(anchor)
        for name in stored
        for anchor in anchors
        if name == anchor or name.endswith(f".{anchor}")
    }
    # A residual network has layers of the same name further inside.
    found = {prefix for prefix in found if not any(prefix != other and prefix.startswith(other) for other in found)}
    if len(found) > 1:
        found = {prefix for prefix in found if _KEPT.search(prefix)} or found
    if not found:
        raise TrainingError(
            f"these are not the weights of {entry.title}: expected a tensor {first}, found {len(stored):,} others "
            f"({_examples(stored)}). {_advice(entry)}"
        )
    if len(found) > 1:
        raise TrainingError(
            f"the file holds {len(found)} networks ({', '.join(sorted(found))}), expected one. {_advice(entry)}"
        )
    return found.pop()


def _require_same(entry: EncoderEntry, expected: Weights, found: Weights) -> None:
    missing = [name for name in expected if name not in found]
    more = [name for name in found if name not in expected]
    reshaped = [name for name in expected if name in found and found[name].shape != expected[name].shape]
    problems = []
    if missing:
        problems.append(f"{len(missing)} of its {len(expected)} tensors are missing ({_examples(missing)})")
    if more:
        verb = "is" if len(more) == 1 else "are"
        problems.append(f"{counted(len(more), 'tensor')} {verb} none of its ({_examples(more)})")
    if reshaped:
        name = reshaped[0]
        sizes = f"{name} has {tuple(found[name].shape)}, expected {tuple(expected[name].shape)}"
        other = " as of a larger or smaller architecture" if len(reshaped) > len(expected) / 2 else ""
        problems.append(f"{len(reshaped)} of its {len(expected)} tensors have another shape{other} ({sizes})")
    if problems:
        raise TrainingError(f"these are not the weights of {entry.title}: {'; '.join(problems)}. {_advice(entry)}")
    packed = {name: value for name, value in found.items() if value.dtype not in _PRECISIONS}
    if packed:
        kinds = ", ".join(sorted({str(value.dtype).removeprefix("torch.") for value in packed.values()}))
        raise TrainingError(
            f"{counted(len(packed), 'tensor')} of {kinds} ({_examples(packed)}), expected numbers of half or single "
            f"precision: these weights are quantised. {_advice(entry)}"
        )
    broken = [name for name, value in found.items() if not bool(torch.isfinite(value).all())]
    if broken:
        verb = "holds" if len(broken) == 1 else "hold"
        raise TrainingError(
            f"{counted(len(broken), 'tensor')} {verb} NaN or infinity ({_examples(broken)}). Get the file again"
        )


def _examples(names: Sequence[str] | Mapping[str, Tensor]) -> str:
    shown = sorted(names)[:_EXAMPLES]
    return ", ".join(shown) + (" …" if len(names) > len(shown) else "")


def _advice(entry: EncoderEntry) -> str:
    return f"Take those of {entry.source}, or name the encoder that these are of: oncofed data encoders lists all"
