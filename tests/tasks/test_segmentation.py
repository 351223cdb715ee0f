from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydantic import ValidationError
from torch import Tensor, nn

from oncofed.data.cases import read_cases
from oncofed.data.spec import DataSpec, SplitSpec
from oncofed.tasks import Segmentation, SegmentationSpec
from oncofed.tasks.overlap import keep_largest
from oncofed.tasks.surfaces import surface_figures

SPEC = SegmentationSpec(classes={1: "shell", 2: "core"})
VOLUMES = arrays(np.uint8, (3, 4, 5), elements=st.integers(0, 2))


def _task(**data: object) -> Segmentation:
    return Segmentation(SPEC, DataSpec(dataset="balls", patch=(16, 16, 16), **data))


@given(VOLUMES, VOLUMES)
def test_dice_is_symmetric_within_bounds_and_one_for_itself(a: np.ndarray, b: np.ndarray) -> None:
    task = _task()
    there, back = task.score(a, b), task.score(b, a)
    for name in there:
        assert there[name] == back[name] or math.isnan(there[name])
        assert math.isnan(there[name]) or 0 <= there[name] <= 1
    assert all(value == 1 or math.isnan(value) for value in task.score(a, a).values())


def test_absent_classes_have_no_score_and_invented_ones_zero() -> None:
    reference = np.zeros((4, 4, 4), np.uint8)
    reference[0] = 1
    prediction = reference.copy()
    assert math.isnan(_task().score(prediction, reference)["core"])
    prediction[3] = 2
    assert _task().score(prediction, reference)["core"] == 0
    figures = [{"dice.shell": 1.0, "dice.core": math.nan}, {"dice.shell": 0.5, "dice.core": 0.7}]
    assert _task().summarise([("a", figures[0]), ("b", figures[1])]).mean == pytest.approx(0.8)
    assert _task().summarise([]).mean is None


def test_label_values_must_be_consecutive() -> None:
    with pytest.raises(ValidationError, match="without gaps"):
        SegmentationSpec(classes={1: "a", 3: "b"})


class _Threshold(nn.Module):
    """Segments the balls by intensity, as the truth is known."""

    def forward(self, image: Tensor) -> Tensor:
        low, high = image.mean() + 0.5 * image.std(), image.mean() + 2.2 * image.std()
        shell, core = (image > low).float(), (image > high).float()
        return torch.cat([1 - shell, shell - core, core], dim=1) * 20


@pytest.mark.parametrize("spacing", [None, (1.3, 1.3, 1.3)])
def test_a_prediction_lies_on_the_grid_of_the_label_file(site: Path, spacing: tuple[float, ...] | None) -> None:
    task = _task(spacing=spacing)
    case = read_cases(site, SplitSpec(), 1).train[0]
    segmented = task.predict(_Threshold(), case, torch.device("cpu"))
    assert segmented.prediction.shape == segmented.reference.shape == (20, 20, 20)
    foreground = (segmented.prediction > 0) & (segmented.reference > 0)
    dice = 2 * foreground.sum() / ((segmented.prediction > 0).sum() + (segmented.reference > 0).sum())
    assert dice > 0.85


def test_the_loss_is_least_for_the_truth() -> None:
    task = _task()
    label = torch.randint(0, 3, (2, 1, 8, 8, 8))
    truth = nn.functional.one_hot(label[:, 0], 3).movedim(-1, 1).float()
    assert task.loss(truth * 20, {"label": label}) < 0.05
    assert task.loss(truth.roll(1, dims=1) * 20, {"label": label}) > 1


def test_unlabelled_voxels_count_in_neither_loss_nor_score() -> None:
    spec = SegmentationSpec(classes={1: "shell", 2: "core"}, ignore=255)
    task = Segmentation(spec, DataSpec(dataset="balls", patch=(16, 16, 16)))
    label = torch.randint(0, 3, (2, 1, 8, 8, 8))
    logits = torch.randn(2, 3, 8, 8, 8)
    partly = label.clone()
    partly[:, :, 4:] = 255
    changed = logits.clone()
    changed[:, :, 4:] += 5 * torch.randn(2, 3, 4, 8, 8)
    assert task.loss(changed, {"label": partly}) == pytest.approx(float(task.loss(logits, {"label": partly})))
    everything = torch.full_like(label, 255)
    logits.requires_grad_()
    loss = task.loss(logits, {"label": everything})
    loss.backward()
    assert float(loss) == 0
    assert not logits.grad.any()  # type: ignore[union-attr]
    assert spec.vocabulary == {1: "shell", 2: "core", 255: "ignore"}


def test_coarser_outputs_count_half_as_much() -> None:
    task = _task()
    batch = {"label": torch.randint(0, 3, (2, 1, 8, 8, 8))}
    fine, coarse = torch.randn(2, 3, 8, 8, 8), torch.randn(2, 3, 8, 8, 8)
    both = task.loss(torch.stack([fine, coarse], dim=1), batch)
    assert both == pytest.approx(float((task.loss(fine, batch) + 0.5 * task.loss(coarse, batch)) / 1.5))


def test_only_the_largest_component_is_kept() -> None:
    labels = np.zeros((10, 10), np.uint8)
    labels[:4, :4] = labels[7:9, 7:9] = labels[0, 9] = 1
    labels[5, 5] = 2
    keep_largest(labels, 1)
    assert (labels == 1).sum() == 16
    assert labels[:4, :4].all()
    assert labels[5, 5] == 2
    before = labels.copy()
    for value in (1, 2, 3):
        keep_largest(labels, value)
    assert np.array_equal(labels, before)


def test_mirroring_does_not_change_a_symmetric_network(site: Path) -> None:
    case = read_cases(site, SplitSpec(), 1).train[0]
    once = _task().predict(_Threshold(), case, torch.device("cpu")).prediction
    spec = SegmentationSpec(classes={1: "shell", 2: "core"}, mirror=True)
    mirrored = Segmentation(spec, DataSpec(dataset="balls", patch=(20, 20, 20)))
    plain = Segmentation(SPEC, DataSpec(dataset="balls", patch=(20, 20, 20)))
    assert np.array_equal(
        mirrored.predict(_Threshold(), case, torch.device("cpu")).prediction,
        plain.predict(_Threshold(), case, torch.device("cpu")).prediction,
    )
    assert once.shape == (20, 20, 20)


def test_surfaces_are_measured_in_mm(site: Path) -> None:
    task = _task()
    case = read_cases(site, SplitSpec(), 1).train[0]
    figures = task.evaluate_case(_Threshold(), case, torch.device("cpu"), detailed=True)
    assert 0.5 < figures["surface_dice.shell"] <= 1
    assert 0 <= figures["hd95_mm.shell"] < 6
    reference = np.zeros((10, 10, 10), np.uint8)
    reference[2:6, 2:6, 2:6] = 1
    moved = np.roll(reference, 2, axis=0)
    shifted = surface_figures(moved, reference, task.spec.structures, (3.0, 1, 1), 1.0)
    assert shifted["hd95_mm.shell"] == pytest.approx(6)
    missed = surface_figures(np.zeros_like(reference), reference, task.spec.structures, (1, 1, 1), 1.0)
    assert missed["surface_dice.shell"] == 0
    assert "hd95_mm.shell" not in missed
