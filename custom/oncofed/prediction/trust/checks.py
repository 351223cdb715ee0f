"""When not to trust a prediction: an image unlike those of the training, a network that is unsure, models at odds.

The README of this package says how each figure is found, and what it does not tell.
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
from oncofed.prediction.trust.ensemble import Disagreement, disagreement, ensemble_members
from oncofed.prediction.trust.out_of_distribution import Deviation, find_deviations
from oncofed.tasks.entropy import mean_entropy
from oncofed.tasks.inferred import ClassScores, Inferred, LabelMap

Verdict = Literal["ok", "look", "outside"]

# From here on a person is asked to look. Of maps the entropy is a mean over edges too, where it is never small.
LOOK_ENTROPY_CLASSES, LOOK_ENTROPY_MAPS = 0.8, 0.5
# Of maps one minus Dice; of classes what the ensemble is less sure of than its members are on average.
LOOK_DISAGREEMENT_MAPS, LOOK_DISAGREEMENT_CLASSES = 0.3, 0.2


@dataclass(frozen=True)
class Trust:
    """What is known of how far one prediction can be trusted.

    Attributes:
        verdict: "outside": the image is unlike those the model learned from; "look": the network is unsure, or models
            of the same run are at odds; "ok": neither, as far as is known.
        outside: in which the image is unlike them.
        not_known: traits of which this could not be told: the file does not say, or too few patients stand behind it.
        entropy: mean predictive entropy, 0 (sure) to 1; None where nothing was found, or the task does not tell it.
        disagreement: of an ensemble, 0 (all alike) to 1; None without one.
        disagreement_by_class: the same for each class of a segmentation.
        members: models beside the one that predicts, by name.
        outside_members: those that differ from it by as much as has a person look.
        unsure: the entropy is what has a person look.
        at_odds: the disagreement is.
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
        """In words: why it is not to be trusted; empty where nothing speaks against it."""
        said = [reason.words for reason in self.outside]
        if self.verdict == "look" and self.unsure and self.entropy is not None:
            said.append(f"the network is unsure (entropy {self.entropy:.2f} of 1)")
        if self.verdict == "look" and self.at_odds and self.disagreement is not None:
            said.append(f"models of the run differ (by {self.disagreement:.2f} of 1)")
        return tuple(said)

    def to_json(self) -> dict[str, Any]:
        """Return it as values that JSON has, with ``reasons``."""
        return {**dataclasses.asdict(self), "reasons": self.reasons}


class TrustChecks:
    """Looks at each case of a model before and after it is predicted.

    Args:
        model: that predicts.
        device: where it does.
        ensemble: also let the run's other models predict, where it kept them: each takes as long as the model itself.

    Raises:
        SpecError: the model's profile of training images cannot be read.
    """

    def __init__(self, model: TrainedModel, device: torch.device, ensemble: bool = True) -> None:
        self._model, self._device, self._temperature = model, device, model.task.temperature
        self._files: Mapping[str, Path] = ensemble_members(model) if ensemble else {}
        folders = (model.folder / MODEL_FOLDER, model.folder)
        profiles = (read_training_profile(folder) for folder in folders)
        self.profile: TrainingProfile | None = next((profile for profile in profiles if profile), None)

    @property
    def members(self) -> tuple[str, ...]:
        """Names of the models whose disagreement is measured: with n of them a case takes n + 1 times as long."""
        return tuple(self._files)

    def before(self, source: Source) -> tuple[tuple[Deviation, ...], tuple[str, ...]]:
        """Return in which an image is unlike those of the training, and what could not be told.

        Args:
            source: as it was registered; what registering did not find is measured now.
        """
        data = self._model.job.data
        return find_deviations(traits_of(_measured(source), data), source.entry.modality, data, self.profile)

    def after(
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
            prepared: as the network had it.
            found: with its entropy, where that is to be judged; see ``Task.infer_all``.
            probabilities: calibrated, of a class each; None: those of ``found``.
            before: what ``before`` returned; None: it is looked at now.
        """
        outside, not_known = before or self.before(source)
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
            unsure=_is_unsure(classes, entropy),
            at_odds=_differ(classes, at_odds),
        )

    def _entropy(self, found: Inferred, probabilities: NDArray[np.float64] | None) -> float | None:
        if isinstance(found, ClassScores):
            return entropy_of(found.probabilities(self._temperature) if probabilities is None else probabilities)
        if found.entropy is None:
            return None
        labels = found.values if isinstance(found, LabelMap) else torch.from_numpy(found.numbers)
        return mean_entropy(labels.to(found.entropy.device), found.entropy)

    @cached_property
    def _networks(self) -> dict[str, nn.Module]:
        job, device = self._model.job, self._device
        return {name: network_of(job, read_weights(path), device) for name, path in self._files.items()}

    def _disagreement(self, prepared: Prepared, found: Inferred) -> Disagreement | None:
        if not self._files:
            return None
        task, device = self._model.task, self._device
        others = {name: task.infer(network, prepared, device) for name, network in self._networks.items()}
        return disagreement(found, others, task.classes, self._temperature)


def verdict_of(
    outside: tuple[Deviation, ...], classes: bool, entropy: float | None, at_odds: Disagreement | None
) -> Verdict:
    """Return what is to be done with a prediction; ``classes``: it is of an image or a slide as a whole."""
    if outside:
        return "outside"
    return "look" if _is_unsure(classes, entropy) or _differ(classes, at_odds) else "ok"


def entropy_of(probabilities: NDArray[np.float64]) -> float:
    """Return the entropy of probabilities, (class,), divided by that of classes all as likely: 0 to 1."""
    likely = probabilities[probabilities > 0]
    return float(max(-(likely * np.log(likely)).sum(), 0.0) / math.log(max(len(probabilities), 2)))


def _is_unsure(classes: bool, entropy: float | None) -> bool:
    return entropy is not None and entropy >= (LOOK_ENTROPY_CLASSES if classes else LOOK_ENTROPY_MAPS)


def _differ(classes: bool, at_odds: Disagreement | None) -> bool:
    return at_odds is not None and at_odds.mean is not None and at_odds.mean >= _limit(classes)


def _limit(classes: bool) -> float:
    return LOOK_DISAGREEMENT_CLASSES if classes else LOOK_DISAGREEMENT_MAPS


def _measured(source: Source) -> Entry:
    """Return a source's facts, with those of its image that registering did not find."""
    entry = source.entry
    if entry.tiles or (entry.shape and entry.thumbnail and intensity_of_image(entry)):
        return entry
    try:
        found = measure(source.case.read_image(), None)
    except DataError:  # then there is nothing to predict either
        return entry
    return entry.model_copy(update={**found, "image_intensity": found.get("intensity")})
