"""Single objects: separation and panoptic quality."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from oncofed.data.cases import usable_cases
from oncofed.data.inputs import object_distances
from oncofed.data.label_mapping import Supervision
from oncofed.data.register import RegisterOptions, register
from oncofed.data.spec import DataSpec
from oncofed.models import ModelSpec
from oncofed.tasks import ObjectsSpec
from oncofed.tasks.objects import object_scores, separate
from oncofed.training import Plan, Trainer, TrainingSpec
from synthetic import make_nuclei

NUMBERS = arrays(np.int32, (9, 9), elements=st.integers(0, 4))


@given(NUMBERS, NUMBERS)
def test_quality_is_symmetric_within_bounds_and_one_for_itself(a: np.ndarray, b: np.ndarray) -> None:
    there, back = object_scores(a, b), object_scores(b, a)
    assert there == pytest.approx(back, nan_ok=True)
    assert all(0 <= value <= 1 or np.isnan(value) for value in there.values())
    if a.any():
        assert object_scores(a, a)["pq"] == 1


def test_quality_by_hand() -> None:
    reference = np.zeros((10, 30), np.int32)
    reference[:, :10], reference[:, 20:30] = 1, 2
    found = np.zeros_like(reference)
    found[:, 2:10], found[:3, 20:30], found[:, 12:14] = 5, 6, 7
    # One of two is found, with an intersection over union of 0.8; two found are none.
    scores = object_scores(found, reference)
    assert scores["f1"] == pytest.approx(2 / 5)
    assert scores["iou"] == pytest.approx(0.8)
    assert scores["pq"] == pytest.approx(0.4 * 0.8)
    assert scores["dice"] == pytest.approx(2 * 110 / (200 + 130))


def test_touching_objects_are_separated_at_their_narrowest_place() -> None:
    y, x = np.mgrid[:40, :60]
    numbers = np.zeros((40, 60), np.int32)
    numbers[(y - 20) ** 2 + (x - 18) ** 2 < 144] = 1
    numbers[((y - 20) ** 2 + (x - 38) ** 2 < 144) & (numbers == 0)] = 2
    found = separate(numbers > 0, object_distances(numbers), 0.5, 10)
    assert object_scores(found, numbers)["pq"] > 0.95


def test_components_without_a_seed_are_objects_and_small_ones_are_dropped() -> None:
    inside = np.zeros((20, 20), bool)
    inside[2:8, 2:8] = inside[15, 15] = True
    found = separate(inside, np.zeros(inside.shape, np.float32), 0.5, 10)
    assert sorted(np.unique(found)) == [0, 1]
    assert (found > 0).sum() == 36
    assert not separate(np.zeros((5, 5), bool), np.zeros((5, 5), np.float32), 0.5, 1).any()


def test_it_learns_to_count_nuclei(tmp_path: Path) -> None:
    register(RegisterOptions(make_nuclei(tmp_path / "in"), "nuclei", tmp_path / "set", "segmentation"))
    data = DataSpec(dataset="nuclei", modality="microscopy", channels=("r", "g", "b"), patch=(64, 64))
    plan = Plan(
        data=data,
        task=ObjectsSpec(classes={1: "nucleus"}),
        model=ModelSpec(channels=(16, 32), residual_units=0),
        training=TrainingSpec(steps_per_round=100, batch_size=4, learning_rate=1e-2, warmup_steps=0),
        rounds=1,
    )
    cases = usable_cases(tmp_path / "set", data, Supervision(classes={1: "nucleus"}), 1, "here").cases
    trainer = Trainer(plan, cases, "here")
    trainer.train(100)
    evaluation = trainer.evaluate(cases.test)
    assert evaluation.mean is not None
    assert evaluation.mean > 0.4
    assert evaluation.extra_metrics["dice"] > 0.85
    assert evaluation.by_class == {"nucleus": evaluation.mean}
