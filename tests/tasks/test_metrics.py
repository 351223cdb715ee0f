"""Tests of what a task declares of its metrics."""

from __future__ import annotations

import pytest

from oncofed.tasks import (
    ClassificationSpec,
    Metric,
    ObjectsSpec,
    PackedTaskSpec,
    SegmentationSpec,
    metrics_that_may_leave,
)


@pytest.mark.parametrize(
    ("spec", "names"),
    [
        (SegmentationSpec(classes={1: "a"}), {"surface_dice", "hd95_mm"}),
        (ObjectsSpec(), {"pq", "f1", "iou", "dice"}),
        (ClassificationSpec(classes={0: "a", 1: "b"}), {"auprc", "balanced_accuracy", "calibration_error"}),
    ],
)
def test_a_site_uses_the_metrics_of_its_installed_task_only(spec: object, names: set[str]) -> None:
    assert {metric.name for metric in metrics_that_may_leave(spec)} == names  # type: ignore[arg-type]


def test_a_packs_task_adds_no_metric() -> None:
    packed = PackedTaskSpec(name="mine", classes={1: "a"})
    assert metrics_that_may_leave(packed) == metrics_that_may_leave()
    assert len(metrics_that_may_leave()) == 22, "nine of them of detection, two of regions on slides"


def test_a_metric_has_bounds_and_a_unit() -> None:
    distance = Metric("hd95_mm", "distance", per_class=True, unit="mm", bounds=(0, 100))
    assert distance.label == "distance (mm)"
    assert [distance.admits(value) for value in (-0.1, 0, 100, 100.1, float("nan"), float("inf"))] == [
        False,
        True,
        True,
        False,
        True,
        False,
    ]
    assert Metric("balanced_accuracy").label == "balanced accuracy"
