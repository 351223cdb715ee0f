"""Tensors as the body of a request, a file of the format safetensors: which travel, and reading them where it lies."""

from __future__ import annotations

import json
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from oncofed.errors import FederationError
from oncofed.models.serialized import LENGTH_BYTES, NAMES
from oncofed.models.weights import Weights

_LARGEST_HEADER = 100 << 20
_TRAVELLING = (
    torch.float64,
    torch.int64,
    torch.float32,
    torch.int32,
    torch.float16,
    torch.bfloat16,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
)
_TYPES = {NAMES[dtype]: dtype for dtype in _TRAVELLING}


def travels(value: Tensor) -> bool:
    """Return whether tensors of this type travel so."""
    return value.dtype in _TRAVELLING


def read_body(content: memoryview) -> Weights:
    """Return the tensors in a body, which lie in its own bytes.

    Args:
        content: the bytes, which can be written to.

    Raises:
        FederationError: it is not of the format.
    """
    begin = LENGTH_BYTES + int.from_bytes(content[:LENGTH_BYTES], "little")
    if begin > min(len(content), _LARGEST_HEADER):
        raise FederationError("what arrived is not tensors (its header has no end)")
    try:
        header = json.loads(bytes(content[LENGTH_BYTES:begin]))
        facts = sorted((_facts(name, said) for name, said in header.items()), key=lambda one: one.begin)
    except (AttributeError, IndexError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise FederationError(f"what arrived is not tensors ({type(error).__name__})") from None
    whole, tensors, end = torch.frombuffer(content, dtype=torch.uint8), Weights(), 0
    for one in facts:
        size = math.prod(one.shape) * one.dtype.itemsize
        if one.begin != end or (begin + end) % one.dtype.itemsize:
            raise FederationError(f"what arrived has {one.name} where it may not lie")
        end += size
        if one.end != end or begin + end > len(content):
            raise FederationError(f"what arrived has another size of {one.name} than its shape says")
        part = whole[begin + end - size : begin + end]
        tensors[one.name] = part.view(one.dtype).view(one.shape) if size else torch.empty(one.shape, dtype=one.dtype)
    if begin + end != len(content):
        raise FederationError("what arrived has more bytes than its tensors")
    return tensors


class _Facts(NamedTuple):
    """What a header says of a tensor: where it lies is counted from the header's end."""

    begin: int
    end: int
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


def _facts(name: str, said: dict[str, Any]) -> _Facts:
    (begin, end), shape = said["data_offsets"], tuple(said["shape"])
    if not all(type(number) is int and number >= 0 for number in (begin, end, *shape)):
        raise ValueError(name)
    return _Facts(begin, end, name, _TYPES[said["dtype"]], shape)
