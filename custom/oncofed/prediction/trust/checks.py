"""Checks trust: out of distribution, uncertainty, disagreement.

The README of this package describes each measure and its limits.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from oncofed.artifacts.training_profile import TrainingProfile, read_training_profile
from oncofed.data.case_facts import measure
from oncofed.data.inputs import Prepared
from oncofed.data.manifest import Entry
from oncofed.data.traits import intensity_of_image, traits_of
from oncofed.errors import DataError
from oncofed.prediction.model import MODEL_FOLDER, TrainedModel, network_of, read_weights
from oncofed.prediction.sources import Source
from oncofed.prediction.trust.ensemble import (
    Disagreement,
    disagreement,
    disagreement_of_targets,
    ensemble_members,
    shannon_entropy,
)
from oncofed.prediction.trust.out_of_distribution import Deviation, find_deviations
from oncofed.tasks.entropy import mean_entropy
from oncofed.tasks.inferred import ClassScores, FoundBoxes, Inferred, LabelMap, ObjectMap, TargetScores
from oncofed.tasks.slide_strips import SlideMap
from oncofed.tasks.targets import TargetsTask

Verdict = Literal["ok", "look", "outside"]

# Thresholds of the verdict "look". A map's entropy includes edges, where it is never small.
LOOK_ENTROPY_CLASSES, LOOK_ENTROPY_MAPS = 0.8, 0.5
# One minus Dice for maps; for targets the difference of a number, as a share of its scale; for classes the ensemble's
# entropy minus its members' mean entropy.
LOOK_DISAGREEMENT_MAPS, LOOK_DISAGREEMENT_CLASSES = 0.3, 0.2


@dataclass(frozen=True)
class Trust:
    """How far one prediction can be trusted.

    Attributes:
        verdict: "outside": the image deviates from the training images; "look": the network is uncertain, or models of
            the same run disagree; "ok": neither, as far as known.
        outside: deviations from the training images.
        not_known: traits that could not be checked: missing in the file, or too few training patients.
        entropy: mean predictive entropy, 0 (certain) to 1; None if nothing was found, or the task has none.
        disagreement: of an ensemble, 0 (equal) to 1; None without one.
        disagreement_by_class: the same for each class of a segmentation, or each target.
        members: names of the further models.
        outside_members: members whose disagreement reaches the threshold.
        unsure: the entropy reaches its threshold.
        at_odds: the disagreement reaches its threshold.
    """

    verdict: Verdict
    outside: tuple[Deviation, ...] = ()
    not_known: tuple[str, ...] = ()
    entropy: float | None = None
    disagreement: float | None = None
    disagreement_by_class: Mapping[str, float] = field(default_factory=dict)
    members: tuple[str, ...] = ()
    outside_members: tuple[str, ...] = ()
    unsure: bool = False
    at_odds: bool = False

    @property
    def reasons(self) -> tuple[str, ...]:
        """Reasons for caution in words; empty if none."""
        words = [reason.words for reason in self.outside]
        if self.verdict == "look" and self.unsure and self.entropy is not None:
            words.append(f"the network is unsure (entropy {self.entropy:.2f} of 1)")
        if self.verdict == "look" and self.at_odds and self.disagreement is not None:
            words.append(f"models of the run differ (by {self.disagreement:.2f} of 1)")
        return tuple(words)

    def to_json(self) -> dict[str, Any]:
        """Return JSON values, with ``reasons``."""
        return {**dataclasses.asdict(self), "reasons": self.reasons}


class TrustChecks:
    """Checks each case before and after prediction.

    Args:
        model: model that predicts.
        device: to compute on.
        ensemble: also run the run's other models if kept; each takes as long as the model itself.

    Raises:
        SpecError: the model's training profile cannot be read.
    """

    def __init__(self, model: TrainedModel, device: torch.device, ensemble: bool = True) -> None:
        self._model, self._device, self._temperature = model, device, model.task.temperature
        self._files: Mapping[str, Path] = ensemble_members(model) if ensemble else {}
        folders = (model.folder / MODEL_FOLDER, model.folder)
        profiles = (read_training_profile(folder) for folder in folders)
        self.profile: TrainingProfile | None = next((profile for profile in profiles if profile), None)

    @property
    def members(self) -> tuple[str, ...]:
        """Names of the ensemble members.

        With n members a case takes n + 1 times as long.
        """
        return tuple(self._files)

    def check_image(self, source: Source) -> tuple[tuple[Deviation, ...], tuple[str, ...]]:
        """Return an image's deviations from training, and unknown traits.

        Args:
            source: as registered; missing facts are measured now.
        """
        data = self._model.job.data
        return find_deviations(traits_of(_measured(source), data), source.entry.modality, data, self.profile)

    def check_prediction(
        self,
        source: Source,
        prepared: Prepared,
        found: Inferred,
        probabilities: NDArray[np.float64] | None = None,
        before: tuple[tuple[Deviation, ...], tuple[str, ...]] | None = None,
    ) -> Trust:
        """Return how far a prediction can be trusted.

        Args:
            source: the case.
            prepared: the network's input.
            found: with its entropy, if that is to be checked; see ``Task.infer_all``.
            probabilities: calibrated, (class,); None: those of ``found``.
            before: result of ``check_image``; None: computed now.
        """
        outside, not_known = before or self.check_image(source)
        entropy = self._entropy(found, probabilities)
        at_odds = self._disagreement(prepared, found)
        classes = isinstance(found, ClassScores)
        return Trust(
            verdict=verdict_of(outside, classes, entropy, at_odds),
            outside=outside,
            not_known=not_known,
            entropy=entropy,
            disagreement=at_odds.mean if at_odds else None,
            disagreement_by_class=at_odds.by_class if at_odds else {},
            members=self.members,
            outside_members=at_odds.beyond(_limit(classes)) if at_odds else (),
            unsure=_is_uncertain(classes, entropy),
            at_odds=_members_disagree(classes, at_odds),
        )

    def _entropy(self, found: Inferred, probabilities: NDArray[np.float64] | None) -> float | None:
        if isinstance(found, ClassScores):
            return entropy_of(found.probabilities(self._temperature) if probabilities is None else probabilities)
        if not isinstance(found, LabelMap | ObjectMap) or found.entropy is None:
            return None
        labels = found.values if isinstance(found, LabelMap) else torch.from_numpy(found.numbers)
        return mean_entropy(labels.to(found.entropy.device), found.entropy)

    @cached_property
    def _networks(self) -> dict[str, nn.Module]:
        job, device = self._model.job, self._device
        return {name: network_of(job, read_weights(path), device) for name, path in self._files.items()}

    def _disagreement(self, prepared: Prepared, found: Inferred) -> Disagreement | None:
        if not self._files or isinstance(found, FoundBoxes | SlideMap):
            return None
        task, device = self._model.task, self._device
        others = {name: task.infer(network, prepared, device) for name, network in self._networks.items()}
        if isinstance(found, TargetScores):
            assert isinstance(task, TargetsTask)
            answered = {"": found, **{name: one for name, one in others.items() if isinstance(one, TargetScores)}}
            return disagreement_of_targets({name: task.shares(one) for name, one in answered.items()})
        return disagreement(found, others, task.classes, self._temperature)


def verdict_of(
    outside: tuple[Deviation, ...], classes: bool, entropy: float | None, at_odds: Disagreement | None
) -> Verdict:
    """Return the verdict; ``classes``: a classification."""
    if outside:
        return "outside"
    return "look" if _is_uncertain(classes, entropy) or _members_disagree(classes, at_odds) else "ok"


def entropy_of(probabilities: NDArray[np.float64]) -> float:
    """Return the normalised entropy of probabilities, 0 to 1."""
    return max(shannon_entropy(probabilities), 0.0) / math.log(max(len(probabilities), 2))


def _is_uncertain(classes: bool, entropy: float | None) -> bool:
    return entropy is not None and entropy >= (LOOK_ENTROPY_CLASSES if classes else LOOK_ENTROPY_MAPS)


def _members_disagree(classes: bool, at_odds: Disagreement | None) -> bool:
    return at_odds is not None and at_odds.mean is not None and at_odds.mean >= _limit(classes)


def _limit(classes: bool) -> float:
    return LOOK_DISAGREEMENT_CLASSES if classes else LOOK_DISAGREEMENT_MAPS


def _measured(source: Source) -> Entry:
    """Return a source's facts, completed from its image."""
    entry = source.entry
    if entry.tiles or entry.features or (entry.shape and entry.thumbnail and intensity_of_image(entry)):
        return entry
    try:
        found = measure(source.case.read_image(), None)
    except DataError:  # then there is nothing to predict either
        return entry
    return entry.model_copy(update={**found, "image_intensity": found.get("intensity")})
