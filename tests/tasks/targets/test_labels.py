"""Findings: what was not looked for counts nowhere, and thresholds come from validation patients alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch.nn import functional

from oncofed.data.targets import DatasetTarget
from oncofed.errors import DataError, SpecError
from oncofed.rounds.pooled_scores import calibration_of, together
from oncofed.tasks.classification import ranking_scores
from oncofed.tasks.targets.labels import LabelsHead
from target_heads import keys, make_head, settings_of

NAMES = ["Effusion", "Mass", "Nodule"]
DECLARED = DatasetTarget(kind="labels", names=NAMES)
NAN = float("nan")


def _made(
    seed: int, count: int, unknown: float = 0.3, prevalence: float = 0.3
) -> tuple[NDArray[np.float64], NDArray[np.float64], list[str]]:
    """Return probabilities, truths and patients of a site."""
    rng = np.random.default_rng(seed)
    truths = (rng.random((count, 3)) < prevalence).astype(float)
    answers = 1 / (1 + np.exp(-rng.normal(2 * truths - 2, 1.2)))
    truths[rng.random(truths.shape) < unknown] = NAN
    return answers, truths, keys(count)


def test_a_finding_is_read_by_its_name_and_what_is_left_out_is_unknown() -> None:
    target = settings_of("labels", findings=NAMES)
    found = target.encode({"effusion": True, "NODULE": False, "Hernia": True}, DECLARED)
    assert found[0] == 1
    assert found[2] == 0
    assert np.isnan(found[1])
    with pytest.raises(DataError, match="found 'Effusion', expected findings with true or false"):
        target.encode("Effusion", DECLARED)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"findings": ["Mass", "mass"]}, "two findings have one name"),
        ({"findings": NAMES, "positive_weight": {"Hernia": 2}}, "Hernia is none of the findings"),
        ({"findings": NAMES, "positive_weight": {"Mass": 0}}, "above 0"),
    ],
)
def test_mistakes_in_its_settings_are_named(change: dict[str, object], message: str) -> None:
    with pytest.raises((SpecError, ValueError), match=message):
        settings_of("labels", **change)


def test_the_loss_is_that_of_the_known_findings_weighted() -> None:
    head = make_head("labels", findings=NAMES, positive_weight={"Mass": 3.0})
    output, truth = torch.tensor([[0.3, -0.4, 2.0], [0.1, 0.2, 0.3]]), torch.tensor([[1.0, 1.0, NAN], [NAN] * 3])
    first = functional.softplus(-output[0, 0])
    second = 3 * functional.softplus(-output[0, 1])
    assert head.loss(output, truth).tolist() == pytest.approx([float((first + second) / 2), 0.0])


@given(st.integers(0, 50))
def test_unknown_findings_change_no_loss_and_no_score(seed: int) -> None:
    answers, truths, patients = _made(seed, 24)
    head = make_head("labels", findings=NAMES)
    other = np.where(np.isnan(truths), np.random.default_rng(seed).random(truths.shape), answers)
    assert head.figures(other, truths, patients) == head.figures(answers, truths, patients)
    assert head.site_sums(other, truths, patients) == head.site_sums(answers, truths, patients)
    logits = torch.tensor(np.log(answers / (1 - answers)))
    shifted = torch.where(torch.tensor(np.isnan(truths)), logits + 5, logits)
    assert torch.equal(head.loss(logits, torch.tensor(truths)), head.loss(shifted, torch.tensor(truths)))


def test_its_figures_are_those_of_each_finding() -> None:
    answers, truths, patients = _made(1, 60)
    truths[:, 2] = np.where(np.isnan(truths[:, 2]), NAN, 0)
    figures = make_head("labels", findings=NAMES).figures(answers, truths, patients)
    known = ~np.isnan(truths[:, 0])
    area, precision = ranking_scores(answers[known, 0], truths[known, 0] == 1)
    assert figures.members["Effusion"] == pytest.approx(area)
    assert figures.extra["auprc.Effusion"] == pytest.approx(precision)
    said, true = answers[known, 0] >= 0.5, truths[known, 0] == 1
    hits = (said & true).sum()
    sensitivity, right = hits / true.sum(), hits / said.sum()
    assert figures.extra["f1.Effusion"] == pytest.approx(2 * sensitivity * right / (sensitivity + right))
    assert set(figures.members) == {"Effusion", "Mass"}, "nobody has a nodule: its area cannot be told"
    assert figures.primary == pytest.approx(np.mean(list(figures.members.values())))
    assert figures.extra["judged"] == 2
    assert len(figures.behind["Effusion"]) == true.sum()


def test_several_images_of_a_patient_count_as_one() -> None:
    answers, truths, patients = _made(2, 40, unknown=0)
    head = make_head("labels", findings=NAMES)
    twice = (np.repeat(answers, 2, axis=0), np.repeat(truths, 2, axis=0), [p for p in patients for _ in range(2)])
    assert head.figures(*twice).primary == pytest.approx(head.figures(answers, truths, patients).primary)
    assert head.site_sums(*twice) == head.site_sums(answers, truths, patients)


@settings(max_examples=20)
@given(st.integers(0, 1000), st.randoms(use_true_random=False))
def test_the_order_of_patients_changes_nothing(seed: int, random: object) -> None:
    del random
    answers, truths, patients = _made(seed, 30)
    order = np.random.default_rng(seed).permutation(30)
    head = make_head("labels", findings=NAMES)
    first, second = (
        head.figures(answers, truths, patients),
        head.figures(answers[order], truths[order], [patients[i] for i in order]),
    )
    assert first.primary == pytest.approx(second.primary)
    assert first.extra == pytest.approx(second.extra)


def test_sums_of_one_site_tell_its_own_area() -> None:
    head = make_head("labels", findings=NAMES)
    made = _made(3, 120)
    sums = head.site_sums(*made)
    assert sums
    assert head.is_site_sums(sums, 120)
    pooled, own = head.over_sites([sums]), head.figures(*made)
    assert pooled
    for name, area in own.members.items():
        assert pooled.classes[name].auroc == pytest.approx(area)
        assert pooled.figures[f"auprc.{name}"].value == pytest.approx(own.extra[f"auprc.{name}"], abs=0.06)
    assert pooled.figures["auroc"].value == pytest.approx(own.primary)
    assert pooled.figures["judged"].value == 3


def test_thresholds_come_from_validation_sums_and_raise_f1_of_a_rare_finding() -> None:
    head = make_head("labels", findings=NAMES)
    validation = {f"s{n}": head.site_sums(*_made(n, 150, 0.3, 0.15)) for n in range(3)}
    numbers = {site: {"pooled": {"patients": 150, "targets": {"it": sums}}} for site, sums in validation.items()}
    calibration = calibration_of(numbers, {"it": head})
    assert calibration
    assert calibration.temperature is None
    chosen = calibration.thresholds["it"]
    assert set(chosen) == set(NAMES)
    assert max(chosen.values()) < 0.5, "rare findings are said sooner than by chance"
    made = [_made(10 + n, 150, 0.3, 0.15) for n in range(3)]
    test = {f"s{n}": {"pooled": {"patients": 150, "targets": {"it": head.site_sums(*m)}}} for n, m in enumerate(made)}
    at_half = together(test, None, "auroc", None, None, {"it": head}).pooled
    found = together(test, calibration, "auroc", None, None, {"it": head})
    assert at_half
    assert found.pooled
    assert found.calibration == calibration
    figures = found.pooled.targets["it"].figures
    assert figures["f1"].value > at_half.targets["it"].figures["f1"].value + 0.03
    assert "none was learned" in at_half.targets["it"].figures["f1.Mass"].title
    head.use_thresholds(chosen)
    everybody = (
        np.concatenate([m[0] for m in made]), np.concatenate([m[1] for m in made]), keys(450)
    )  # fmt: skip
    exact = head.figures(*everybody)
    assert figures["f1"].value == pytest.approx(exact.extra["f1"], abs=0.04)


def test_what_a_site_says_of_itself_uses_the_thresholds() -> None:
    head = make_head("labels", findings=NAMES)
    made = _made(5, 100)
    before = head.figures(*made)
    head.use_thresholds({"Mass": 0.2})
    after = head.figures(*made)
    assert before.extra["f1.Mass"] != after.extra["f1.Mass"]
    assert before.extra["f1.Nodule"] == after.extra["f1.Nodule"]
    assert isinstance(head, LabelsHead)
    assert head.described_truth((1.0, NAN, 0.0)) == "Effusion (not looked for: Mass)"
    assert head.described_truth((NAN, NAN, NAN)) == ""
