"""What detection found in a case, held against its objects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from monai.apps.detection.metrics.matching import matching_batch
from monai.data.box_utils import box_iou
from numpy.typing import NDArray

from oncofed.data.boxes import Boxes
from oncofed.tasks.inferred import FoundBoxes


@dataclass(frozen=True)
class Matched:
    """The boxes of one class in one case.

    Attributes:
        scores: of each box that was found, (box,).
        hits: whether it is an object, (box,). An object has one hit at most, a further box on it is a false positive.
        objects: number of objects.
        extent: by which false positives are counted: one image, or mm² of tissue.
    """

    scores: NDArray[np.float64]
    hits: NDArray[np.bool_]
    objects: int
    extent: float = 1.0


# Class name -> its boxes; each class of the job is there.
DetectionOutcome = Mapping[str, Matched]


def matched(
    found: FoundBoxes, reference: Boxes, classes: Mapping[int, str], overlap: float, extent: float = 1.0
) -> DetectionOutcome:
    """Return which boxes of a case are objects.

    As COCO matches them: boxes take their turn by score, and each takes the object of its class, not yet taken, with
    which it overlaps most.

    Args:
        found: in the case.
        reference: its objects, on the same grid.
        classes: label value -> name.
        overlap: least IoU of a hit.
        extent: see ``Matched``.
    """
    (by_label,) = matching_batch(
        box_iou,
        [overlap],
        [found.corners],
        [found.classes],
        [found.scores],
        [reference.corners],
        [reference.labels],
        max_detections=max(1, len(found.scores)),
    )
    none = Matched(np.zeros(0), np.zeros(0, bool), 0, extent)
    return {
        name: none
        if label not in by_label
        else Matched(
            np.asarray(by_label[label]["dtScores"], np.float64),
            np.asarray(by_label[label]["dtMatches"][0] > 0),
            by_label[label]["gtMatches"].shape[1],
            extent,
        )
        for label, name in classes.items()
    }
