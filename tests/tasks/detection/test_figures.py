"""FROC and average precision, against MONAI's and against counting."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from monai.apps.detection.metrics.coco import COCOMetric
from monai.apps.detection.metrics.matching import matching_batch
from monai.data.box_utils import box_iou
from monai.metrics import compute_froc_curve_data

from oncofed.data.boxes import Boxes
from oncofed.tasks.detection import Matched
from oncofed.tasks.detection.figures import FALSE_POSITIVES, average_precision, sensitivities
from oncofed.tasks.detection.outcome import matched
from oncofed.tasks.inferred import FoundBoxes

AFFINE = np.eye(4)


def drawn(seed: int, images: int = 12, axes: int = 3) -> list[tuple[FoundBoxes, Boxes]]:
    """Return boxes near objects and elsewhere, of two classes."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(images):
        low = rng.uniform(0, 40, (rng.integers(0, 5), axes))
        objects = np.concatenate([low, low + rng.uniform(4, 9, low.shape)], axis=1)
        labels = rng.integers(1, 3, len(objects))
        near = np.repeat(objects, 2, axis=0) + rng.uniform(-1.8, 1.8, (2 * len(objects), 2 * axes))
        away = rng.uniform(0, 40, (4, axes))
        corners = np.concatenate([near, np.concatenate([away, away + 5], axis=1)])
        classes = np.concatenate([np.repeat(labels, 2), rng.integers(1, 3, 4)])
        # Few levels: some scores are the same.
        scores = rng.integers(1, 30, len(corners)) / 30 + 0.3 * (np.arange(len(corners)) < len(near))
        found.append((FoundBoxes(corners, scores, classes, AFFINE, (50,) * axes), Boxes(objects, labels)))
    return found


def matches(cases: list[tuple[FoundBoxes, Boxes]], overlap: float) -> list[Matched]:
    return [matched(found, reference, {1: "one", 2: "two"}, overlap)["one"] for found, reference in cases]


def iou(one: np.ndarray, other: np.ndarray) -> float:
    axes = len(one) // 2
    shared = np.prod(np.clip(np.minimum(one[axes:], other[axes:]) - np.maximum(one[:axes], other[:axes]), 0, None))
    return float(shared / (np.prod(one[axes:] - one[:axes]) + np.prod(other[axes:] - other[:axes]) - shared))


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("overlap", [0.1, 0.5])
def test_boxes_are_matched_by_score_and_overlap(axes: int, overlap: float) -> None:
    for found, reference in drawn(1, axes=axes):
        case = matched(found, reference, {1: "one", 2: "two"}, overlap)["one"]
        objects = reference.corners[reference.labels == 1]
        mine = found.corners[found.classes == 1]
        scores = found.scores[found.classes == 1]
        free, hits = set(range(len(objects))), []
        for number in np.argsort(-scores, kind="stable"):
            ratios = {n: iou(mine[number], objects[n]) for n in free}
            best = max(ratios, key=ratios.__getitem__) if ratios else None
            hits.append(best is not None and ratios[best] >= overlap)
            if hits[-1]:
                free.remove(best)
        assert (case.objects, case.hits.tolist()) == (len(objects), hits)
        assert case.scores.tolist() == sorted(scores, reverse=True)


def test_sensitivities_are_those_of_counting() -> None:
    for seed in range(5):
        cases = matches(drawn(seed), 0.3)
        objects = sum(case.objects for case in cases)
        expected = []
        for limit in FALSE_POSITIVES:
            best = 0.0
            for threshold in {score for case in cases for score in case.scores}:
                false = sum(int((~case.hits[case.scores >= threshold]).sum()) for case in cases)
                true = sum(int(case.hits[case.scores >= threshold].sum()) for case in cases)
                if false / len(cases) <= limit:
                    best = max(best, true / objects)
            expected.append(best)
        assert sensitivities(cases) == pytest.approx(expected)


def test_the_curve_goes_through_the_points_of_monai() -> None:
    cases = matches(drawn(7, images=30), 0.3)
    scores, hits = (np.concatenate([getattr(case, name) for case in cases]) for name in ("scores", "hits"))
    objects = sum(case.objects for case in cases)
    false, true = compute_froc_curve_data(scores[~hits], scores[hits], objects, len(cases))
    expected = [max(true[false <= limit], default=0) for limit in FALSE_POSITIVES]
    assert sensitivities(cases) == pytest.approx(expected)


@pytest.mark.parametrize("overlap", [0.1, 0.5])
@pytest.mark.parametrize("seed", [3, 4])
def test_average_precision_of_scores_that_differ_is_that_of_coco(seed: int, overlap: float) -> None:
    rng = np.random.default_rng(seed)
    # COCO takes equal scores in the order of cases.
    cases = [(replace(f, scores=f.scores + rng.uniform(0, 1e-4, len(f.scores))), r) for f, r in drawn(seed)]
    coco = COCOMetric(["none", "one", "two"], [overlap], (overlap, overlap, 0.05), [100], verbose=False)
    parts = zip(*[(f.corners, f.classes, f.scores, r.corners, r.labels) for f, r in cases], strict=True)
    figures, _ = coco(matching_batch(box_iou, [overlap], *map(list, parts), max_detections=100))
    expected = figures[f"one_AP_IoU_{overlap:.2f}_MaxDet_100"]
    assert average_precision(matches(cases, overlap)) == pytest.approx(expected, abs=1e-9)


def test_perfect_none_and_no_objects() -> None:
    perfect = [Matched(np.array([0.9]), np.array([True]), 1), Matched(np.zeros(0), np.zeros(0, bool), 0)]
    blind = [Matched(np.zeros(0), np.zeros(0, bool), 2)]
    for cases, expected in ((perfect, 1.0), (blind, 0.0)):
        found = sensitivities(cases)
        assert found is not None
        assert (found == expected).all()
        assert average_precision(cases) == pytest.approx(expected)
    assert sensitivities(perfect[1:]) is None
    assert average_precision(perfect[1:]) is None


def test_figures_of_equal_scores_do_not_depend_on_the_order_of_cases() -> None:
    hit, miss = (Matched(np.array([0.5]), np.array([value]), 1) for value in (True, False))
    assert average_precision([hit, miss]) == average_precision([miss, hit]) == pytest.approx(0.5 * 51 / 101)
    # Of one image, too, and beside other scores.
    one = Matched(np.array([0.9, 0.5, 0.5]), np.array([True, True, False]), 2)
    other = Matched(np.array([0.9, 0.5, 0.5]), np.array([True, False, True]), 2)
    assert average_precision([one]) == average_precision([other])
    cases = matches(drawn(5), 0.3)
    values = {average_precision([cases[n] for n in np.random.default_rng(seed).permutation(12)]) for seed in range(20)}
    assert len(values) == 1
