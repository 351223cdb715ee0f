"""What secure aggregation asks of a job and its algorithm."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from oncofed.algorithms import Update, algorithm_names
from oncofed.algorithms.plan import FederationPlan
from oncofed.algorithms.scaffold import Scaffold
from oncofed.algorithms.sums import FACTORS, summands, update_of_sum

_MASKED = {"secure_aggregation": {}}


@pytest.mark.parametrize("strategy", ["median", "trimmed_mean", "krum", "cyclic", "swarm", "fedbuff"])
def test_algorithms_that_need_single_updates_are_refused(strategy: str) -> None:
    settings = {"name": "fedbuff", "buffer": 2} if strategy == "fedbuff" else strategy
    with pytest.raises(ValidationError, match="take fedavg"):
        FederationPlan.model_validate({**_MASKED, "strategy": settings})


def test_every_other_algorithm_is_taken() -> None:
    refused = {"median", "trimmed_mean", "krum", "cyclic", "swarm", "fedbuff"}
    for name in set(algorithm_names()) - refused:
        FederationPlan.model_validate({**_MASKED, "strategy": name})


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"evaluation": {"cross_site": True}}, "under masks nobody has it"),
        ({"exchange": {"update": "bfloat16"}}, "cannot be rounded off"),
        ({"rounds": {"quorum": 2}}, "at least the 3 sites of a sum"),
        ({"rounds": {"sites_per_round": 2}}, "at least the 3 sites of a sum"),
        ({"secure_aggregation": {"minimum_sites": 2}}, "greater than or equal to 3"),
    ],
)
def test_settings_that_masks_rule_out_are_refused(section: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        FederationPlan.model_validate({**_MASKED, **section})


def test_scaffolds_controls_are_summed_beside_the_mean() -> None:
    layout = {"w": torch.zeros(2)}
    models = {}
    shares = {"a": 0.75, "b": 0.25}
    deltas = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0, -1.0])}
    controls = {"a": torch.tensor([0.5, 0.0]), "b": torch.tensor([0.25, 1.0])}
    for way in ("single", "sum"):
        algorithm = Scaffold(Scaffold.Settings(name="scaffold"), frozenset({"w"}))
        updates = [
            Update(site, {"w": deltas[site]}, int(100 * shares[site]), extra={"control.w": controls[site]})
            for site in shares
        ]
        if way == "sum":
            total: dict[str, torch.Tensor] = {}
            for one in updates:
                for name, value in summands(algorithm, dict(one.delta), dict(one.extra), {"w"}).items():
                    factor = next((f for prefix, f in FACTORS.items() if name.startswith(prefix)), shares[one.site])
                    total[name] = total.get(name, torch.zeros_like(value)) + factor * value
            assert set(total) == {"w", "extra.control.w"}
            updates = [update_of_sum(total, layout, updates)]
        models[way] = algorithm.aggregate(dict(layout), updates, sites=4), algorithm.state
    for single, summed in zip(models["single"], models["sum"], strict=True):
        torch.testing.assert_close(single, summed)
