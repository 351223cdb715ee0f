from __future__ import annotations

import pickletools

import pytest
import torch
from nvflare.fuel.utils import fobs
from nvflare.fuel.utils.buffer_list import ConsumableBufferList

from oncofed.flare import wire
from oncofed.privacy.evaluations import evaluation_numbers
from oncofed.training.trainer import Evaluation

WEIGHTS = {"conv.weight": torch.randn(2, 3), "conv.bias": torch.zeros(2)}


def test_weights_survive_flares_serializer_to_the_bit_and_are_no_pickle() -> None:
    wire.register_tensors()
    blob = fobs.dumps(wire.weights_message(WEIGHTS, 4, "test", {"control.conv.bias": torch.ones(2)}))
    weights, number, split, given = wire.read_weights_message(fobs.loads(blob))
    assert (number, split) == (4, "test")
    assert list(given) == ["control.conv.bias"]
    assert all(torch.equal(weights[name], WEIGHTS[name]) for name in WEIGHTS)
    with pytest.raises(Exception):  # noqa: B017, PT011 - whatever pickletools says of what is not a pickle
        list(pickletools.genops(blob))
    assert b"__main__" not in blob
    assert b"pickle" not in blob
    assert b"DataClassDecomposer" not in blob, "FLARE made a form of its own for a type that others send otherwise"


@pytest.mark.parametrize(
    "value",
    [
        torch.randn(3, 5).T,
        torch.tensor(7),
        torch.zeros(0, 4),
        torch.tensor([float("nan"), float("inf")]),
        torch.randn(3).bfloat16(),
        torch.tensor([True, False]),
        torch.randn(4).to(torch.float8_e4m3fn),  # one that only FLARE's own form has
    ],
    ids=["not in one piece", "one number", "empty", "not finite", "bfloat16", "bool", "float8"],
)
def test_a_tensor_of_any_kind_arrives_as_it_is(value: torch.Tensor) -> None:
    wire.register_tensors()
    arrived = fobs.loads(fobs.dumps({"t": value}))["t"]
    assert (arrived.dtype, arrived.shape) == (value.dtype, value.shape)
    as_bytes = [tensor.contiguous().flatten().view(torch.uint8) for tensor in (arrived, value)]
    assert torch.equal(*as_bytes)


def test_no_message_is_made_a_text_for_a_log() -> None:
    wire.register_tensors()
    assert len(f"{ConsumableBufferList([bytes(1 << 20)])}") < 200


def test_an_update_carries_weights_cases_and_approved_numbers_only() -> None:
    numbers = {
        "evaluation": evaluation_numbers(Evaluation(0.5, {"core": 0.5}, {"hd95_mm.core": 2.0}, 3, (0.4, 0.6))),
        "train_s": 1.5,
    }
    weights, cases, steps, read = wire.read_update_message(wire.update_message(WEIGHTS, {}, 12, 3, numbers))
    assert (cases, steps) == (12, 3)
    assert read == numbers
    assert set(weights) == set(WEIGHTS)


def test_a_refusal_says_why() -> None:
    assert wire.refusal_reason(wire.refusal("its data did not pass")) == "its data did not pass"
    assert wire.refusal_reason(wire.numbers_message({})) is None
