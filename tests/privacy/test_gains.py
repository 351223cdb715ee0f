"""What leaves of a kept model's gain."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest

from oncofed.errors import PolicyError
from oncofed.privacy.gains import gain_numbers, is_gain, withhold_gain
from oncofed.privacy.outbound import check_numbers, withhold
from oncofed.tasks.differences import Part

CLASSES = ["head", "body"]
GAIN = gain_numbers("fine_tuned", 8, Part(9, 0.0123456, 1e-4), Part(7, -0.2, 1e-4))


def _with(path: str, value: Any) -> dict[str, Any]:
    found = copy.deepcopy(GAIN)
    *parents, last = path.split("/")
    inner = found
    for parent in parents:
        inner = inner[parent]
    inner[last] = value
    return found


def test_a_gain_of_enough_patients_is_told_rounded_with_its_interval() -> None:
    assert is_gain(GAIN)
    assert GAIN["over_federated"]["difference"] == 0.01235
    low, high = GAIN["over_federated"]["interval"]
    assert low == pytest.approx(0.01235 - 2.306 * 0.01, abs=1e-4)
    assert high == pytest.approx(0.01235 + 2.306 * 0.01, abs=1e-4)
    check_numbers({"gain": GAIN}, CLASSES, sums=True)


@pytest.mark.parametrize(("validated", "tested"), [(4, 9), (9, 4), (9, None)])
def test_nothing_is_told_of_fewer_than_five_patients(validated: int, tested: int | None) -> None:
    part = Part(tested, 0.1, 1e-4) if tested else None
    assert gain_numbers("mixed", validated, part, Part(9, 0.1, 1e-4)) == {}
    assert gain_numbers("mixed", 9, Part(9, 0.1, 1e-4), Part(4, 0.1, 1e-4))["over_alone"] is None


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("kept", "MRN-0001"),
        ("validated", 4),
        ("validated", True),
        ("patient", 1),
        ("over_federated", None),
        ("over_federated/patients", 4),
        ("over_federated/patients", 10_000),
        ("over_federated/difference", 0.0123456789),
        ("over_federated/difference", 1.5),
        ("over_federated/difference", "x"),
        ("over_federated/interval", [0.2, 0.3]),
        ("over_federated/interval", [-math.inf, 0.3]),
        ("over_federated/interval", [0.0]),
        ("over_alone/patients", 3),
        ("over_alone", {}),
    ],
)
def test_anything_else_does_not_leave(path: str, value: Any) -> None:
    with pytest.raises(PolicyError, match="gain is not within its bounds"):
        check_numbers({"gain": _with(path, value)}, CLASSES, sums=True, most=100)


def test_an_update_carries_no_gain() -> None:
    with pytest.raises(PolicyError, match="that the job does not declare"):
        check_numbers({"gain": GAIN}, CLASSES)


@pytest.mark.parametrize(("minimum", "left"), [(5, True), (8, True), (9, False)])
def test_a_policy_withholds_gains_of_fewer_patients(minimum: int, left: bool) -> None:
    numbers = {"gain": dict(GAIN)}
    assert withhold(numbers, minimum) == (minimum > 7)
    assert ("gain" in numbers) == left
    found = withhold_gain(GAIN, minimum)
    assert (found is not None) == left
    assert not found or (found["over_alone"] is None) == (minimum > 7)
