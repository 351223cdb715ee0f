"""Disagreement of models of one run."""

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
from oncofed.training.plan import REFERENCES

_KEPT = ("baselines", "folds")
# Trained on all sites' data, as the model itself; and models of other networks.
_NO_MEMBERS = frozenset({"pooled", *REFERENCES})


@dataclass(frozen=True)
class Disagreement:
    """How far models differ on one case.

    Attributes:
        mean: 0 (equal) to 1; None if no model found anything.
        by_class: the same for each class that any model found.
        from_model: each member's distance from the predicting model.
    """

    mean: float | None
    by_class: Mapping[str, float] = field(default_factory=dict)
    from_model: Mapping[str, float] = field(default_factory=dict)

    def beyond(self, limit: float) -> tuple[str, ...]:
        """Return the members at least ``limit`` from the model."""
        return tuple(name for name, distance in self.from_model.items() if distance >= limit)


def ensemble_members(model: TrainedModel) -> dict[str, Path]:
    """Return weight files of the same run: sites alone, folds."""
    if model.members:
        return dict(model.members)
    files = [file for kept in _KEPT for file in sorted((model.folder / MODEL_FOLDER / kept).glob("*.safetensors"))]
    return {file.stem: file for file in files if file.stem not in _NO_MEMBERS}


def disagreement(
    found: Inferred, others: Mapping[str, Inferred], classes: Mapping[int, str], temperature: float = 1.0
) -> Disagreement:
    """Return how far a model and its ensemble members differ.

    Of maps: the mean over all pairs of models of one minus Dice, by class, and the mean of the classes (after Roy et
    al., NeuroImage 2019). Of classes: the entropy of the mean of all models' probabilities less the mean of their
    entropies, which is their Jensen-Shannon divergence, divided by the largest that there can be.

    Args:
        found: prediction of the model.
        others: predictions of each member for the same case.
        classes: label value -> name.
        temperature: divides the logits.
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


def disagreement_of_targets(shares: Mapping[str, Mapping[str, NDArray[np.float64]]]) -> Disagreement:
    """Return how far a model and its ensemble members differ in named targets.

    Of a target: the mean over all pairs of models of the largest difference between its numbers.

    Args:
        shares: model, the predicting one first, -> target -> numbers as shares of what they may span, (number,).
    """
    own = next(iter(shares))
    apart = {
        (a, b): {name: float(np.abs(shares[a][name] - shares[b][name]).max()) for name in shares[own]}
        for a, b in itertools.combinations(shares, 2)
    }
    if not shares[own]:
        return Disagreement(None)
    by_target = {name: float(np.mean([of[name] for of in apart.values()])) for name in shares[own]}
    from_model = {b: float(np.mean(list(of.values()))) for (a, b), of in apart.items() if a == own}
    return Disagreement(float(np.mean(list(by_target.values()))), by_target, from_model)


def _labels(found: Inferred) -> Tensor:
    if isinstance(found, LabelMap):
        return found.values.cpu()
    assert isinstance(found, ObjectMap)
    return torch.from_numpy((found.numbers > 0).astype(np.uint8))


def _distances(one: Tensor, other: Tensor, classes: Mapping[int, str]) -> list[float]:
    """Return each class's one minus Dice, NaN if absent."""
    counts = confusion(one, other, len(classes) + 1)
    return [1 - dice(counts, (value,)) for value in range(1, len(classes) + 1)]


def _mean(values: list[float]) -> float | None:
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else None


def _divergence(likely: NDArray[np.float64]) -> float:
    """Return the normalised Jensen-Shannon divergence of (model, class)."""
    largest = math.log(max(min(likely.shape), 2))
    between = shannon_entropy(likely.mean(axis=0)) - float(np.mean([shannon_entropy(row) for row in likely]))
    return float(np.clip(between / largest, 0, 1))


def shannon_entropy(likely: NDArray[np.float64]) -> float:
    """Return the entropy of probabilities in nats."""
    positive = likely[likely > 0]
    return float(-(positive * np.log(positive)).sum())
