"""Temperature scaling of a classifier, and of targets that are classes or findings.

Guo et al., ICML 2017: one temperature divides the logits.

It is learned over the validation patients of all sites without any patient's score leaving a site: each site sends the
sum of its patients' negative log likelihoods at fixed temperatures, and the total is minimised. Segmentations have no
calibration: neighbouring voxels are not independent, so voxels do not count as patients.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from oncofed.atomic import write_whole
from oncofed.errors import SpecError
from oncofed.settings import StrictModel, first_problem
from oncofed.suppression import LEAST_PATIENTS
from oncofed.tasks.pooled import Reliability

CALIBRATION_FILE = "calibration.json"
TEMPERATURES = np.geomspace(1 / 4, 8, 21)
# Sums are rounded to a tenth of the change that a factor of e in one patient's likelihood makes. The rounded curve
# holds about as much information as four numbers, of at least five patients: no patient's score follows from it.
STEP = 0.1
_NEIGHBOURS = 3
_SMALLEST = 1e-300


class Calibration(StrictModel):
    """``calibration.json``: a model's temperatures and thresholds."""

    schema_: Literal[1] = Field(1, alias="schema")
    temperature: float | None = Field(
        None, gt=0, description="that logits are divided by before the softmax; null: none was learned"
    )
    patients: int = Field(description="validation patients of whom it was learned")
    sites: list[str] = Field(description="whose patients they are")
    log_loss: tuple[float, float] | None = Field(
        None, description="mean over these patients without temperature, and with it"
    )
    temperatures: dict[str, dict[str, Annotated[float, Field(gt=0)]]] = Field(
        {},
        description='target -> finding ("" of a class) -> what its logits are divided by',
    )
    thresholds: dict[str, dict[str, float]] = Field(
        {},
        description="target -> finding -> threshold of the best F1 over these patients, of calibrated probabilities",
    )
    before: Reliability | None = Field(None, description="of the test patients, without temperature")
    after: Reliability | None = Field(None, description="the same with it")

    def write(self, folder: Path) -> Path:
        """Write ``folder/calibration.json`` in one step; return its path."""
        path = folder / CALIBRATION_FILE
        write_whole(path, json.dumps(self.model_dump(mode="json", by_alias=True), indent=2) + "\n")
        return path


def read_calibration(folder: Path) -> Calibration | None:
    """Return a model's calibration, if known.

    Args:
        folder: of the model, such as ``RUN/model``.

    Raises:
        SpecError: the file is broken.
    """
    path = folder / CALIBRATION_FILE
    try:
        return Calibration.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SpecError(f"{path}: cannot be read ({error.strerror})") from None
    except ValidationError as error:
        raise SpecError(
            f"{path}: no calibration of oncofed ({first_problem(error)}). Copy the model's folder again, or delete the "
            "file to use the model uncalibrated"
        ) from None


def tempered(probabilities: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    """Return probabilities (image, class) at a temperature.

    The logarithm of a softmax differs from the logits by a constant, which the next softmax removes.
    """
    scaled = np.log(np.maximum(probabilities, _SMALLEST)) / temperature
    powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    found: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return found


def tempered_threshold(threshold: float, temperature: float) -> float:
    """Return the threshold of tempered probabilities that divides patients as one of probabilities does."""
    odds = np.log(max(threshold, _SMALLEST)) - np.log(max(1 - threshold, _SMALLEST))
    return float(1 / (1 + np.exp(-odds / temperature))) if 0 < threshold < 1 else threshold


def log_losses(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return each image's negative log likelihood, (image,)."""
    likelihood = probabilities[np.arange(len(labels)), labels]
    found: NDArray[np.float64] = -np.log(np.maximum(likelihood, _SMALLEST))
    return found


def temperature_sums(
    probabilities: NDArray[np.float64], labels: NDArray[np.int64], patients: Sequence[str], step: float = STEP
) -> dict[str, Any] | None:
    """Return sums over validation patients; None for too few.

    Args:
        probabilities: (image, class).
        labels: true classes, (image,).
        patients: key of each image's patient; a patient's images together weigh one.
        step: that sums are rounded to; 0: not at all.

    Returns:
        patients: how many; log_loss: the sum at each of ``TEMPERATURES``.
    """
    people = sorted(set(patients))
    if len(people) < LEAST_PATIENTS:
        return None
    images = dict.fromkeys(people, 0)
    for patient in patients:
        images[patient] += 1
    weights = np.array([1 / images[patient] for patient in patients])
    sums = [float(weights @ log_losses(tempered(probabilities, t), labels)) for t in TEMPERATURES]
    return {"patients": len(people), "log_loss": [round(round(s / step) * step, 1) if step else s for s in sums]}


def learned(of_sites: Mapping[str, Mapping[str, Any]]) -> Calibration | None:
    """Return the temperature that maximises all patients' likelihood.

    None without sums of any site, or if the best lies beyond the ends: for a model that is always right it would be
    zero, which a few patients cannot justify.

    Args:
        of_sites: of each site, from ``temperature_sums``.
    """
    if not of_sites:
        return None
    patients = sum(one["patients"] for one in of_sites.values())
    sums = np.sum([one["log_loss"] for one in of_sites.values()], axis=0)
    found = lowest(sums)
    if found is None:
        return None
    temperature, least = found
    # A mean of -log(p) is never below zero, but rounded sums and the curve through them may be, by less than the step.
    before = max(float(np.interp(0.0, np.log(TEMPERATURES), sums)), 0.0)
    least = min(max(least, 0.0), before)
    return Calibration(
        temperature=temperature,
        patients=patients,
        sites=sorted(of_sites),
        log_loss=(before / patients, least / patients),
    )


def lowest(sums: NDArray[np.float64]) -> tuple[float, float] | None:
    """Return position and value of a curve's minimum.

    The curve is over ``TEMPERATURES``; None if the minimum is at an end.

    A cubic in the logarithm of the temperature is fitted to the points around the lowest: over several points the
    rounding averages out.
    """
    places = np.log(TEMPERATURES)
    ties = np.flatnonzero(sums <= sums.min() + 1e-9)
    middle = int(ties[np.argmin(np.abs(places[ties]))])
    if middle in (0, len(sums) - 1):
        return None
    neighbours = slice(max(middle - _NEIGHBOURS, 0), middle + _NEIGHBOURS + 1)
    curve = np.polynomial.Polynomial.fit(places[neighbours], sums[neighbours], 3)
    fine = np.linspace(places[middle - 1], places[middle + 1], 401)
    heights = curve(fine)
    best = int(np.argmin(heights))
    return round(float(np.exp(fine[best])), 4), float(heights[best])
