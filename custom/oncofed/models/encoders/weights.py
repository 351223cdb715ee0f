"""From a maker's file to the weights of an encoder."""

from __future__ import annotations

import argparse
import hashlib
import pickle
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from oncofed.errors import TrainingError
from oncofed.models.encoders.entry import EncoderEntry
from oncofed.models.encoders.names import timm_names
from oncofed.models.encoders.networks import ClassAndMean, build_network
from oncofed.models.encoders.positions import fitted_positions
from oncofed.models.weights import Weights

_HEADER_BYTES = 8
# Where the first convolution of a vision transformer is called otherwise than by timm.
_OTHER_FIRST = "embeddings.patch_embeddings.projection.weight"
# Of two networks in one file, the one that self-distillation keeps (DINO: Caron et al., ICCV 2021).
_KEPT = re.compile(r"teacher|ema")
# Parts of a maker's file that no feature needs: of the training, or of another way to pool.
_UNUSED = ("mask_token", "head.", "pooler.", "dino_head.", "ibot_head.", "relative_position_index", "attn_mask")
_COUNTS = "num_batches_tracked"
_EXAMPLES = 3


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
    stored = _read(path, entry.name, may_be_pickle)
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


def _read(path: Path, name: str, may_be_pickle: bool) -> Weights:
    """Return a file's tensors under dotted names."""
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except IsADirectoryError:
        raise TrainingError(
            f"{path.name}: a folder, expected the file of weights in it (.safetensors or .bin)"
        ) from None
    except OSError as error:
        raise TrainingError(f"the encoder's weights cannot be read: {type(error).__name__}: {path.name}") from None
    if not start:
        raise TrainingError(f"{path.name}: the file is empty. Get it again")
    if start.startswith(b"version https://git-lfs"):
        raise TrainingError(
            f"{path.name}: a pointer of Git LFS instead of the weights. Get the file itself: git lfs pull"
        )
    if start.lstrip()[:1] == b"<":
        raise TrainingError(f"{path.name}: a web page instead of weights. Log in at the maker's page, and get it again")
    if start[_HEADER_BYTES : _HEADER_BYTES + 1] == b"{":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise TrainingError(f"{path.name}: cut short or damaged ({error}). Get the file again") from None
    if not may_be_pickle:
        raise TrainingError(
            f"the encoder's weights cannot be read: {path.name} is no file of safetensors, and a job opens no other "
            f"format. Convert it once: oncofed data encoders add {name} FILE"
        )
    return _unpickled(path)


def _unpickled(path: Path) -> Weights:
    """Return the tensors of PyTorch's own format, running none of its code."""
    try:
        # DINO's and iBOT's checkpoints hold their settings, which are values and no code.
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")  # the error says more
            contents = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = found.group(1) if found else "more than tensors"
        raise TrainingError(
            f"{path.name}: it holds {what}, expected tensors alone. Code in such a file would run when it is opened, "
            "so it was not. Ask for the weights as safetensors, or as a state_dict"
        ) from None
    except (RuntimeError, EOFError, BadZipFile, ValueError, KeyError, OSError, IndexError, AttributeError) as error:
        first = (str(error).strip().splitlines() or [""])[0]
        if "TorchScript" in first:
            raise TrainingError(f"{path.name}: a compiled model, which is code. Ask for the state_dict") from None
        raise TrainingError(
            f"{path.name}: neither safetensors nor PyTorch's format, or cut short. Get the file again"
        ) from None
    return dict(_flattened(contents, ""))


def _flattened(contents: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    for key, value in contents.items() if isinstance(contents, Mapping) else ():
        if isinstance(value, Tensor):
            yield f"{prefix}{key}", value.detach()
        elif isinstance(value, Mapping):
            yield from _flattened(value, f"{prefix}{key}.")


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
        problems.append(f"{len(more)} tensors are none of its ({_examples(more)})")
    if reshaped:
        name = reshaped[0]
        sizes = f"{name} has {tuple(found[name].shape)}, expected {tuple(expected[name].shape)}"
        other = " as of a larger or smaller architecture" if len(reshaped) > len(expected) / 2 else ""
        problems.append(f"{len(reshaped)} of its {len(expected)} tensors have another shape{other} ({sizes})")
    if problems:
        raise TrainingError(f"these are not the weights of {entry.title}: {'; '.join(problems)}. {_advice(entry)}")
    broken = [name for name, value in found.items() if not bool(torch.isfinite(value).all())]
    if broken:
        raise TrainingError(f"{len(broken)} tensors hold NaN or infinity ({_examples(broken)}). Get the file again")


def _examples(names: Sequence[str] | Mapping[str, Tensor]) -> str:
    shown = sorted(names)[:_EXAMPLES]
    return ", ".join(shown) + (" …" if len(names) > len(shown) else "")


def _advice(entry: EncoderEntry) -> str:
    return f"Take those of {entry.source}, or name the encoder that these are of: oncofed data encoders lists all"
