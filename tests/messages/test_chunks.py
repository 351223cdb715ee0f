from __future__ import annotations

import pytest
import torch

from oncofed.errors import FederationError
from oncofed.messages.chunks import ChunkedTensors, in_pieces, inspect_early

LARGE = torch.randn(5, 1 << 20)
WEIGHTS = {"large": LARGE, "small": torch.randn(3), "count": torch.tensor(7)}


def test_a_large_tensor_travels_in_pieces_and_arrives_whole() -> None:
    pieces = in_pieces(WEIGHTS)
    assert list(pieces) == ["large#0", "large#1", "large#2", "small", "count"]
    assert max(piece.numel() for piece in pieces.values()) <= 2 << 20
    joined = ChunkedTensors(pieces)
    assert all(torch.equal(joined[name], value) for name, value in WEIGHTS.items())
    assert list(joined) == list(WEIGHTS)
    seen = joined.look("large")
    assert seen[:3] == ((5, 1 << 20), torch.float32, True)
    assert seen.squares == pytest.approx(float(LARGE.double().square().sum()))
    assert joined.look("count").squares == 0.0


def test_adjacent_pieces_are_joined_without_a_copy() -> None:
    part = LARGE[1:]  # as a slice of something larger
    assert ChunkedTensors(in_pieces({"large": part}))["large"].data_ptr() == part.data_ptr()
    arrived = {name: piece.clone() for name, piece in in_pieces({"large": part}).items()}
    assert torch.equal(ChunkedTensors(arrived)["large"], part)
    turned = {"large#0": LARGE[2:4], "large#1": LARGE[0:2]}
    assert torch.equal(ChunkedTensors(turned)["large"], torch.cat([LARGE[2:4], LARGE[0:2]]))


def test_finite_values_with_infinite_squares_count_as_finite() -> None:
    assert ChunkedTensors({"w": torch.tensor([1e200], dtype=torch.float64)}).look("w").finite
    assert ChunkedTensors({"w": torch.tensor([3e38])}).look("w").finite
    assert not ChunkedTensors({"w": torch.tensor([float("nan")], dtype=torch.bfloat16)}).look("w").finite


def test_a_non_finite_value_is_found_in_any_piece() -> None:
    bad = LARGE.clone()
    bad[4, 7] = float("inf")
    assert not ChunkedTensors(in_pieces({"large": bad})).look("large").finite


def test_a_changed_tensor_is_inspected_again(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"a": torch.ones(4), "b": torch.ones(2, dtype=torch.int64)}
    inspect_early(values.values())
    with monkeypatch.context() as patched:
        patched.setattr("oncofed.messages.chunks.sum_of_squares", lambda value: pytest.fail("it was looked at twice"))
        assert ChunkedTensors(values).look("a") == ((4,), torch.float32, True, 4.0)
        assert ChunkedTensors(values).look("b") == ((2,), torch.int64, True, 0.0)
    values["a"][1:2].fill_(float("nan"))
    assert not ChunkedTensors(values).look("a").finite


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        ([1, 2], "it sent a list, expected tensors by name"),
        ({"large#1": LARGE}, "it sent large#1 where piece 0 of large was expected"),
        ({"large#0": LARGE, "large#x": LARGE}, "it sent large#x where piece 1 of large was expected"),
        ({"large#0": LARGE, "large#1": torch.zeros(2, 3)}, "pieces of large that do not fit together"),
        ({"large#0": LARGE, "large#1": LARGE.double()}, "pieces of large that do not fit together"),
        ({"large#0": torch.tensor(1.0), "large#1": torch.tensor(1.0)}, "pieces of large that do not fit together"),
        ({"large": "text"}, "it sent a str where a tensor was expected"),
    ],
)
def test_pieces_that_do_not_fit_together_are_refused(sent: object, said: str) -> None:
    with pytest.raises(FederationError, match=said):
        _look_at(sent)


def _look_at(sent: object) -> None:
    joined = ChunkedTensors(sent)
    for name in joined:
        joined.look(name)
