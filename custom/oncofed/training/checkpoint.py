"""Training state in one file of tensors, written atomically."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from oncofed.errors import StateError
from oncofed.models.serialized import write_tensors

Tensors = dict[str, Tensor]

_KEY = "oncofed"


def previous_of(path: Path) -> Path:
    """Return the path of the previous checkpoint."""
    return path.with_suffix(f".previous{path.suffix}")


def write_checkpoint(path: Path, tensors: Tensors, facts: dict[str, Any]) -> None:
    """Write tensors and facts atomically.

    A reader of ``path`` finds the old state or the new one.

    The old one is kept next to it (``previous_of``), and its file is reused two writes later: on disk there are two.

    Args:
        path: of the file, which its owner alone can read.
        tensors: by name.
        facts: plain values (JSON).

    Raises:
        OSError: it could not be written, for example because the disk is full; the old state stays.
    """
    write_tensors(path, tensors, {_KEY: json.dumps(facts)}, previous_of(path))


def read_checkpoint(path: Path) -> tuple[Tensors, dict[str, Any]]:
    """Return tensors and facts.

    Raises:
        StateError: the file is broken.
    """
    with _opened(path) as (file, facts):
        # Copies: the library maps the file, which may hold another state later.
        return {name: file.get_tensor(name).clone() for name in file.keys()}, facts  # noqa: SIM118 - not a mapping


def read_facts(path: Path) -> dict[str, Any]:
    """Return the facts alone, without reading tensors.

    Raises:
        StateError: the file is broken.
    """
    with _opened(path) as (_, facts):
        return facts


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    try:
        with safe_open(path, "pt") as file:
            yield file, json.loads((file.metadata() or {})[_KEY])
    except (SafetensorError, OSError, KeyError, json.JSONDecodeError) as error:
        raise StateError(
            f"{path}: not a checkpoint of a training ({type(error).__name__}). Delete it to start from the beginning."
        ) from None


def is_whole(path: Path) -> bool:
    """Return whether a checkpoint is complete.

    Its tensors are not read.
    """
    try:
        with _opened(path):
            return True
    except StateError:
        return False


def without_prefix(tensors: Tensors, prefix: str) -> Tensors:
    """Return the tensors whose names start with ``prefix.``, without it."""
    return {name[len(prefix) + 1 :]: value for name, value in tensors.items() if name.startswith(f"{prefix}.")}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> Tensors:
    """Return an optimizer's state as ``NUMBER.NAME``."""
    return {
        f"{number}.{name}": torch.as_tensor(value)
        for number, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
        if value is not None
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Tensors) -> None:
    """Restore an optimizer's state from ``optimizer_tensors``.

    With the parameters' memory layout.

    A file holds it in one layout. Fused steps on CUDA refuse state whose strides are not those of its parameter.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for name, value in tensors.items():
        number, _, key = name.partition(".")
        parameter = parameters[int(number)]
        full = value.shape == parameter.shape
        place = torch.empty_like(parameter) if full else torch.empty_like(value, device=parameter.device)
        optimizer.state[parameter][key] = place.copy_(value)
