"""Networks over a table's row, alone and beside an image or a slide."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from oncofed.data.covariates import Covariate
from oncofed.models import ModelSpec, NetworkRequest, build_network
from oncofed.models.fusion import FusedNetwork, with_attention
from oncofed.models.mil import AttentionMIL
from oncofed.models.table import RowEncoder, standardised
from oncofed.models.weights import layout_of, weights_of

AGE = Covariate(name="age", unit="years", range=(0, 120))
STAGE = Covariate(name="stage", categories=("I", "II", "III"))
COLUMNS = (AGE, STAGE)
ROWS = torch.tensor([[70.0, 1.0], [50.0, math.nan], [math.nan, 2.0], [60.0, 0.0]])
SMALL = {"init_features": 8, "growth_rate": 8, "block_config": [2]}


def request(network: str, fusion: str = "concat", columns: tuple[Covariate, ...] = COLUMNS) -> NetworkRequest:
    arguments = {"network": network, "fusion": fusion, "arguments": SMALL if network == "densenet121" else {}}
    return NetworkRequest(ModelSpec.model_validate(arguments), 1, 3, 2, (32, 32), columns)


def inputs(network: str) -> list[torch.Tensor]:
    if network == "attention_mil":
        return [torch.rand(4, 5, 1), torch.ones(4, 5, dtype=torch.bool)]
    return [torch.rand(4, 1, 32, 32)] if network != "table" else []


def test_rows_become_standardised_numbers_and_one_hot_categories() -> None:
    encoder = RowEncoder([[60.0, 10.0], 3])
    found = encoder(ROWS)
    assert found.tolist() == [
        [1, 0, 0, 1, 0, 0],
        [-1, 0, 0, 0, 0, 1],
        [0, 1, 0, 0, 1, 0],
        [0, 0, 1, 0, 0, 0],
    ]
    assert found.shape[1] == encoder.width


@pytest.mark.parametrize("network", ["densenet121", "attention_mil", "table"])
@pytest.mark.parametrize("fusion", ["concat", "film"])
def test_gradients_reach_the_row(network: str, fusion: str) -> None:
    built = build_network(request(network, fusion), seed=1)
    output = built(*inputs(network), ROWS)
    assert output.shape == (4, 3)
    output.square().sum().backward()
    of_rows = {name: value.grad for name, value in built.named_parameters() if name.startswith(("row", "scale"))}
    assert of_rows
    assert all(grad is not None and grad.isfinite().all() and grad.abs().max() > 0 for grad in of_rows.values())


def test_what_a_row_scales_is_dropped_in_training_alone() -> None:
    built = build_network(request("densenet121", "film"), seed=1)
    nn.init.normal_(built.scale_and_shift.weight)  # type: ignore[arg-type, union-attr]
    (image,) = inputs("densenet121")
    assert not torch.equal(built(image, ROWS), built(image, ROWS))
    built.eval()
    assert torch.equal(built(image, ROWS), built(image, ROWS))


def test_none_leaves_the_row_out() -> None:
    built = build_network(request("densenet121", "none"), seed=1).eval()
    (image,) = inputs("densenet121")
    assert torch.equal(built(image, ROWS), built(image, ROWS.flip(0)))
    assert not [name for name in weights_of(built) if name.startswith("row")]


def test_a_job_without_columns_has_the_network_that_it_names() -> None:
    assert isinstance(build_network(request("attention_mil", columns=()), seed=1), AttentionMIL)


def test_attention_over_tiles_can_be_asked_of_a_fused_network() -> None:
    fused, (bags, there) = build_network(request("attention_mil"), seed=1).eval(), inputs("attention_mil")
    assert isinstance(fused, FusedNetwork)
    found, attention = with_attention(fused, bags, there, ROWS)
    assert torch.equal(found, fused(bags, there, ROWS))
    assert attention is not None
    assert attention.sum(dim=1).detach().numpy() == pytest.approx(np.ones(4), rel=1e-5)
    assert with_attention(nn.Flatten(), bags)[1] is None


@pytest.mark.parametrize("network", ["densenet121", "table"])
def test_mean_and_spread_travel_and_are_not_trained(network: str) -> None:
    built = build_network(request(network), seed=1)
    layout = layout_of(built)
    moments = {name for name in layout.weights if name.rpartition(".")[2] in ("numbers_mean", "numbers_spread")}
    assert len(moments) == 2
    assert moments <= layout.travelling
    assert not moments & layout.trained
    found = standardised(weights_of(built), COLUMNS, {"age": (63.0, 9.0)})
    assert sorted(float(found[name]) for name in moments) == [9.0, 63.0]
    unmeasured = standardised(weights_of(built), COLUMNS, {})
    assert sorted(float(unmeasured[name]) for name in moments) == [30.0, 60.0], "the plausible range's"
    assert {name for name in found if not torch.equal(found[name], weights_of(built)[name])} == moments


def test_the_table_alone_may_be_linear() -> None:
    linear = request("table")
    linear = replace(linear, spec=ModelSpec(network="table", arguments={"hidden": 0}))
    built = build_network(linear, seed=1)
    assert [name for name, _ in built.named_parameters()] == ["head.weight", "head.bias"]
