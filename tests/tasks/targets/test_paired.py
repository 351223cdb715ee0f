"""Two models' difference over patients, for sums over sites."""

from __future__ import annotations

import numpy as np
import pytest

from oncofed.data.spec import DataSpec
from oncofed.tasks.differences import area_difference
from oncofed.tasks.targets import ImageTargets, ImageTargetsSpec
from oncofed.tasks.targets.outcome import TargetOutcome

SETTINGS = ImageTargetsSpec.model_validate(
    {"targets": [{"name": "lump", "kind": "class", "classes": ["absent", "present"]}]}
)
TASK = ImageTargets(SETTINGS, DataSpec(dataset="any", patch=(32, 32)))


def outcomes(likely: np.ndarray, labels: np.ndarray) -> list[tuple[str, TargetOutcome]]:
    return [
        (f"{number:03}", TargetOutcome({"lump": np.array([1 - p, p])}, {"lump": (float(label),)}))
        for number, (p, label) in enumerate(zip(likely, labels, strict=True))
    ]


@pytest.mark.parametrize("patients", [60, 300])
def test_the_jackknife_variance_is_that_of_delong(patients: int) -> None:
    rng = np.random.default_rng(2)
    labels = np.arange(patients) % 3 == 0
    first, second = (1 / (1 + np.exp(-(1.2 * labels + noise * rng.normal(size=patients)))) for noise in (1.0, 1.5))
    found = TASK.paired(outcomes(first, labels), outcomes(second, labels))
    keys = [f"{number:03}" for number in range(patients)]
    both = (np.stack([1 - likely, likely], axis=1) for likely in (first, second))
    exact = area_difference(*both, labels.astype(np.int64), keys)
    assert found
    assert found.patients == exact.patients == patients
    assert found.difference == pytest.approx(exact.difference)
    assert found.variance == pytest.approx(exact.variance, rel=0.1)


def test_too_few_patients_of_a_class_tell_nothing() -> None:
    labels = np.arange(40) < 4
    likely = np.random.default_rng(0).random(40)
    assert TASK.paired(outcomes(likely, labels), outcomes(1 - likely, labels)) is None
