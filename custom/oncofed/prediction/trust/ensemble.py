"""How far models of one run are at odds over one case."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oncofed.prediction.model import MODEL_FOLDER, TrainedModel
from oncofed.tasks.inferred import ClassScores, Inferred, LabelMap, ObjectMap
from oncofed.tasks.overlap import confusion, dice

_KEPT = ("baselines", "folds")
# It saw all sites' data, as the model itself did.
_NO_MEMBER = "pooled"


@dataclass(frozen=True)
class Disagreement:
    """How far models differ over one case.

    Attributes:
        mean: 0 (all alike) to 1; None where none of them found anything.
        by_class: the same for each class that one of them found.
        from_model: how far each member is from the model that predicts.
    """

    mean: float | None
    by_class: Mapping[str, float] = field(default_factory=dict)
    from_model: Mapping[str, float] = field(default_factory=dict)

    def beyond(self, limit: float) -> tuple[str, ...]:
        """Return the members that are at least so far from the model."""
        return tuple(name for name, distance in self.from_model.items() if distance >= limit)


def ensemble_members(model: TrainedModel) -> dict[str, Path]:
    """Return the files of weights beside a model that are of the same run: of sites alone and of folds, by name."""
    if model.members:
        return dict(model.members)
    files = [file for kept in _KEPT for file in sorted((model.folder / MODEL_FOLDER / kept).glob("*.safetensors"))]
    return {file.stem: file for file in files if file.stem != _NO_MEMBER}


def disagreement(
    found: Inferred, others: Mapping[str, Inferred], classes: Mapping[int, str], temperature: float = 1.0
) -> Disagreement:
    """Return how far a model and the other members of its run differ.

    Of maps: the mean over all pairs of models of one minus Dice, by class, and the mean of the classes (after Roy et
    al., NeuroImage 2019). Of classes: the entropy of the mean of all models' probabilities less the mean of their
    entropies, which is their Jensen-Shannon divergence, divided by the largest that there can be.

    Args:
        found: by the model.
        others: by each member, of the same case.
        classes: label value -> name.
        temperature: by which logits are divided.
    """
    if isinstance(found, ClassScores):
        likely = {name: one.probabilities(temperature) for name, one in others.items() if isinstance(one, ClassScores)}
        own = found.probabilities(temperature)
        pairs = {name: _divergence(np.stack([own, one])) for name, one in likely.items()}
        return Disagreement(_divergence(np.stack([own, *likely.values()])), {}, pairs)
    names = classes if isinstance(found, LabelMap) else {1: classes[1]}
    maps = {"": _labels(found)} | {name: _labels(one) for name, one in others.items()}
    distances = {
        (a, b): _distances(maps[a], maps[b], names)
        for a, b in itertools.combinations(maps, 2)  # the model first
    }
    by_class = {}
    for number, name in enumerate(names.values()):
        known = [one[number] for one in distances.values() if not math.isnan(one[number])]
        if known:
            by_class[name] = float(np.mean(known))
    from_model = {b: _mean(one) for (a, b), one in distances.items() if not a}
    return Disagreement(
        float(np.mean(list(by_class.values()))) if by_class else None,
        by_class,
        {name: distance for name, distance in from_model.items() if distance is not None},
    )


def _labels(found: Inferred) -> Tensor:
    if isinstance(found, LabelMap):
        return found.values.cpu()
    assert isinstance(found, ObjectMap)
    return torch.from_numpy((found.numbers > 0).astype(np.uint8))


def _distances(one: Tensor, other: Tensor, classes: Mapping[int, str]) -> list[float]:
    """Return one minus Dice of each class; NaN where neither has it."""
    return [1 - float(value) for value in dice(confusion(one, other, len(classes) + 1))]


def _mean(values: list[float]) -> float | None:
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else None


def _divergence(likely: NDArray[np.float64]) -> float:
    """Return the Jensen-Shannon divergence of rows of probabilities, (model, class), 0 to 1."""
    largest = math.log(max(min(likely.shape), 2))
    between = _entropy(likely.mean(axis=0)) - float(np.mean([_entropy(row) for row in likely]))
    return float(np.clip(between / largest, 0, 1))


def _entropy(likely: NDArray[np.float64]) -> float:
    there = likely[likely > 0]
    return float(-(there * np.log(there)).sum())
