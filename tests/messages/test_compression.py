"""Compression of updates, and what the server refuses."""

from __future__ import annotations

import pytest
import torch

from oncofed.errors import FederationError
from oncofed.messages.compression import Compressor, ReceivedUpdate, travelling_bytes, without_extra

MODEL = {"conv.weight": torch.randn(4, 3, 3), "conv.bias": torch.zeros(4), "counter": torch.tensor(2)}


def _sent(**changed: object) -> dict[str, object]:
    return {**{name: torch.ones_like(value) for name, value in MODEL.items()}, **changed}


def _received(chunks: object, extra_like: dict[str, torch.Tensor]) -> ReceivedUpdate:
    delta, extra = without_extra(chunks)
    return ReceivedUpdate(delta, MODEL, "native", extra, extra_like)


@pytest.mark.parametrize(("kind", "share"), [("native", 1.0), ("bfloat16", 0.55), ("int8", 0.45)])
def test_an_update_is_compressed_and_restored_to_the_models_types(kind, share: float) -> None:  # type: ignore[no-untyped-def]
    model = {"w": torch.randn(64, 64), "counter": torch.tensor(2)}
    delta = {"w": torch.randn(64, 64), "counter": torch.tensor(5)}
    received = ReceivedUpdate(Compressor(kind).compress(delta), model, kind)
    assert received["w"].dtype == torch.float32
    assert torch.allclose(received["w"], delta["w"], atol=0.03)
    assert received["counter"].item() == 5
    assert received.nbytes <= share * sum(value.nbytes for value in delta.values())
    assert received.nbytes == travelling_bytes(delta, kind)


@pytest.mark.parametrize("kind", ["bfloat16", "int8"])
def test_rounding_errors_are_fed_back(kind) -> None:  # type: ignore[no-untyped-def]
    delta = {"w": torch.full((1, 2), 1.0)}
    delta["w"][0, 1] = 0.001
    model = {"w": torch.zeros(1, 2)}
    compressor, total = Compressor(kind), torch.zeros(1, 2)
    for _ in range(200):
        total += ReceivedUpdate(compressor.compress(delta), model, kind)["w"]
    assert torch.allclose(total, 200 * delta["w"], atol=0.01)


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        ({"conv.weight": torch.zeros(4, 3, 3)}, "other tensors"),
        (_sent(more=torch.zeros(1)), "other tensors"),
        (_sent(**{"conv.bias": torch.zeros(3)}), r"conv.bias as \(3,\)"),
        (_sent(**{"conv.bias": torch.zeros(4, dtype=torch.float64)}), "float64, expected"),
        (_sent(**{"conv.bias": [0.0] * 4}), "a list where a tensor"),
        (_sent(**{"conv.bias": torch.tensor([0.0, float("inf"), 0.0, 0.0])}), "not finite"),
        (_sent(**{"conv.bias": torch.full((4,), float("nan"))}), "not finite"),
        (_sent(**{"extra.control.conv.bias": torch.zeros(4)}), "does not ask for"),
        ("weights", "sent a str"),
    ],
)
def test_an_update_that_does_not_fit_the_model_is_refused(sent: object, message: str) -> None:
    with pytest.raises(FederationError, match=message):
        _received(sent, {})
    _received(_sent(), {})


def test_extra_tensors_are_checked_too() -> None:
    extra = {"control.conv.bias": MODEL["conv.bias"]}
    taken = _received(_sent(**{"extra.control.conv.bias": torch.ones(4)}), extra)
    assert torch.equal(taken.extra["control.conv.bias"], torch.ones(4))
    with pytest.raises(FederationError, match=r"extra.control.conv.bias as \(5,\)"):
        _received(_sent(**{"extra.control.conv.bias": torch.ones(5)}), extra)
