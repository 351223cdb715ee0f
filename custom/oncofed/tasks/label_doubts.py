"""Cases whose labels disagree with a model's answers.

For classes by confident learning (Northcutt et al., JAIR 2021): a label is in doubt where another class is as probable
as it usually is for images of that class. For masks where the agreement is unusually low for the dataset, by median and
median absolute deviation (Iglewicz and Hoaglin, 1993), and the more, the surer the model is of its answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from oncofed.data.case import Case
from oncofed.tasks.base import Task
from oncofed.tasks.classification import Classification, Classified

# A normal distribution's standard deviation, in median absolute deviations, and how many of them are unusual.
_DEVIATIONS, _UNUSUAL = 1.4826, 3.5
# Where a model agrees with most labels alike, a difference of which nothing follows is not unusual.
_LEAST_SPREAD = 0.02
_FEWEST = 5  # cases of which an agreement can be unusual


@dataclass(frozen=True)
class LabelDoubt:
    """How far a case's label disagrees with a model's answer.

    Attributes:
        case: its name.
        score: of the case, such as Dice, or the probability of its class; higher is better.
        certainty: how sure the model is of its own answer, 0 to 1; None: it does not say.
        answer: the class that the model would give; empty for masks.
        doubt: by which cases are sorted, the greatest first.
        suspected: somebody should look at the label.
    """

    case: str
    score: float
    certainty: float | None
    answer: str
    doubt: float
    suspected: bool


def label_doubts(
    task: Task[Any],
    network: nn.Module,
    cases: Sequence[Case],
    device: torch.device,
    *,
    should_stop: Callable[[], bool] = bool,
    progress: Callable[[int, int], None] | None = None,
) -> list[LabelDoubt]:
    """Return every case whose label can be compared, the most doubtful first.

    Args:
        task: that the network learned.
        network: on ``device``; it is left in evaluation mode.
        cases: of one site.
        device: where the network is.
        should_stop: called before each case; true ends it early.
        progress: called with (cases done, cases in all).
    """
    outcomes: list[tuple[str, Any]] = []
    found: list[tuple[Case, Any, float | None]] = []
    network.eval()
    for number, case in enumerate(cases):
        if should_stop():
            return []
        outcomes.clear()
        task.evaluate(network, [case], device, keep=outcomes)
        if outcomes:
            found.append((case, outcomes[0][1], task.certainty(network, case, device)))
        if progress:
            progress(number + 1, len(cases))
    doubts = _of_classes(task, found) if isinstance(task, Classification) else _of_agreement(task, found)
    return sorted(doubts, key=lambda one: (not one.suspected, -one.doubt, one.case))


def _of_classes(task: Classification, found: Sequence[tuple[Case, Classified, float | None]]) -> list[LabelDoubt]:
    if not found:
        return []
    probabilities = np.array([outcome.probabilities for _, outcome, _ in found])
    labels = np.array([outcome.label for _, outcome, _ in found])
    likelier = _confident(probabilities, labels)
    doubts = []
    for (case, outcome, _), other in zip(found, likelier, strict=True):
        own = float(outcome.probabilities[outcome.label])
        answer = int(np.argmax(outcome.probabilities))
        best_other = float(np.delete(outcome.probabilities, outcome.label).max())
        name, sure = task.classes[answer], float(outcome.probabilities[answer])
        doubts.append(LabelDoubt(case.name, own, sure, name, best_other - own, bool(other)))
    return doubts


def _confident(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which images are confidently of another class than their label says.

    Args:
        probabilities: (image, class).
        labels: (image,).
    """
    classes = range(probabilities.shape[1])
    # A class that no label names is never as probable as usual.
    usual = np.array([probabilities[labels == k, k].mean() if (labels == k).any() else np.inf for k in classes])
    among = np.where(probabilities >= usual, probabilities, -np.inf)
    return np.asarray((among.max(axis=1) > -np.inf) & (among.argmax(axis=1) != labels))


def _of_agreement(task: Task[Any], found: Sequence[tuple[Case, Any, float | None]]) -> list[LabelDoubt]:
    known = [(case, score, sure) for case, outcome, sure in found if (score := task.case_score(outcome)) is not None]
    known = [(case, score, sure) for case, score, sure in known if not np.isnan(score)]
    scores = np.array([score for _, score, _ in known])
    usual = float(np.median(scores)) if len(scores) else 0.0
    spread = max(_LEAST_SPREAD, _DEVIATIONS * float(np.median(np.abs(scores - usual)))) if len(scores) else 0.0
    doubts = []
    for case, score, sure in known:
        away = usual - score
        unusual = len(known) >= _FEWEST and away > _UNUSUAL * spread
        doubts.append(LabelDoubt(case.name, score, sure, "", away * (1.0 if sure is None else sure), unusual))
    return doubts
