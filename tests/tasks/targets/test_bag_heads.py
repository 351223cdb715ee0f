"""Every head over a slide's tiles learns every kind of target, with a table's row or without."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from oncofed.job.spec import JobSpec
from oncofed.models import list_networks
from oncofed.models.mil.own_loss import own_loss, with_own_loss, without_own_loss
from oncofed.training import Plan
from target_heads import make_head

NAN = float("nan")
HEADS = [network.name for network in list_networks() if network.kind == "bag"]
TARGETS: list[dict[str, Any]] = [
    {"name": "kind", "kind": "class", "classes": ["a", "b", "c"]},
    {"name": "findings", "kind": "labels", "findings": ["mass", "cyst"], "weight": 0.5},
    {"name": "grade", "kind": "grade", "grades": ["1", "2", "3"]},
    {"name": "size", "kind": "value", "unit": "mm", "range": [0, 100]},
    {"name": "death", "kind": "survival", "unit": "months", "horizon": 20, "intervals": 2},
]
TRUTH = {
    "kind": [[0.0], [2.0], [NAN]],
    "findings": [[1.0, 0.0], [NAN, 1.0], [NAN, NAN]],
    "grade": [[0.0], [2.0], [NAN]],
    "size": [[10.0], [80.0], [NAN]],
    "death": [[5.0, 1.0], [12.0, 1.0], [8.0, 0.0]],
}
STATEMENTS = {
    "kind": [[1, 0, 0], [0, 0, 1], [NAN] * 3],
    "findings": [[1, 0], [NAN, 1], [NAN, NAN]],
    "grade": [[0, 0], [1, 1], [NAN, NAN]],
    "size": [[NAN], [NAN], [NAN]],
    # Who was censored outlived the intervals of which half passed before.
    "death": [[1, NAN], [0, 1], [0, NAN]],
}


def _plan(network: str, covariates: bool = False, **training: Any) -> Plan:
    columns = {"covariates": [{"name": "age", "range": [0, 120]}]} if covariates else {}
    data = {"dataset": "slides", "modality": "microscopy", "channels": ["r", "g", "b"], "patch": [64, 64], **columns}
    small = {"transmil": {"hidden": 16, "heads": 2}}.get(network, {"hidden": 16})
    model = {"network": network, "arguments": small}
    values = {"name": "slides", "title": "Slides", "data": data, "targets": TARGETS, "model": model}
    return JobSpec.model_validate({**values, "training": {"batch_size": 2, **training}}).plan()


def _batch(plan: Plan) -> dict[str, Tensor]:
    bags = torch.rand(3, 6, plan.build_task().in_channels, generator=torch.Generator().manual_seed(1))
    there = torch.tensor([[True] * 6, [True] + [False] * 5, [True] * 4 + [False] * 2])
    truths = {f"target.{name}": torch.tensor(values) for name, values in TRUTH.items()}
    return {"bags": bags, "there": there, "table": torch.tensor([[60.0], [NAN], [40.0]]), **truths}


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("covariates", [False, True], ids=["tiles", "with a row"])
def test_a_step_learns_all_targets_at_once(name: str, covariates: bool) -> None:
    plan = _plan(name, covariates)
    task, network, batch = plan.build_task(), plan.try_network(), _batch(plan)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    torch.manual_seed(1)
    before = task.loss(task.forward(network.eval(), batch), batch).item()
    for _ in range(10):
        loss = task.loss(task.forward(network.train(), batch), batch)
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
        optimizer.step()
    assert task.loss(task.forward(network.eval(), batch), batch).item() < before


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target["kind"])
def test_what_is_stated_of_a_case_is_what_its_target_says(target: dict[str, Any]) -> None:
    more = {name: value for name, value in target.items() if name not in ("name", "kind")}
    found = make_head(target["kind"], **more).statements(torch.tensor(TRUTH[target["name"]]))
    torch.testing.assert_close(found, torch.tensor(STATEMENTS[target["name"]], dtype=torch.float32), equal_nan=True)


def test_coxs_log_risk_states_nothing() -> None:
    found = make_head("survival", unit="months", horizon=20, model="cox").statements(torch.tensor([[5.0, 1.0]]))
    assert found.isnan().all()


def test_a_heads_own_loss_is_of_what_is_known() -> None:
    outputs, holds, fails = torch.zeros(3, 2), torch.full((3, 2), 2.0), torch.full((3, 2), 10.0)
    output = with_own_loss(outputs, holds.requires_grad_(), fails)
    left, own = without_own_loss(output, 2)
    assert torch.equal(left, outputs)
    truth = torch.tensor([[1.0, 0.0], [NAN, 1.0], [NAN, NAN]])
    found = own_loss(*own.chunk(2, dim=1), truth)
    assert found.tolist() == [6, 2, 0]
    found.sum().backward()
    assert holds.grad is not None
    assert holds.grad.tolist() == [[0.5, 0], [0, 1], [0, 0]]


def test_the_tasks_loss_holds_clams_by_the_targets_weights() -> None:
    plan = _plan("clam_sb")
    task, network, batch = plan.build_task(), plan.build_network(), _batch(plan)
    for module in network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    output = task.forward(network.train(), batch)
    outputs, own = without_own_loss(output, task.out_channels)
    statements = torch.cat([torch.tensor(STATEMENTS[one["name"]]) for one in TARGETS], dim=1)
    expected, first = task.loss(outputs, batch), 0
    for target in TARGETS:
        columns = slice(first, first := first + len(STATEMENTS[target["name"]][0]))
        of_target = own_loss(*(half[:, columns] for half in own.chunk(2, dim=1)), statements[:, columns])
        expected = expected + target.get("weight", 1.0) * of_target.mean()
    torch.testing.assert_close(task.loss(output, batch), expected)
    assert expected > task.loss(outputs, batch)


def test_a_packs_loss_does_not_replace_one_of_which_the_network_has_a_part() -> None:
    with pytest.raises(ValidationError, match="beside clam_sb, which adds one of its own"):
        _plan("clam_sb", loss="mine")


def test_pooling_stands_beside_every_head_and_is_beside_itself_never() -> None:
    assert set(_plan("attention_mil", covariates=True).references()) == {"mean_pooling", "max_pooling", "table"}
    found = _plan("max_pooling").references()
    assert set(found) == {"mean_pooling"}
    mean = found["mean_pooling"]
    assert (mean.model.network, mean.task, mean.data) == ("mean_pooling", _plan("max_pooling").task, mean.data)
    assert mean.training == _plan("max_pooling").training
