"""The task of detection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from oncofed.data.augment import Augmentation, Batch
from oncofed.data.boxes import Boxes, filled
from oncofed.data.case import Case
from oncofed.data.inputs import BatchSource, Preparation, Prepared
from oncofed.data.label_mapping import LabelKind
from oncofed.data.located import BoxPatches, Located, of_file
from oncofed.data.references import Unreferenced, affine_of
from oncofed.data.spec import DataSpec
from oncofed.plugins import Kind
from oncofed.tasks.base import Task
from oncofed.tasks.detection.figures import (
    MEAN_PRECISION,
    PRECISION,
    SENSITIVITIES,
    average_precision,
    patients_of_steps,
    sensitivities,
    sensitivities_at,
)
from oncofed.tasks.detection.finding import Finder
from oncofed.tasks.detection.froc_sums import FrocSums, curve_may_leave, froc_sums, told_patients
from oncofed.tasks.detection.loss import Columns, detection_loss
from oncofed.tasks.detection.outcome import DetectionOutcome, Matched, matched
from oncofed.tasks.detection.spec import DetectionSpec
from oncofed.tasks.differences import Part
from oncofed.tasks.inferred import FoundBoxes
from oncofed.tasks.metrics import Metric
from oncofed.tasks.pictures import Picture, best_slice
from oncofed.tasks.pooled_target import TargetSums
from oncofed.tasks.registry import register_task_type
from oncofed.tasks.scores import Scores
from oncofed.tasks.settings import TaskSettings

_HIT_OVERLAP = {2: 0.5, 3: 0.1}
# From this score on a box is told of in a case's figures.
_LIKELY = 0.5


@register_task_type("detection")
class Detection(Task[DetectionOutcome]):
    """Detection of objects as boxes, scored by FROC.

    The metric is the mean sensitivity at 1/8 to 8 false positives an image (CPM), a mean over classes.
    """

    Settings = DetectionSpec
    metric = "cpm"
    metric_name = "CPM (FROC)"
    extra_metrics = (*SENSITIVITIES, MEAN_PRECISION, PRECISION)
    loss_name = "focal loss, and smooth L1 of the boxes"
    compiles_loss = False  # another number of objects would be another graph
    label_kind: LabelKind = "boxes"
    network_kind: Kind = "boxes"
    compares_patients = False

    def __init__(self, spec: DetectionSpec, data: DataSpec) -> None:
        super().__init__(data, spec.classes)
        self.spec = spec
        self._columns = Columns(len(spec.classes), data.dimensions)
        self._find = Finder(data, spec, self._columns)
        self._hit = spec.hit_overlap or _HIT_OVERLAP[data.dimensions]

    @classmethod
    def false_positives_per(cls, settings: TaskSettings) -> str:
        """Return by what FROC counts false positives."""
        del settings
        return "an image"

    @classmethod
    def declared_metrics(cls, settings: TaskSettings) -> tuple[Metric, ...]:
        """Return FROC and average precision."""
        return (*sensitivities_at(cls.false_positives_per(settings)), MEAN_PRECISION, PRECISION)

    @classmethod
    def declared_sums(cls, settings: TaskSettings) -> Mapping[str, TargetSums]:
        """Return what checks the counts of each class's boxes, and makes FROC of them."""
        assert isinstance(settings, DetectionSpec)
        per = cls.false_positives_per(settings)
        sums = FrocSums(Metric(cls.metric, cls.metric_name), sensitivities_at(per), per, settings.most_boxes)
        return dict.fromkeys(settings.classes.values(), sums)

    @property
    def out_channels(self) -> int:
        """Values of each anchor; see ``RetinaNetBoxes``."""
        return self._columns.number

    def input(self, augmentation: Augmentation) -> BatchSource:
        """Return patches around objects and elsewhere."""
        return BoxPatches(self.data, augmentation, list(self.classes))

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Return the focal loss of classes plus the error of boxes."""
        loss: Tensor = detection_loss(
            output, batch["boxes"], batch["classes"], self._columns, self.spec.candidates, self.spec.box_weight
        )
        return loss

    def scoring_preparation(self) -> Preparation:
        """Return how image and objects are read."""
        return Located(self.data, list(self.classes))

    def inference_preparation(self) -> Preparation:
        """Return how an unlabelled image is read."""
        return Unreferenced(self.data)

    def infer(self, network: nn.Module, prepared: Prepared, device: torch.device) -> FoundBoxes:
        """Return the boxes found, in voxels of the image's file."""
        boxes, scores, classes = self._find(network, prepared["image"], device)
        return FoundBoxes(
            of_file(boxes.double().numpy(), prepared, self.data),
            scores.double().numpy(),
            np.array(list(self.classes))[classes.numpy()],
            affine_of(prepared, "file"),
            tuple(prepared["file.shape"].tolist()),
        )

    def evaluate_case(self, network: nn.Module, case: Case, device: torch.device, detailed: bool) -> DetectionOutcome:
        """Return the case's boxes, held against its objects."""
        prepared = self.prepared(case)
        return matched(self.infer(network, prepared, device), _reference(prepared), self.classes, self._hit)

    def summarise(self, outcomes: Sequence[tuple[str, DetectionOutcome]]) -> Scores:
        """Return FROC and average precision over all cases.

        Of classes that have objects, and their means.
        """
        by_class, curves, precisions = {}, [], {}
        for name in self.classes.values():
            cases = [outcome[name] for _, outcome in outcomes]
            curve, precision = sensitivities(cases), average_precision(cases)
            if curve is not None and precision is not None:
                by_class[name] = float(curve.mean())
                curves.append(curve)
                precisions[name] = precision
        if not curves:
            return Scores(None)
        mean = np.mean(curves, axis=0)
        extra = {metric.name: float(value) for metric, value in zip(SENSITIVITIES, mean, strict=True)}
        extra[MEAN_PRECISION.name] = float(np.mean(list(precisions.values())))
        extra |= {f"{PRECISION.name}.{name}": value for name, value in precisions.items()}
        return Scores(float(mean.mean()), by_class, extra)

    def pooled(
        self, outcomes: Sequence[tuple[str, DetectionOutcome]], temperature: float | None = None
    ) -> dict[str, Any] | None:
        """Return counts of each class's boxes, to add to other sites'."""
        del temperature
        found = {}
        for name in self.classes.values():
            sums = froc_sums(self._of_class(outcomes, name))
            if sums:
                found[name] = sums
        return {"patients": len({patient for patient, _ in outcomes}), "targets": found} if found else None

    def patients_behind(self, outcomes: Sequence[tuple[str, DetectionOutcome]]) -> dict[str, set[str]]:
        """Return the patients behind each figure: those of a curve's smallest step.

        Of whichever class; no more than ``froc_sums`` may tell.
        """
        by_class = {name: self._of_class(outcomes, name) for name in self.classes.values()}
        steps = {name: found for name, cases in by_class.items() if (found := patients_of_steps(cases))}
        if not steps:
            return {}
        fewest = min((step for found in steps.values() for step in found), key=len)
        told = set(sorted(fewest)[: told_patients(len(fewest), len({patient for patient, _ in outcomes}))])
        of_all = [MEAN_PRECISION.name, *(metric.name for metric in SENSITIVITIES)]
        return dict.fromkeys((*of_all, *steps, *(f"{PRECISION.name}.{name}" for name in steps)), told)

    def may_leave(self, outcomes: Sequence[tuple[str, DetectionOutcome]]) -> bool:
        """Return whether the curve of each class may leave, and with it what is made of it."""
        return all(curve_may_leave(self._of_class(outcomes, name)) for name in self.classes.values())

    def paired(
        self, outcomes: Sequence[tuple[str, DetectionOutcome]], others: Sequence[tuple[str, DetectionOutcome]]
    ) -> Part | None:
        """Return None: leaving out patients tells no variance of a difference in sensitivity.

        The score at a rate of false positives is a quantile, at which the jackknife fails (Efron, 1979).
        """
        del outcomes, others
        return None

    def _of_class(self, outcomes: Sequence[tuple[str, DetectionOutcome]], name: str) -> list[tuple[str, Matched]]:
        return [(patient, outcome[name]) for patient, outcome in outcomes]

    def case_metrics(self, outcome: DetectionOutcome) -> dict[str, float | str]:
        """Return each class's objects, and boxes that are likely ones."""
        found: dict[str, float | str] = {}
        for name, boxes in outcome.items():
            likely = boxes.hits[boxes.scores >= _LIKELY]
            found |= {f"objects.{name}": float(boxes.objects), f"hits.{name}": float(likely.sum())}
            found[f"false_positives.{name}"] = float((~likely).sum())
        return found

    def picture(self, network: nn.Module, case: Case, device: torch.device) -> Picture:
        """Return the slice with most of the objects, with boxes.

        As many of the likeliest boxes as there are objects, one at least.
        """
        prepared = self.prepared(case)
        found, reference = self.infer(network, prepared, device), _reference(prepared)
        shown = slice(max(1, len(reference.labels)))
        return best_slice(
            case.read_image().values,
            filled(reference.corners, reference.labels, found.shape),
            filled(found.corners[shown], found.classes[shown], found.shape),
            found.affine,
        )


def _reference(prepared: Prepared) -> Boxes:
    return Boxes(prepared["boxes"].cpu().numpy(), prepared["classes"].cpu().numpy())
