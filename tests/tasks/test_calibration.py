"""A temperature over several sites' patients, from sums."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from oncofed.data.spec import DataSpec
from oncofed.errors import SpecError
from oncofed.tasks import Classification, ClassificationSpec
from oncofed.tasks.calibration import (
    STEP,
    TEMPERATURES,
    learned,
    log_losses,
    lowest,
    read_calibration,
    temperature_sums,
    tempered,
)
from oncofed.tasks.classification import Classified
from oncofed.tasks.inferred import ClassScores

Patients = tuple[NDArray[np.float64], NDArray[np.int64], list[str]]


def _patients(count: int, too_sure: float, seed: int, classes: int = 3) -> Patients:
    """Return predictions for patients by an overconfident model.

    Probabilities, labels and names; ``too_sure`` is the factor of overconfidence.
    """
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, (count, classes))
    shares = tempered(np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), 1.0)
    labels = np.array([rng.choice(classes, p=share) for share in shares])
    return tempered(shares, 1 / too_sure), labels, [f"{seed}-{n}" for n in range(count)]


def _directly(found: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """Return pooled patients' best temperature, by another method."""
    best = minimize_scalar(
        lambda place: log_losses(tempered(found, float(np.exp(place))), labels).sum(),
        bounds=(np.log(TEMPERATURES[0]), np.log(TEMPERATURES[-1])),
        method="bounded",
    )
    return float(np.exp(best.x))


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(5, 80), min_size=1, max_size=4),
    st.floats(0.6, 4.0),
    st.integers(0, 10_000),
)
def test_the_sum_over_sites_equals_pooled_patients(counts: list[int], too_sure: float, seed: int) -> None:
    sites = [_patients(count, too_sure, seed + n) for n, count in enumerate(counts)]
    pooled = tuple(np.concatenate([site[n] for site in sites]) for n in range(2))
    names = [name for site in sites for name in site[2]]
    exact = {f"s{n}": temperature_sums(*site, step=0) or {} for n, site in enumerate(sites)}
    together = temperature_sums(pooled[0], pooled[1], names, step=0)
    assert together
    assert np.sum([one["log_loss"] for one in exact.values()], axis=0) == pytest.approx(together["log_loss"])
    one, other = learned(exact), learned({"all": together})
    assert (one is None) == (other is None)
    if one and other:
        assert one.temperature == pytest.approx(other.temperature, rel=1e-3)
        assert one.patients == sum(counts)


@pytest.mark.parametrize("too_sure", [0.7, 1.0, 1.8, 3.0])
@pytest.mark.parametrize("classes", [2, 4])
def test_rounding_at_sites_hardly_changes_the_temperature(too_sure: float, classes: int) -> None:
    sites = [_patients(count, too_sure, seed, classes) for seed, count in enumerate((20, 35, 60))]
    found = learned({f"s{n}": temperature_sums(*site) or {} for n, site in enumerate(sites)})
    assert found
    expected = _directly(np.concatenate([s[0] for s in sites]), np.concatenate([s[1] for s in sites]))
    assert found.temperature == pytest.approx(expected, rel=0.03)
    assert found.log_loss[1] <= found.log_loss[0]
    assert found.sites == ["s0", "s1", "s2"]


def test_a_log_loss_is_never_below_zero_though_sums_were_rounded() -> None:
    sums = [2.0] * len(TEMPERATURES)
    sums[5:12] = [0.3, 0.0, 0.0, 0.0, 0.0, 0.0, 0.2]
    fitted = lowest(np.array(sums))
    assert fitted
    assert fitted[1] < 0, "the curve through rounded sums is"
    found = learned({"east": {"patients": 50, "log_loss": sums}})
    assert found
    assert min(found.log_loss) == 0


def test_many_patients_recover_the_factor_of_overconfidence() -> None:
    found = learned({"s": temperature_sums(*_patients(4000, 2.5, 3)) or {}})
    assert found
    assert found.temperature == pytest.approx(2.5, rel=0.08)


def test_a_patients_images_weigh_one_in_all() -> None:
    found, labels, names = _patients(30, 2.0, 5)
    often = np.concatenate([[0] * 40, np.arange(1, 30)])
    sums = temperature_sums(found[often], labels[often], [names[n] for n in often], step=0)
    once = temperature_sums(found, labels, names, step=0)
    assert sums
    assert once
    assert sums["log_loss"] == pytest.approx(once["log_loss"])
    assert sums["patients"] == 30


def test_a_model_that_is_always_right_has_no_temperature() -> None:
    sure = np.array([[0.9, 0.1]] * 10 + [[0.2, 0.8]] * 10)
    sums = temperature_sums(sure, np.array([0] * 10 + [1] * 10), [str(n) for n in range(20)])
    assert sums
    assert learned({"s": sums}) is None
    assert learned({}) is None


def test_few_patients_send_nothing() -> None:
    found, labels, _ = _patients(40, 2.0, 5)
    assert temperature_sums(found, labels, [f"p{n % 4}" for n in range(40)]) is None


def test_a_curve_holds_no_more_numbers_than_patients() -> None:
    """Rounded sums show one patient's score in four directions only."""
    margins = np.linspace(-6, 6, 121)
    slopes = -1 / (1 + np.exp(margins[:, None] / TEMPERATURES)) / TEMPERATURES
    # A margin is off by three, a sum by up to half a step.
    seen = np.linalg.svd(slopes * 3 / np.sqrt(len(margins)), compute_uv=False) > STEP / 2
    assert seen.sum() <= 4


def test_tempered_probabilities_are_those_of_tempered_logits() -> None:
    logits = np.array([[3.0, -1.0, 0.5], [-40.0, 2.0, 30.0]])
    scores = [ClassScores(one) for one in logits]
    found = tempered(np.stack([one.probabilities() for one in scores]), 1.7)
    assert found == pytest.approx(np.stack([one.probabilities(1.7) for one in scores]))


def test_a_task_computes_temperature_sums_from_outcomes(tmp_path: Path) -> None:
    data = DataSpec(dataset="x", modality="xray", patch=(32, 32))
    task = Classification(ClassificationSpec(classes={0: "clear", 1: "ill", 2: "other"}), data)
    found, labels, names = _patients(60, 2.0, 9)
    outcomes = [(n, Classified(p, int(label))) for n, p, label in zip(names, found, labels, strict=True)]
    calibration = learned({"s": task.temperature_sums(outcomes) or {}})
    assert calibration
    calibration.write(tmp_path)
    assert read_calibration(tmp_path) == calibration
    assert read_calibration(tmp_path / "elsewhere") is None
    (tmp_path / "calibration.json").write_text('{"temperature": 0}')
    with pytest.raises(SpecError, match="no calibration of oncofed"):
        read_calibration(tmp_path)
