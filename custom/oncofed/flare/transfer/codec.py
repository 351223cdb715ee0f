"""Read tensors from the body of a request.

A body is a safetensors file; its tensors are views of the body's memory.
"""

from __future__ import annotations

import json
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from oncofed.errors import TransferError
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
    """Return whether a body may hold tensors of this type."""
    return value.dtype in _TRAVELLING


def read_body(content: memoryview) -> Weights:
    """Return the tensors in a body, without a copy.

    Args:
        content: the bytes, writable.

    Raises:
        TransferError: it is not of the format.
    """
    begin = LENGTH_BYTES + int.from_bytes(content[:LENGTH_BYTES], "little")
    if begin > min(len(content), _LARGEST_HEADER):
        raise TransferError("what arrived is not tensors (its header has no end)")
    try:
        header = json.loads(bytes(content[LENGTH_BYTES:begin]))
        facts = sorted((_facts(name, entry) for name, entry in header.items()), key=lambda fact: fact.begin)
    except (AttributeError, IndexError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise TransferError(f"what arrived is not tensors ({type(error).__name__})") from None
    data, tensors, end = torch.frombuffer(content, dtype=torch.uint8), Weights(), 0
    for fact in facts:
        size = math.prod(fact.shape) * fact.dtype.itemsize
        if fact.begin != end or (begin + end) % fact.dtype.itemsize:
            raise TransferError(f"what arrived has {fact.name} where it may not lie")
        end += size
        if fact.end != end or begin + end > len(content):
            raise TransferError(f"what arrived has another size of {fact.name} than its shape says")
        part = data[begin + end - size : begin + end]
        tensors[fact.name] = (
            part.view(fact.dtype).view(fact.shape) if size else torch.empty(fact.shape, dtype=fact.dtype)
        )
    if begin + end != len(content):
        raise TransferError("what arrived has more bytes than its tensors")
    return tensors


class _Facts(NamedTuple):
    """A header's entry; offsets count from the header's end."""

    begin: int
    end: int
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


def _facts(name: str, entry: dict[str, Any]) -> _Facts:
    (begin, end), shape = entry["data_offsets"], tuple(entry["shape"])
    if not all(type(number) is int and number >= 0 for number in (begin, end, *shape)):
        raise ValueError(name)
    return _Facts(begin, end, name, _TYPES[entry["dtype"]], shape)
