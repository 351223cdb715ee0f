"""Targets of classes and findings are calibrated over sites, by sums alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from oncofed.errors import PolicyError
from oncofed.models.answers import Step, applied
from oncofed.models.bundle.targets import of_targets, use_temperatures
from oncofed.privacy.outbound import check_numbers, withhold
from oncofed.rounds.pooled_scores import calibration_of
from oncofed.tasks.calibration import Calibration, log_losses
from oncofed.tasks.targets import TargetHead
from target_heads import keys, make_head

Floats = NDArray[np.float64]
TIMES = 3.0  # by which the networks are too sure


def heads() -> dict[str, TargetHead[Any]]:
    return {
        "kind": make_head("class", classes=["a", "b", "c"]),
        "found": make_head("labels", findings=["Mass", "Rare"]),
    }


def site(seed: int, count: int = 400) -> dict[str, tuple[Floats, Floats]]:
    """Return outputs that are too sure, and truths, by target; two patients have the rare finding."""
    rng = np.random.default_rng(seed)
    odds = rng.normal(0, 1.5, (count, 3))
    likely = np.exp(odds) / np.exp(odds).sum(axis=1, keepdims=True)
    kind = np.array([rng.choice(3, p=row) for row in likely], np.float64)[:, None]
    mass = rng.normal(-0.5, 1.5, (count, 2))
    found = (rng.random((count, 2)) < 1 / (1 + np.exp(-mass))).astype(float)
    found[:, 1] = [1.0] * 2 + [0.0] * (count - 2)
    found[::5, 0] = np.nan
    return {"kind": (TIMES * odds, kind), "found": (TIMES * mass, found)}


def sent(seed: int, count: int = 400) -> dict[str, Any]:
    """Return what a site sends of its validation patients."""
    made, own = site(seed, count), heads()
    curves, pooled = {}, {}
    for name, head in own.items():
        outputs, truths = made[name]
        told = (head.answer(outputs), truths, keys(count))
        curves[name] = {"patients": count, "parts": head.temperature_sums(*told)}
        pooled[name] = head.site_sums(*told)
    return {
        "temperature": {"patients": count, "targets": curves},
        "pooled": {"patients": count, "targets": pooled},
    }


@pytest.fixture(scope="module")
def learned() -> Calibration:
    found = calibration_of({"east": sent(1), "west": sent(2)}, heads())
    assert found
    return found


def test_networks_that_are_too_sure_are_tempered(learned: Calibration) -> None:
    assert learned.temperatures["kind"][""] == pytest.approx(TIMES, rel=0.15)
    assert learned.temperatures["found"]["Mass"] == pytest.approx(TIMES, rel=0.15)
    assert "Rare" not in learned.temperatures["found"], "of two patients at each site nothing is sent"
    outputs, truths = site(3)["kind"]
    head = heads()["kind"]
    before = log_losses(head.answer(outputs), truths[:, 0].astype(np.int64)).mean()
    head.use_temperatures(learned.temperatures["kind"])
    after = log_losses(head.answer(outputs), truths[:, 0].astype(np.int64)).mean()
    assert after < before - 0.2
    assert Calibration.model_validate_json(learned.model_dump_json(by_alias=True)) == learned


@pytest.mark.parametrize(("name", "part"), [("kind", ""), ("found", "Mass")])
def test_reliability_is_told_with_and_without_the_temperature(learned: Calibration, name: str, part: str) -> None:
    outputs, truths = site(3)[name]
    head, plain = heads()[name], heads()[name]
    head.use_temperatures(learned.temperatures[name])
    sums = {one: one.site_sums(one.answer(outputs), truths, keys(len(truths))) for one in (head, plain)}
    check_numbers({"pooled": {"patients": 400, "targets": {name: sums[head]}}}, [name], sums=True, targets={name: head})
    found, without = (one.over_sites([sums[one] or {}]) for one in (head, plain))
    assert found
    assert without
    assert not without.uncalibrated
    assert found.reliability[part].calibration_error < found.uncalibrated[part].calibration_error
    assert found.uncalibrated[part].log_loss == pytest.approx(without.reliability[part].log_loss, abs=1e-3)
    # Its groups are those of the answers with the temperature: of three classes another order.
    assert found.uncalibrated[part].calibration_error == pytest.approx(
        without.reliability[part].calibration_error, abs=0.02
    )
    before = f"calibration_error.before{'.' * bool(part)}{part}"
    assert found.figures[before].title.endswith("before calibration")


def test_thresholds_divide_the_same_patients(learned: Calibration) -> None:
    plain = calibration_of({name: {"pooled": sent(n)["pooled"]} for n, name in ((1, "east"), (2, "west"))}, heads())
    assert plain
    outputs, _ = site(3)["found"]
    said = []
    for known in (plain, learned):
        head = heads()["found"]
        head.use_thresholds(known.thresholds["found"])
        head.use_temperatures(known.temperatures.get("found", {}))
        said.append([head.said(answer) for answer in head.answer(outputs)])
    assert said[0] == said[1]


def test_a_bundle_answers_alike(learned: Calibration) -> None:
    own = heads()
    config = of_targets([replace(head.target_answer, name=name) for name, head in own.items()])
    for _ in range(2):  # a bundle that is completed twice stays as it is
        use_temperatures(config, learned.temperatures)
    for (name, head), target in zip(own.items(), config["targets"], strict=True):
        outputs, _ = site(3)[name]
        head.use_temperatures(learned.temperatures[name])
        steps = [Step(step["operation"], tuple(step["scale"])) for step in target["steps"]]
        np.testing.assert_allclose(applied(steps, torch.from_numpy(outputs)).numpy(), head.answer(outputs), rtol=1e-12)
        assert [step["operation"] for step in target["steps"]][:-1] == ["affine"]


@pytest.mark.attack(
    "a rare finding's patients, or scores, in the place of sums for temperatures",
    by="the site's outbound check: parts, fewest patients, rounding",
    logged="the site's audit log: held back",
)
def test_nothing_else_leaves_as_sums_for_temperatures() -> None:
    def check(of_findings: dict[str, Any], patients: int = 400) -> None:
        curves = {"found": {"patients": patients, "parts": of_findings}}
        numbers = {"temperature": {"patients": 400, "targets": curves}}
        check_numbers(numbers, ["kind", "found"], sums=True, most=400, targets=heads())

    good = sent(1)["temperature"]["targets"]["found"]["parts"]
    check(good)
    assert set(good) == {"Mass"}
    one = good["Mass"]
    for bad in (
        {"p1": one},
        {"Mass": {**one, "patients": 398}},
        {"Mass": {**one, "patients": 3}},
        {"Mass": {**one, "log_loss": one["log_loss"][:-1]}},
        {"Mass": {**one, "log_loss": [value + 0.013 for value in one["log_loss"]]}},
        {"Mass": {**one, "score": 0.7}},
    ):
        with pytest.raises(PolicyError, match="temperature is not within its bounds"):
            check(bad)
    with pytest.raises(PolicyError):
        check(good, 398)


def test_a_policy_may_want_more_patients() -> None:
    numbers = sent(1)
    assert withhold(numbers, 350, heads())
    targets = numbers["temperature"]["targets"]
    assert set(targets["kind"]["parts"]) == {""}
    assert not targets["found"]["parts"], "320 patients were looked at"
