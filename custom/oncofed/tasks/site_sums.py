"""A site's counts and sums for pooled figures.

Each is of at least five patients. If the difference of two numbers would tell of fewer, the smaller one is not sent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oncofed.suppression import LEAST_PATIENTS, withheld_groups
from oncofed.tasks.calibration import log_losses, tempered
from oncofed.tasks.differences import share_below
from oncofed.tasks.pooled import cells_of

# More groups of confidence would not make a diagram clearer.
_MOST_GROUPS = 20
# Further digits could carry hidden information.
DIGITS, DIGITS_OF_FIGURES = 2, 4


def grouped(
    probabilities: NDArray[np.float64], labels: NDArray[np.int64], patients: Sequence[str]
) -> tuple[NDArray[np.float64], NDArray[np.int64], list[str]]:
    """Return mean probabilities, classes and patients' keys.

    A patient's images of one class count as one.

    Args:
        probabilities: (image, class).
        labels: true classes, (image,).
        patients: key of each image's patient.

    Returns:
        (group, class), (group,), and a key for each group; a patient with images of two classes has two.
    """
    numbers: dict[tuple[str, int], int] = {}
    of_group = [
        numbers.setdefault((patient, int(label)), len(numbers)) for patient, label in zip(patients, labels, strict=True)
    ]
    means = np.zeros((len(numbers), probabilities.shape[1]))
    if numbers:
        np.add.at(means, of_group, probabilities)
        means /= np.bincount(of_group)[:, None]
    return means, np.array([label for _, label in numbers], dtype=np.int64), [patient for patient, _ in numbers]


def classification_sums(
    probabilities: NDArray[np.float64],
    labels: NDArray[np.int64],
    patients: Sequence[str],
    classes: Mapping[int, str],
    temperature: float | None = None,
) -> dict[str, Any] | None:
    """Return a classifier's counts and sums; None for too few.

    A patient's images of one class count as one, by their mean probabilities, as in ``Classification.summarise``.

    Args:
        probabilities: (image, class), without temperature.
        labels: true classes, (image,).
        patients: key of each image's patient.
        classes: value -> name.
        temperature: of the model; None: not known.

    Returns:
        patients: their number; classes: name -> input of ``ranking`` for a site; reliability: rows of
        [patients, correct ones, sum of confidence, the same with temperature], and sums of Brier's score and
        the negative log likelihood, without temperature and with it.
    """
    if len(set(patients)) < LEAST_PATIENTS:
        return None
    first, truth, keys = grouped(probabilities, labels, patients)
    found = [first]
    if temperature is not None:
        found.append(grouped(tempered(probabilities, temperature), labels, patients)[0])
    return {
        "patients": len(set(patients)),
        "classes": _by_class(found[0], truth, keys, classes),
        "reliability": _sureness(found, truth, keys),
    }


def figure_sums(values: Mapping[str, Mapping[str, float]], whole: str) -> dict[str, Any] | None:
    """Return sums of patients' figures; None for too few.

    Args:
        values: name of a figure -> patient -> value.
        whole: the figure that all patients have, a mean of the others. Others that would tell of few patients next to
            it are not sent (``suppression.withheld_groups``).

    Returns:
        patients: their number; figures: name -> [patients, sum, sum of squares].
    """
    people = len(values.get(whole, {}))
    if people < LEAST_PATIENTS:
        return None
    groups = {name: set(of) for name, of in values.items() if name != whole}
    hidden = withheld_groups(groups, LEAST_PATIENTS, set(values[whole]))
    kept = {name: list(of.values()) for name, of in values.items() if name not in hidden}
    return {
        "patients": people,
        "figures": {
            name: [
                len(v),
                round(float(np.sum(v)), DIGITS_OF_FIGURES),
                round(float(np.square(v).sum()), DIGITS_OF_FIGURES),
            ]
            for name, v in kept.items()
        },
    }


def _by_class(
    found: NDArray[np.float64], truth: NDArray[np.int64], keys: Sequence[str], classes: Mapping[int, str]
) -> dict[str, dict[str, Any]]:
    """Return cells of patients with and without each class.

    Of two classes only the second: the first follows from it.
    """
    cells = {}
    hidden = _hidden(Counter(truth.tolist()))
    for value in sorted(classes)[1:] if len(classes) == 2 else sorted(classes):
        is_it = truth == value
        ill, well = ([keys[index] for index in np.flatnonzero(kind).tolist()] for kind in (is_it, ~is_it))
        if value in hidden or any(0 < len(set(people)) < LEAST_PATIENTS for people in (ill, well)):
            continue
        cells[classes[value]] = ranked(found[:, value], is_it, keys)
    return cells


def ranked(likely: NDArray[np.float64], is_it: NDArray[np.bool_], keys: Sequence[str]) -> dict[str, Any]:
    """Return the input of ``pooled.ranking`` for a site.

    Args:
        likely: probability of the class, (group,).
        is_it: whether the group has it, (group,).
        keys: key of each group's patient.
    """
    ill, well = ([keys[index] for index in np.flatnonzero(kind).tolist()] for kind in (is_it, ~is_it))
    ahead = share_below(likely[is_it], np.sort(likely[~is_it])).sum() * len(well) if ill and well else 0.0
    return {
        "with": cells_of(likely[is_it], ill),
        "without": cells_of(likely[~is_it], well),
        "pairs": round(float(ahead) * 2) / 2,
    }


def _hidden(counts: Counter[int]) -> set[int]:
    """Return classes to withhold.

    Those with too few patients, and a further one if the remainder would reveal them: it follows from the other counts
    and the total (complementary suppression).
    """
    ordered = sorted((count, value) for value, count in counts.items())
    hidden: set[int] = set()
    total = 0
    for count, value in ordered:
        if count >= LEAST_PATIENTS and (not total or total >= LEAST_PATIENTS):
            break
        hidden.add(value)
        total += count
    return hidden


def _sureness(
    found: Sequence[NDArray[np.float64]], truth: NDArray[np.int64], keys: Sequence[str]
) -> dict[str, list[Any]]:
    """Return patients grouped by confidence, and total sums.

    Groups are the same with and without temperature: different ones would tell of patients that moved.
    """
    predicted = found[0].argmax(axis=1)
    places = np.arange(len(truth))
    order = np.argsort(-found[0][places, predicted], kind="stable")
    sums = np.stack(
        [np.ones(len(truth)), predicted == truth, *(probabilities[places, predicted] for probabilities in found)],
        axis=1,
    )
    least = max(LEAST_PATIENTS, -(-len(truth) // _MOST_GROUPS))
    rows: list[NDArray[np.float64]] = []
    begun = 0
    for end in range(1, len(order) + 1):
        group = order[begun:end]
        if len(group) >= least and len({keys[index] for index in group}) >= LEAST_PATIENTS:
            rows.append(sums[group].sum(axis=0))
            begun = end
    if begun < len(order) and rows:
        rows[-1] = rows[-1] + sums[order[begun:]].sum(axis=0)
    right = np.eye(found[0].shape[1])[truth]
    return {
        "cells": [[int(row[0]), int(row[1]), *(round(float(value), DIGITS) for value in row[2:])] for row in rows],
        "brier": [round(float(np.square(probabilities - right).sum()), DIGITS) for probabilities in found],
        "log_loss": [round(float(log_losses(probabilities, truth).sum()), DIGITS) for probabilities in found],
    }
