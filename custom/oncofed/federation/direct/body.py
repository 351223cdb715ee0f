"""Tensors as the body of a request: a file of the format safetensors, written from where they lie, read where it lies.

https://huggingface.co/docs/safetensors: eight bytes with the length of a header, the header, and the tensors' bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from oncofed.errors import FederationError
from oncofed.models.weights import Weights

_LENGTH_BYTES = 8
# Tensors begin where values of any type may lie.
_ALIGNMENT = 8
_TYPES = {
    "F64": torch.float64,
    "I64": torch.int64,
    "F32": torch.float32,
    "I32": torch.int32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _TYPES.items()}


class Body:
    """Tensors as bytes, none of which are copied.

    Args:
        tensors: by name, of any device. Those of larger types come first, so that each lies where its type may.

    Attributes:
        size: bytes of all.

    Raises:
        FederationError: a type of theirs does not travel.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        strange = [value.dtype for value in tensors.values() if value.dtype not in _NAMES]
        if strange:
            raise FederationError(f"tensors of type {strange[0]} do not travel")
        ordered = sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize)
        facts, end = {}, 0
        for name, value in ordered:
            begin, end = end, end + value.nbytes
            facts[name] = {"dtype": _NAMES[value.dtype], "shape": list(value.shape), "data_offsets": [begin, end]}
        header = json.dumps(facts).encode()
        header += b" " * (-len(header) % _ALIGNMENT)
        self._head = len(header).to_bytes(_LENGTH_BYTES, "little") + header
        self._tensors = [value for _, value in ordered]
        self.size = len(self._head) + end

    def parts(self, start: int = 0) -> Iterator[memoryview]:
        """Return its bytes one after another, from one on."""
        for part in self._parts():
            if start < len(part):
                yield part[start:]
            start = max(0, start - len(part))

    def _parts(self) -> Iterator[memoryview]:
        yield memoryview(self._head)
        for value in self._tensors:
            if value.numel():
                yield value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


def read_body(path: str, content: memoryview) -> Weights:
    """Return the tensors in a body, which lie in its own bytes.

    Args:
        path: of a file with the same bytes.
        content: the bytes.

    Raises:
        FederationError: it is not of the format.
    """
    try:
        with safe_open(path, "pt") as file:
            # The library checks that the tensors lie one after another, and fill the file.
            found = [(name, file.get_slice(name)) for name in file.offset_keys()]
            facts = [(name, _TYPES[one.get_dtype()], one.get_shape()) for name, one in found]
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise FederationError(f"what arrived is not tensors ({type(error).__name__})") from None
    begin = _LENGTH_BYTES + int.from_bytes(content[:_LENGTH_BYTES], "little")
    whole, tensors = torch.frombuffer(content, dtype=torch.uint8), Weights()
    for name, dtype, shape in facts:
        end = begin + math.prod(shape) * dtype.itemsize
        if begin % dtype.itemsize:
            raise FederationError(f"what arrived has {name} where its type may not lie")
        tensors[name] = whole[begin:end].view(dtype).view(shape) if end > begin else torch.empty(shape, dtype=dtype)
        begin = end
    return tensors
