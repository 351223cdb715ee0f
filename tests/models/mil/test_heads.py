"""Each head over a bag of tiles: padding, order, gradients, single tiles, and its paper's formulas."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import mil_formulas
from oncofed.data.covariates import Covariate
from oncofed.models import ModelSpec, NetworkRequest, build_network, list_networks
from oncofed.models.fusion import FusedNetwork, with_attention
from oncofed.models.mil import BagHead, ClamSB, TransMIL
from oncofed.models.mil.nystrom import NystromAttention

FEATURES, OUT = 6, 3
SMALL = {"transmil": {"hidden": 16, "heads": 2, "landmarks": 4, "dropout": 0.0}}
HEADS = [network.name for network in list_networks() if network.kind == "bag"]
WITH_ATTENTION = [name for name in HEADS if not name.endswith("_pooling")]
_CLOSE = {"rtol": 1e-4, "atol": 1e-5}
AGE = Covariate(name="age", range=(0, 120))


def _head(name: str, columns: tuple[Covariate, ...] = (), **more: int | float) -> BagHead:
    arguments = {**SMALL.get(name, {"hidden": 16, "dropout": 0.0}), **more}
    spec = ModelSpec.model_validate({"network": name, "arguments": arguments})
    head = build_network(NetworkRequest(spec, FEATURES, OUT, 2, (64, 64), columns), seed=1)
    return head.eval()  # type: ignore[return-value]


def _bag(tiles: int, seed: int = 0) -> Tensor:
    return torch.randn(1, tiles, FEATURES, generator=torch.Generator().manual_seed(seed))


def _there(bags: Tensor) -> Tensor:
    return torch.ones(bags.shape[:2], dtype=torch.bool)


def test_the_heads_are_those_of_the_field() -> None:
    assert sorted(HEADS) == ["attention_mil", "clam_sb", "dsmil", "max_pooling", "mean_pooling", "transmil"]


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("tiles", [1, 2, 5, 12, 17])
def test_padding_and_the_other_bags_of_a_batch_have_no_effect(name: str, tiles: int) -> None:
    head, own, other = _head(name), _bag(tiles), _bag(21, seed=1)
    padded = torch.cat([own, torch.full((1, 21 - tiles, FEATURES), 9.0)], dim=1)
    batch = torch.cat([padded, other])
    there = torch.tensor([[True] * tiles + [False] * (21 - tiles), [True] * 21])
    found = head(batch, there)
    torch.testing.assert_close(found[:1], head(own, _there(own)), **_CLOSE)
    torch.testing.assert_close(found[1:], head(other, _there(other)), **_CLOSE)
    # Nor does it matter where in a bag padding stands.
    between = torch.cat([torch.full((1, 3, FEATURES), 9.0), own], dim=1)
    torch.testing.assert_close(head(between, torch.tensor([[False] * 3 + [True] * tiles])), found[:1], **_CLOSE)


@pytest.mark.parametrize("name", HEADS)
def test_the_order_of_tiles_counts_for_transmil_alone(name: str) -> None:
    head, bag = _head(name), _bag(12)
    turned = head(bag.flip(1), _there(bag))
    same = torch.allclose(turned, head(bag, _there(bag)), **_CLOSE)
    assert same == (name != "transmil")


def test_transmil_without_its_convolutions_sees_no_order() -> None:
    # With as many landmarks as tokens, attention by landmarks is attention itself: 16 tiles and the class token.
    head = _head("transmil", landmarks=17)
    assert isinstance(head, TransMIL)
    with torch.no_grad():
        for convolution in (*head.near, head.first.near, head.second.near):
            convolution.weight.zero_()
    for layer in (head.first, head.second):
        layer._iterations = 40
    bag = _bag(16)
    torch.testing.assert_close(head(bag.flip(1), _there(bag)), head(bag, _there(bag)), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("tiles", [1, 2, 7, 16])
def test_a_head_answers_as_its_papers_formulas_do(name: str, tiles: int) -> None:
    head, bag = _head(name).double(), _bag(tiles).double()
    found, expected = head(bag.requires_grad_(), _there(bag))[0], mil_formulas.answer(head, bag[0])
    torch.testing.assert_close(found, expected, **_CLOSE)
    weights = [bag, *head.parameters()]
    gradients = (torch.autograd.grad(output.square().sum(), weights, allow_unused=True) for output in (found, expected))
    for one, other in zip(*gradients, strict=True):
        if one is None or other is None:  # of CLAM's layer for tiles, which answers nothing
            assert (one, other) == (None, None)
        else:
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_the_iteration_goes_towards_the_pseudoinverse_of_each_matrix() -> None:
    generator = torch.Generator().manual_seed(1)
    matrices = (2 * torch.randn(3, 2, 5, 5, generator=generator, dtype=torch.float64)).softmax(-1)
    matrices[1, :, 3:], matrices[1, :, :, 3:] = 0, 0  # a sequence with fewer landmarks
    found = NystromAttention(8, heads=2, iterations=30)._inverse(matrices)
    torch.testing.assert_close(found, torch.linalg.pinv(matrices))


@pytest.mark.parametrize("name", WITH_ATTENTION)
def test_attention_sums_to_one_over_the_tiles_that_are_there(name: str) -> None:
    head, bag = _head(name), _bag(9)
    there = torch.tensor([[True] * 6 + [False] * 3])
    found, weights = head.with_attention(bag, there)
    torch.testing.assert_close(found, head(bag, there), rtol=0, atol=0)
    assert weights is not None
    assert weights.shape == (1, 9)
    assert weights[0, 6:].eq(0).all()
    assert weights.min() >= 0
    assert weights.sum().item() == pytest.approx(1, abs=1e-5)
    single = _bag(1)
    _, alone = head.with_attention(single, _there(single))
    assert alone is not None
    assert alone.item() == pytest.approx(1)


@pytest.mark.parametrize("name", sorted(set(HEADS) - set(WITH_ATTENTION)))
def test_pooling_has_no_attention(name: str) -> None:
    assert with_attention(_head(name), _bag(3), _there(_bag(3)))[1] is None


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("columns", [(), (AGE,)], ids=["tiles", "with a row"])
def test_a_bag_is_embedded_once_for_values_and_attention(name: str, columns: tuple[Covariate, ...]) -> None:
    network, bag = _head(name, columns), _bag(5)
    inputs = (bag, _there(bag), torch.tensor([[60.0]])) if columns else (bag, _there(bag))
    head = network.network if isinstance(network, FusedNetwork) else network
    embedded: list[int] = []
    embed = head.get_submodule("embed")
    embed.register_forward_hook(lambda module, arguments, output: embedded.append(output.shape[1]))
    values, attention = with_attention(network, *inputs)
    assert embedded == [5]
    torch.testing.assert_close(values, network(*inputs), rtol=0, atol=0)
    assert (attention is None) == (name not in WITH_ATTENTION)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("tiles", [1, 9])
@pytest.mark.parametrize("columns", [(), (AGE,)], ids=["tiles", "with a row"])
def test_gradients_reach_the_features_and_are_finite(name: str, tiles: int, columns: tuple[Covariate, ...]) -> None:
    head, bag = _head(name, columns).train(), _bag(tiles).requires_grad_()
    rows = (torch.tensor([[60.0]]),) if columns else ()
    output = head(bag, _there(bag), *rows)
    # Of CLAM two losses of tiles for each value of the job, whatever the features that are joined with the row.
    assert output.shape == (1, OUT * (3 if name == "clam_sb" else 1))
    output.square().sum().backward()
    assert bag.grad is not None
    assert bag.grad.isfinite().all()
    assert bag.grad.abs().max() > 0
    assert all(value.grad is not None and value.grad.isfinite().all() for value in head.parameters())
    assert isinstance(head, FusedNetwork) == bool(columns)


@pytest.mark.parametrize(("tiles", "chosen"), [(20, 8), (9, 4), (2, 1)])
def test_clam_tells_the_most_attended_tiles_from_the_least(tiles: int, chosen: int) -> None:
    head, bag = _head("clam_sb", tile_weight=1.0), _bag(tiles)
    assert isinstance(head, ClamSB)
    head.train()
    padded = torch.cat([bag, torch.full((1, 30 - tiles, FEATURES), 9.0)], dim=1)
    output = head(padded, torch.tensor([[True] * tiles + [False] * (30 - tiles)]))
    holds, fails = mil_formulas.tile_losses(head, bag[0], chosen)
    torch.testing.assert_close(output[0, OUT : 2 * OUT], holds, **_CLOSE)
    torch.testing.assert_close(output[0, 2 * OUT :], fails, **_CLOSE)
    torch.testing.assert_close(output[:, :OUT], head.eval()(bag, _there(bag)), **_CLOSE)


def test_one_tile_has_no_most_and_least_attended_ones() -> None:
    head = _head("clam_sb").train()
    assert head(_bag(1), _there(_bag(1)))[0, OUT:].eq(0).all()


@pytest.mark.parametrize("name", HEADS)
def test_large_bags_keep_their_digits_in_bfloat16(name: str) -> None:
    head, bag = _head(name), _bag(3000)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        half = head(bag, _there(bag))
    torch.testing.assert_close(half.float(), head(bag, _there(bag)), rtol=0.05, atol=0.05)
