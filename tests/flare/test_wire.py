from __future__ import annotations

import pickletools
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.shareable import ReservedHeaderKey, Shareable, make_reply
from nvflare.fuel.utils import fobs
from nvflare.fuel.utils.buffer_list import ConsumableBufferList

from oncofed.errors import FederationError
from oncofed.flare import wire
from oncofed.messages.requests import (
    CombineRequest,
    EvaluateRequest,
    PeerUpdate,
    PrepareRequest,
    Request,
    SumsAsked,
    TrainRequest,
)
from oncofed.messages.results import CombineResult, EvaluateResult, Refusal, SiteFacts, TrainResult
from oncofed.privacy.evaluations import evaluation_numbers
from oncofed.training.trainer import Evaluation

WEIGHTS = {"conv.weight": torch.randn(2, 3), "conv.bias": torch.zeros(2)}


def test_weights_survive_flares_serializer_without_pickle() -> None:
    wire.register_tensors()
    request = TrainRequest(weights=WEIGHTS, round=4, extra={"control.conv.bias": torch.ones(2)})
    blob = fobs.dumps(wire.to_shareable(request))
    read = wire.read_request(TrainRequest.task, fobs.loads(blob))
    assert isinstance(read, TrainRequest)
    assert read.round == 4
    assert list(read.extra) == ["control.conv.bias"]
    assert all(torch.equal(read.weights[name], WEIGHTS[name]) for name in WEIGHTS)
    with pytest.raises(Exception):  # noqa: B017, PT011 - pickletools raises various errors for other data
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
def test_a_tensor_of_any_kind_arrives_unchanged(value: torch.Tensor) -> None:
    wire.register_tensors()
    arrived = fobs.loads(fobs.dumps({"t": value}))["t"]
    assert (arrived.dtype, arrived.shape) == (value.dtype, value.shape)
    as_bytes = [tensor.contiguous().flatten().view(torch.uint8) for tensor in (arrived, value)]
    assert torch.equal(*as_bytes)


def test_messages_are_not_formatted_for_the_log() -> None:
    wire.register_tensors()
    assert len(f"{ConsumableBufferList([bytes(1 << 20)])}") < 200


def test_an_update_carries_weights_cases_and_approved_numbers_only() -> None:
    numbers = {
        "evaluation": evaluation_numbers(Evaluation(0.5, {"core": 0.5}, {"hd95_mm.core": 2.0}, 3, (0.4, 0.6))),
        "train_s": 1.5,
    }
    sent = wire.to_shareable(TrainResult(delta=WEIGHTS, cases=12, steps=3, numbers=numbers))
    read = wire.read_result(TrainRequest.task, sent)
    assert isinstance(read, TrainResult)
    assert (read.cases, read.steps) == (12, 3)
    assert read.numbers == numbers
    assert set(read.delta) == set(WEIGHTS)


def test_a_refusal_has_its_reason() -> None:
    refusal = Refusal("its data did not pass")
    assert wire.read_result(PrepareRequest.task, wire.to_shareable(refusal)) == refusal
    assert wire.read_result(PrepareRequest.task, wire.to_shareable(SiteFacts({}))) == SiteFacts({})


_W = torch.ones(2)


@pytest.mark.parametrize(
    ("message", "headers", "kind", "data", "meta"),
    [
        (PrepareRequest(), {}, "METRICS", {}, {}),
        (PrepareRequest(profile=True), {"oncofed.profile": True}, "METRICS", {}, {}),
        (
            TrainRequest(weights={"w": _W}, round=3, extra={"c": _W}, refusal="it is long", collector="east"),
            {
                "oncofed.round": 3,
                "oncofed.split": "validation",
                "oncofed.refused": "it is long",
                "oncofed.collector": "east",
            },
            "WEIGHTS",
            {"w": _W, "extra.c": _W},
            {},
        ),
        (
            EvaluateRequest(
                weights={"w": _W}, round=2, split="test", sums=SumsAsked(1.25), keep=True, artifacts={"a": "b"}
            ),
            {
                "oncofed.round": 2,
                "oncofed.split": "test",
                "oncofed.sums": {"temperature": 1.25},
                "oncofed.keep": True,
                "oncofed.beside": '{"a": "b"}',
            },
            "WEIGHTS",
            {"w": _W},
            {},
        ),
        (
            CombineRequest(updates={"east": PeerUpdate("ab", 3)}, round=4),
            {"oncofed.round": 4},
            "METRICS",
            {"east": {"digest": "ab", "cases": 3}},
            {},
        ),
        (SiteFacts({"train": 3}), {}, "METRICS", {"train": 3}, {}),
        (EvaluateResult({"validate_s": 3.0}), {}, "METRICS", {"validate_s": 3.0}, {}),
        (
            TrainResult(delta={"w": _W}, extra={"c": _W}, cases=7, steps=5, numbers={"loss": 0.5}),
            {},
            "WEIGHT_DIFF",
            {"w": _W, "extra.c": _W},
            {"NUM_STEPS_CURRENT_ROUND": 7, "oncofed.steps": 5, "oncofed.numbers": {"loss": 0.5}},
        ),
        (
            CombineResult(mean={"w": _W}, cases=7, missing=["east"], left_out={"west": "long"}),
            {"oncofed.missing": ["east"], "oncofed.left_out": {"west": "long"}},
            "WEIGHT_DIFF",
            {"w": _W},
            {"NUM_STEPS_CURRENT_ROUND": 7, "oncofed.steps": 1, "oncofed.numbers": {}},
        ),
    ],
    ids=lambda value: type(value).__name__ if hasattr(value, "__dataclass_fields__") else "",
)
def test_messages_round_trip_with_fixed_headers_and_keys(
    message: Any, headers: dict[str, Any], kind: str, data: dict[str, Any], meta: dict[str, Any]
) -> None:
    wire.register_tensors()
    shareable = wire.to_shareable(message)
    sent = {name: value for name, value in shareable[ReservedHeaderKey.HEADERS].items() if name.startswith("oncofed")}
    assert list(sent.items()) == list(headers.items()), "in this order"
    dxo = from_shareable(shareable)
    assert dxo.data_kind == kind
    assert dxo.data.keys() == data.keys()
    assert {**dxo.meta} == meta
    if kind == "METRICS":
        assert dxo.data == data
    arrived = fobs.loads(fobs.dumps(shareable))
    read = wire.read_request if isinstance(message, Request) else wire.read_result
    assert _plain(read(_TASK_OF.get(type(message), ""), arrived)) == _plain(message)


_TASK_OF = {
    **{kind: kind.task for kind in (PrepareRequest, TrainRequest, EvaluateRequest, CombineRequest)},
    SiteFacts: "prepare",
    TrainResult: "train",
    EvaluateResult: "validate",
    CombineResult: "combine",
}


def _plain(message: Any) -> dict[str, Any]:
    """Return a message's fields, with lists for tensors."""
    fields = vars(message).items()
    return {name: _lists(value) if isinstance(value, Mapping) else value for name, value in fields}


def _lists(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value.tolist() if isinstance(value, torch.Tensor) else value for name, value in values.items()}


def test_a_refusals_reason_is_one_short_line() -> None:
    refusal = wire.read_result("train", wire.to_shareable(Refusal("its disk\n\x1b[31m is full" + "x" * 5000)))
    assert isinstance(refusal, Refusal)
    assert refusal.reason.startswith("its disk  [31m is full")
    assert len(refusal.reason) == 600
    assert not refusal.may_pass
    unaudited = wire.read_result("train", make_reply(ReturnCode.EXECUTION_EXCEPTION))
    assert unaudited == Refusal("FLARE reports EXECUTION_EXCEPTION; the site's own log says more", may_pass=True)


@pytest.mark.parametrize(
    ("task", "sent", "reason"),
    [
        ("train", Shareable({"DXO": 7}), "its answer is malformed ("),
        ("prepare", Shareable(), "its answer is malformed ("),
        ("train", DXO(DataKind.WEIGHT_DIFF, data={"w#1": _W}).to_shareable(), "it sent w#1 where piece 0"),
        ("combine", DXO(DataKind.WEIGHT_DIFF, data={"w": _W, "extra.v": _W}).to_shareable(), "it sent extra.v"),
    ],
)
def test_a_malformed_result_is_a_refusal(task: str, sent: Shareable, reason: str) -> None:
    refusal = wire.read_result(task, sent)
    assert isinstance(refusal, Refusal)
    assert refusal.reason.startswith(reason)
    assert not refusal.may_pass


def test_an_unknown_task_is_refused() -> None:
    with pytest.raises(FederationError, match="does not know the task 'delete_everything'"):
        wire.read_request("delete_everything", Shareable())
