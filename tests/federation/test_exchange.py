from __future__ import annotations

import pickletools

import pytest
import torch
from nvflare.fuel.utils import fobs

from oncofed.errors import FederationError
from oncofed.federation import exchange
from oncofed.training.trainer import Evaluation

WEIGHTS = {"conv.weight": torch.randn(2, 3), "conv.bias": torch.zeros(2)}


def test_weights_survive_flares_serializer_to_the_bit_and_are_no_pickle() -> None:
    exchange.register_tensors()
    blob = fobs.dumps(exchange.weights_message(WEIGHTS, 4, "test"))
    weights, number, split = exchange.read_weights_message(fobs.loads(blob))
    assert (number, split) == (4, "test")
    assert all(torch.equal(weights[name], WEIGHTS[name]) for name in WEIGHTS)
    with pytest.raises(Exception):  # noqa: B017, PT011 - whatever pickletools says of what is not a pickle
        list(pickletools.genops(blob))
    assert b"__main__" not in blob
    assert b"pickle" not in blob


def test_an_update_carries_weights_cases_and_approved_numbers_only() -> None:
    numbers = {
        "evaluation": exchange.evaluation_numbers(Evaluation(0.5, {"core": 0.5}, {"hd95_mm.core": 2.0}, 3, (0.4, 0.6))),
        "train_s": 1.5,
    }
    weights, cases, read = exchange.read_update_message(exchange.update_message(WEIGHTS, 12, numbers))
    assert cases == 12
    assert read == numbers
    assert set(weights) == set(WEIGHTS)


def test_a_refusal_says_why() -> None:
    assert exchange.refusal_reason(exchange.refusal("its data did not pass")) == "its data did not pass"
    assert exchange.refusal_reason(exchange.numbers_message({})) is None


@pytest.mark.parametrize(
    ("update", "message"),
    [
        ({"conv.weight": WEIGHTS["conv.weight"]}, "other tensors"),
        ({**WEIGHTS, "more": torch.zeros(1)}, "other tensors"),
        ({**WEIGHTS, "conv.bias": torch.zeros(3)}, r"conv.bias as \(3,\)"),
        ({**WEIGHTS, "conv.bias": torch.zeros(2, dtype=torch.float64)}, "float64, expected"),
        ({**WEIGHTS, "conv.bias": [0.0, 0.0]}, "as list"),
        ({**WEIGHTS, "conv.bias": torch.tensor([0.0, float("inf")])}, "not finite"),
        ("weights", "other tensors"),
    ],
)
def test_an_update_that_is_not_the_model_is_refused(update, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(FederationError, match=message):
        exchange.check_update("site-1", update, WEIGHTS)
    exchange.check_update("site-1", dict(WEIGHTS), WEIGHTS)
