"""Algorithms that need the mean alone make the same model of a masked sum."""

from __future__ import annotations

import pytest
import torch

from oncofed.algorithms import Update, algorithm_class
from secure_sums import Federation

_SITES = 4


@pytest.mark.parametrize("name", ["fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi", "scaffold"])
def test_three_rounds_equal_the_plain_ones(name: str) -> None:
    """The sum is handed on as one update with a share of 1; SCAFFOLD's controls are a second summand."""
    shapes = {"w": (20, 3), "b": (3,)}
    controls = {f"control.{key}": shape for key, shape in shapes.items()} if name == "scaffold" else {}
    sites = Federation(_SITES, shapes={**shapes, **controls}, factors={"control.": 1 / _SITES} if controls else {})
    kind = algorithm_class(name)
    plain, summed = (kind(kind.Settings(name=name), frozenset(shapes)) for _ in range(2))
    first = {key: torch.zeros(shape) for key, shape in shapes.items()}
    expected, found = dict(first), {key: value.clone() for key, value in first.items()}
    for number in (1, 2, 3):
        sites.train(number)
        made = sites.updates
        updates = [
            Update(
                site,
                {key: made[site][key].clone() for key in shapes},
                cases=sites.cases[site],
                extra={key: made[site][key].clone() for key in controls},
            )
            for site in sites.names
        ]
        expected = plain.aggregate(expected, updates, _SITES)
        mean = sites.run(number=number).mean()
        one = Update("sum", {k: mean[k] for k in shapes}, cases=1, extra={k: mean[k] for k in controls})
        found = summed.aggregate(found, [one], 1)
    for key in shapes:
        assert (found[key] - expected[key]).abs().max() < 1e-5
        assert found[key].abs().max() > 1e-2
    for key, value in plain.state.items():
        assert torch.allclose(summed.state[key], value, atol=1e-5)
