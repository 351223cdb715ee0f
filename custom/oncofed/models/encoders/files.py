"""The tensors in a maker's file of weights."""

from __future__ import annotations

import argparse
import pickle
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from oncofed.data.images import looks_like
from oncofed.errors import TrainingError
from oncofed.models.weights import Weights

# safetensors begins with the length of a header in JSON.
_HEADER_BYTES = 8
# PyTorch's own format: a zip archive, and a pickle before 1.6.
_PYTORCH = (b"PK\x03\x04", b"\x80")


def read_tensors(path: Path, name: str, may_be_pickle: bool) -> Weights:
    """Return a file's tensors under dotted names.

    Args:
        path: of the file.
        name: of the encoder.
        may_be_pickle: PyTorch's own format is read too, as tensors alone.

    Raises:
        TrainingError: it holds no weights; says what it holds.
    """
    start = _start_of(path)
    if start[_HEADER_BYTES : _HEADER_BYTES + 1] == b"{":
        return _safetensors(path)
    if start.startswith(b"version https://git-lfs"):
        raise TrainingError(
            f"{path.name}: a pointer of Git LFS instead of the weights. Get the file itself: git lfs pull"
        )
    if start.lstrip()[:1] == b"<":
        raise TrainingError(f"{path.name}: a web page instead of weights. Log in at the maker's page, and get it again")
    if start.lstrip()[:1] == b"{":
        raise TrainingError(
            f"{path.name}: a text in JSON, which may tell of the weights. Name the file of the weights themselves"
        )
    of_pytorch = start.startswith(_PYTORCH)
    if path.suffix == ".safetensors" and not of_pytorch:
        return _safetensors(path)
    if not may_be_pickle:
        raise TrainingError(
            f"the encoder's weights cannot be read: {path.name} is no file of safetensors, and a job opens no other "
            f"format. Convert it once: oncofed data encoders add {name} FILE"
        )
    if not of_pytorch:
        found = looks_like(path)
        raise _no_weights(path, f" (it looks like {found})" if found else "")
    return _unpickled(path)


def _start_of(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except IsADirectoryError:
        raise TrainingError(
            f"{path.name}: a folder, expected the file of weights in it (.safetensors or .bin)"
        ) from None
    except FileNotFoundError:
        raise TrainingError(f"the encoder's weights cannot be read: {path.name}: no such file") from None
    except OSError as error:
        raise TrainingError(f"the encoder's weights cannot be read: {path.name}: {error.strerror}") from None
    if not start:
        raise TrainingError(f"{path.name}: the file is empty. Get it again")
    return start


def _safetensors(path: Path) -> Weights:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise TrainingError(f"{path.name}: cut short or damaged ({error}). Get the file again") from None


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
        raise _no_weights(path) from None
    tensors = dict(_flattened(contents, ""))
    if not tensors:
        raise TrainingError(f"{path.name}: it names no tensor, expected a state_dict: a tensor for each name")
    return tensors


def _no_weights(path: Path, seen: str = "") -> TrainingError:
    return TrainingError(
        f"{path.name}: neither safetensors nor PyTorch's format{seen}, or cut short. Get the file again"
    )


def _flattened(contents: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    for key, value in contents.items() if isinstance(contents, Mapping) else ():
        if isinstance(value, Tensor):
            yield f"{prefix}{key}", value.detach()
        elif isinstance(value, Mapping):
            yield from _flattened(value, f"{prefix}{key}.")
