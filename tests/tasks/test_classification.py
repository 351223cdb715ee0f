"""Figures of a classifier, and that it learns textures."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.metrics import compute_average_precision, compute_roc_auc
from pydantic import ValidationError

from oncofed.data.cases import usable_cases
from oncofed.data.label_mapping import Supervision
from oncofed.data.register import RegisterOptions, register
from oncofed.data.spec import DataSpec
from oncofed.models import ModelSpec
from oncofed.tasks import Classification, ClassificationSpec
from oncofed.tasks.classification import Classified, class_scores, ranking_scores
from oncofed.tasks.patient_statistics import confidence
from oncofed.training import Plan, Trainer, TrainingSpec
from synthetic import make_textures, make_volume

CLASSES = {0: "clear", 1: "pneumonia"}
TASK = Classification(ClassificationSpec(classes=CLASSES), DataSpec(dataset="x", modality="xray", patch=(32, 32)))


def _said(*probabilities: float) -> np.ndarray:
    second = np.array(probabilities)
    return np.stack([1 - second, second], axis=1)


@given(st.lists(st.tuples(st.floats(0.01, 0.99), st.integers(0, 1)), min_size=2, max_size=30))
def test_the_area_is_the_share_of_pairs_in_the_right_order(cases: list[tuple[float, int]]) -> None:
    found, labels = _said(*(p for p, _ in cases)), np.array([label for _, label in cases])
    scores = class_scores(found, labels, CLASSES)
    ill, well = found[labels == 1, 1], found[labels == 0, 1]
    if not len(ill) or not len(well):
        assert scores.mean is None
        return
    pairs = (ill[:, None] > well[None]).mean() + 0.5 * (ill[:, None] == well[None]).mean()
    assert scores.mean == pytest.approx(pairs)
    assert 0 <= scores.extra_metrics["calibration_error"] <= 1
    assert 0 <= scores.extra_metrics["balanced_accuracy"] <= 1


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9]) | st.floats(0, 1), st.booleans()), min_size=2))
def test_ranking_scores_equal_monais(cases: list[tuple[float, bool]]) -> None:
    probability, truth = np.array([p for p, _ in cases]), np.array([t for _, t in cases])
    if truth.all() or not truth.any():
        return
    theirs = torch.from_numpy(probability), torch.from_numpy(truth.astype(np.float64))
    area, precision = ranking_scores(probability, truth)
    assert area == pytest.approx(compute_roc_auc(*theirs), abs=1e-12)
    assert precision == pytest.approx(compute_average_precision(*theirs), abs=1e-12)


def test_a_classifier_with_matching_confidence_is_calibrated() -> None:
    sure = class_scores(_said(*[0.75] * 4), np.array([1, 1, 1, 0]), CLASSES)
    assert sure.extra_metrics["calibration_error"] == pytest.approx(0)
    too_sure = class_scores(_said(*[0.95] * 4), np.array([1, 1, 0, 0]), CLASSES)
    assert too_sure.extra_metrics["calibration_error"] == pytest.approx(0.45)


def test_a_patients_images_count_as_one() -> None:
    many = [("a", Classified(np.array([0.9, 0.1]), 1))] * 50
    others = [("b", Classified(np.array([0.2, 0.8]), 1)), ("c", Classified(np.array([0.4, 0.6]), 0))]
    assert TASK.summarise([*many, *others]).mean == pytest.approx(0.5)


def test_the_interval_holds_the_mean_and_narrows_with_patients() -> None:
    rng = np.random.default_rng(0)

    def outcomes(count: int) -> list[tuple[str, Classified]]:
        said = [(number, rng.normal(number % 2, 1.0)) for number in range(count)]
        odds = [(number, 1 / (1 + np.exp(-value))) for number, value in said]
        return [(str(number), Classified(np.array([1 - p, p]), number % 2)) for number, p in odds]

    few, many = outcomes(20), outcomes(200)
    wide, narrow = confidence(TASK, few), confidence(TASK, many)
    assert wide
    assert narrow
    mean = TASK.summarise(many).mean
    assert mean is not None
    assert narrow[0] < mean < narrow[1]
    assert narrow[1] - narrow[0] < 0.6 * (wide[1] - wide[0])
    assert confidence(TASK, few[:2]) is None


def test_an_interval_without_width_is_not_given() -> None:
    """With perfect separation every draw has an area of one."""
    right = [
        (str(number), Classified(np.array([0.9, 0.1])[:: 1 - 2 * (number % 2)], number % 2)) for number in range(6)
    ]
    assert TASK.summarise(right).mean == 1
    assert confidence(TASK, right) is None


def test_classes_are_numbered_from_zero() -> None:
    with pytest.raises(ValidationError, match="expected \\[0, 1\\]"):
        ClassificationSpec(classes={1: "a", 2: "b"})


@pytest.mark.parametrize("names", [["Clear", "pneumonia"], ["pneumonia", "clear"]])
def test_it_learns_and_matches_classes_by_name(tmp_path: Path, names: list[str]) -> None:
    register(RegisterOptions(make_textures(tmp_path / "in", names, each=16), "x", tmp_path / "set", "classification"))
    data = DataSpec(dataset="x", modality="xray", channels=("grey",), patch=(32, 32))
    plan = Plan(
        data=data,
        task=ClassificationSpec(classes=CLASSES),
        model=ModelSpec(
            network="densenet121", arguments={"init_features": 16, "growth_rate": 16, "block_config": [2, 2]}
        ),
        training=TrainingSpec(steps_per_round=40, batch_size=8, learning_rate=3e-3, warmup_steps=0),
        rounds=1,
    )
    cases = usable_cases(tmp_path / "set", data, Supervision("class", CLASSES), 1, "here").cases
    trainer = Trainer(plan, cases, "here")
    trainer.train(40)
    evaluation = trainer.evaluate(tuple(cases), detailed=True)  # the deal may leave out a class
    assert evaluation.mean is not None
    assert evaluation.mean > 0.9
    assert set(evaluation.extra_metrics) == {"auprc", "balanced_accuracy", "calibration_error"}
    case = next(case for case in cases if case.image.resolve().parent.name.lower() == "clear")
    assert case.class_label == 0
    picture = trainer.task.picture(trainer.network, case, trainer.device)
    assert picture.caption.startswith("clear; model: ")


def test_volumes_are_classified_too(tmp_path: Path) -> None:
    rows = ["image,label"]
    for number in range(12):
        image, _ = make_volume(number)
        path = tmp_path / "in" / f"v{number}.nii.gz"
        path.parent.mkdir(exist_ok=True)
        nib.save(
            nib.Nifti1Image(image if number % 2 else np.random.default_rng(number).normal(size=image.shape), np.eye(4)),
            path,
        )
        rows.append(f"{path.name},{'ball' if number % 2 else 'noise'}")
    (tmp_path / "in" / "cases.csv").write_text("\n".join(rows))
    register(RegisterOptions(tmp_path / "in", "x", tmp_path / "set"))
    classes = {0: "noise", 1: "ball", 2: "cube"}  # this site has no image of the last
    plan = Plan(
        data=DataSpec(dataset="x", patch=(32, 32, 32)),
        task=ClassificationSpec(classes=classes),
        model=ModelSpec(
            network="densenet121", arguments={"init_features": 16, "growth_rate": 16, "block_config": [2, 2]}
        ),
        training=TrainingSpec(steps_per_round=15, batch_size=4, learning_rate=3e-3, warmup_steps=0),
        rounds=1,
    )
    cases = usable_cases(tmp_path / "set", plan.data, Supervision("class", classes), 1, "here").cases
    trainer = Trainer(plan, cases, "here")
    trainer.train(15)
    evaluation = trainer.evaluate(tuple(cases))
    assert evaluation.mean is not None
    assert evaluation.mean > 0.9
    assert set(evaluation.by_class) == {"noise", "ball"}
    assert trainer.task.picture(trainer.network, cases.test[0], trainer.device).image.ndim == 2
