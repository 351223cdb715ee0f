from __future__ import annotations

import json
from typing import Any

import pytest
import safetensors.torch
import torch

from oncofed.errors import TransferError
from oncofed.flare.transfer.codec import read_body, travels
from oncofed.models.serialized import Serialized
from oncofed.models.weights import Weights

TENSORS: Weights = {
    "T0": torch.randn(3, 4),
    "T1": torch.tensor(5),
    "T2": torch.randn(7).to(torch.bfloat16),
    "T3": torch.zeros(0, 3),
    "T4": torch.randint(-9, 9, (5,), dtype=torch.int8),
    "T5": torch.tensor([True, False, True]),
    "T6": torch.tensor(2.5, dtype=torch.float64),
    "T7": torch.randn(4, 6).t(),
    "T8": torch.randn(9).half(),
}


def written(tensors: Weights) -> bytes:
    body = Serialized(tensors)
    content = b"".join(body.parts())
    assert len(content) == body.size
    return content


def read(content: bytes) -> Weights:
    return read_body(memoryview(bytearray(content)))


def test_tensors_round_trip_to_the_bit() -> None:
    found = read(written(TENSORS))
    assert found.keys() == TENSORS.keys()
    for name, value in TENSORS.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value)


def test_the_format_is_safetensors() -> None:
    found = safetensors.torch.load(written(TENSORS))
    assert all(torch.equal(found[name], value) for name, value in TENSORS.items())
    theirs = safetensors.torch.save({name: value.contiguous() for name, value in TENSORS.items()})
    assert all(torch.equal(found, TENSORS[name]) for name, found in read(theirs).items())


def test_unsupported_types_do_not_travel() -> None:
    assert all(map(travels, TENSORS.values()))
    assert not travels(torch.zeros(1, dtype=torch.complex64))


def made_of(header: Any, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def said(begin: int, end: int, shape: Any = (1,), dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x01",
        (1 << 62).to_bytes(8, "little"),
        made_of(b"{", b""),
        made_of(b"\xff\xfe", b""),
        made_of(b"[" * 100_000, b""),
        made_of([], b""),
        made_of({"a": 1}, b""),
        made_of({"a": {}}, b""),
        made_of({"a": said(0, 4)}, b""),
        made_of({"a": said(0, 4)}, bytes(8)),
        made_of({"a": said(4, 8)}, bytes(8)),
        made_of({"a": said(0, 8)}, bytes(8)),
        made_of({"a": said(0, 4), "b": said(0, 4)}, bytes(4)),
        made_of({"a": said(0, 4), "b": said(8, 12)}, bytes(12)),
        made_of({"a": said(-4, 0)}, bytes(4)),
        made_of({"a": said(0, 4, [-1])}, bytes(4)),
        made_of({"a": said(0, 4, [True])}, bytes(4)),
        made_of({"a": said(0, 4, [1.0])}, bytes(4)),
        made_of({"a": said(0, 4, "1")}, bytes(4)),
        made_of({"a": said(0, 4, [1 << 62, 4])}, bytes(4)),
        made_of({"a": said(0, 4, [1], "C64")}, bytes(4)),
        made_of({"a": said(0, 4, [1], ["F32"])}, bytes(4)),
        made_of({"a": said(0, 1, [1], "U8"), "b": said(1, 5)}, bytes(5)),
    ],
    ids=range(24),
)
def test_a_malformed_body_is_refused(content: bytes) -> None:
    with pytest.raises(TransferError, match="what arrived"):
        read(content)
