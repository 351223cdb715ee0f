"""Designs of suites that take hours: their jobs are valid, and their data are what they say."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

import heterogeneity
import label_noise


def test_each_cell_of_uneven_sites_is_a_job_of_the_same_steps() -> None:
    cells = list(heterogeneity.cells())
    assert len({cell.name for cell in cells}) == len(cells) == 2 * (5 * 3 + 3)
    for cell in cells:
        plan = heterogeneity.job(cell, 1).plan()
        assert plan.total_steps == heterogeneity.TOTAL_STEPS
        assert plan.training.optimizer_state == cell.state


@pytest.mark.parametrize("seed", [1, 2])
def test_each_way_to_spoil_a_mask_changes_it(seed: int) -> None:
    rng = np.random.default_rng(seed)
    label, other = np.zeros((10, 10, 10), np.uint8), np.zeros((8, 12, 10), np.uint8)
    label[2:5, 2:5, 2:5], label[5:7, 2:5, 2:5], other[1:4, 1:4, 1:4] = 1, 2, 1
    for spoil in (label_noise._exchanged, label_noise._of_another, label_noise._moved, label_noise._without_a_part):
        found = spoil(label, other, rng)
        assert found.shape == label.shape
        assert found.dtype == np.uint8
        assert (found != label).any()


def test_a_list_is_judged_by_its_first_and_its_suspected_cases(tmp_path: Path) -> None:
    path = tmp_path / "label_doubts.csv"
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["case", "suspected"])
        table.writerows([["a", True], ["b", True], ["c", False], ["d", False]])
    found = label_noise.judged(path, {"a", "c"})
    assert list(found.values()) == [0.5, 0.5, 0.5, 0.5]


def test_jobs_of_spoiled_labels_list_doubts() -> None:
    for job in (label_noise.mask_job(1), label_noise.class_job(1)):
        assert job.evaluation.doubtful_labels
