"""Classification of whole images, flat or volumes: cross-entropy, AUROC, calibration."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn import functional

from oncofed.data.augment import Augmentation, Batch
from oncofed.data.case import Case
from oncofed.data.inputs import BatchSource, Preparation, Prepared, WholeImages
from oncofed.data.label_mapping import LabelKind
from oncofed.data.spec import DataSpec
from oncofed.devices import inference_type
from oncofed.plugins import Kind
from oncofed.suppression import LEAST_PATIENTS
from oncofed.tasks.base import Task
from oncofed.tasks.calibration import temperature_sums
from oncofed.tasks.differences import Part, area_difference
from oncofed.tasks.inferred import ClassScores, Inferred
from oncofed.tasks.metrics import Metric
from oncofed.tasks.pictures import Picture, middle_slice
from oncofed.tasks.registry import register_task_type
from oncofed.tasks.scores import Scores
from oncofed.tasks.settings import TaskSettings
from oncofed.tasks.site_sums import classification_sums, grouped

_FURTHER = (
    Metric("auprc", "average precision (AUPRC)"),
    Metric("balanced_accuracy", thresholded=True),
    Metric("calibration_error"),
)
_BINS = 10
# Images, and values of them all together, that are scored at once: large enough to fill a GPU, small enough for any.
_IMAGES_AT_ONCE, _VALUES_AT_ONCE = 64, 1 << 22


class ClassesSpec(TaskSettings):
    """Classes of an image or a slide."""

    classes: dict[int, str] = Field(min_length=2, description="label value -> name, from 0")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of the certainty that training takes away")

    @field_validator("classes")
    @classmethod
    def _consecutive(cls, classes: dict[int, str]) -> dict[int, str]:
        expected = list(range(len(classes)))
        if sorted(classes) != expected:
            raise ValueError(f"label values are {sorted(classes)}, expected {expected}: 0, 1, … without gaps")
        return dict(sorted(classes.items()))

    @property
    def vocabulary(self) -> dict[int, str]:
        """Label values that a case may have."""
        return self.classes


class ClassificationSpec(ClassesSpec):
    """Settings of image classification."""

    type: Literal["classification"] = "classification"


@dataclass(frozen=True)
class Classified:
    """One image's probabilities and label.

    Attributes:
        probabilities: of each class; they add up to one.
        label: the class that it is.
    """

    probabilities: NDArray[np.float64]
    label: int


@register_task_type("classification")
class Classification(Task[Classified]):
    """A task that gives each image one class.

    Example:
        >>> spec = ClassificationSpec(classes={0: "clear", 1: "pneumonia"})
        >>> task = Classification(spec, DataSpec(dataset="demo", modality="xray", patch=(64, 64)))
        >>> round(float(task.loss(torch.zeros(3, 2), {"label": torch.tensor([0, 1, 1])})), 3)
        0.693
    """

    Settings: ClassVar[type[TaskSettings]] = ClassificationSpec
    metric = "auroc"
    metric_name = "AUROC"
    extra_metrics = _FURTHER
    loss_name = "cross-entropy"
    label_kind: LabelKind = "class"
    network_kind: Kind = "image"

    def __init__(self, spec: ClassesSpec, data: DataSpec) -> None:
        super().__init__(data, spec.classes)
        self.spec = spec
        values = math.prod(data.patch) * len(data.channels)
        self.cases_at_once = max(1, min(_IMAGES_AT_ONCE, _VALUES_AT_ONCE // values))

    @property
    def out_channels(self) -> int:
        """Classes."""
        return len(self.classes)

    def input(self, augmentation: Augmentation) -> BatchSource:
        """Return whole images."""
        return WholeImages(self.data, augmentation)

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Return the cross-entropy."""
        return functional.cross_entropy(output, batch["label"], label_smoothing=self.spec.label_smoothing)

    def scoring_preparation(self) -> Preparation | None:
        """Return whole images, as training has them."""
        return WholeImages(self.data, "none")

    def inference_preparation(self) -> Preparation:
        """Return whole images, as training has them."""
        return WholeImages(self.data, "none")

    def infer(self, network: nn.Module, prepared: Prepared, device: torch.device) -> ClassScores:
        """Return the logits of one image."""
        return self._scores(network, [prepared], device)[0]

    def shares(self, found: ClassScores) -> dict[str, NDArray[np.float64]]:
        """Return the probabilities, which are shares already."""
        return {"": found.probabilities(self.temperature)}

    def _infer_part(
        self, network: nn.Module, prepared: Sequence[Prepared], device: torch.device, entropy: bool
    ) -> list[Inferred]:
        if type(self).infer is not Classification.infer:  # as slides, which are taken one by one
            return super()._infer_part(network, prepared, device, entropy)
        return list(self._scores(network, prepared, device))

    @torch.no_grad()
    def _scores(self, network: nn.Module, prepared: Sequence[Prepared], device: torch.device) -> list[ClassScores]:
        images = torch.stack([case["image"] for case in prepared]).to(device)
        with torch.autocast(device.type, inference_type(device), enabled=device.type == "cuda"):
            logits = network(images)
        return [ClassScores(each) for each in logits.float().double().cpu().numpy()]

    def evaluate_case(self, network: nn.Module, case: Case, device: torch.device, detailed: bool) -> Classified:
        """Evaluate a network on one case."""
        return self.evaluate_cases(network, [case], device, detailed)[0]

    def evaluate_cases(
        self, network: nn.Module, cases: Sequence[Case], device: torch.device, detailed: bool
    ) -> list[Classified]:
        """Evaluate a network on several cases, as one batch."""
        scores = self._scores(network, [self.prepared(case) for case in cases], device)
        return [
            Classified(score.probabilities(self.temperature), case.class_label)
            for score, case in zip(scores, cases, strict=True)
        ]

    def summarise(self, outcomes: Sequence[tuple[str, Classified]]) -> Scores:
        """Return AUROC and other figures over patients.

        A patient's images of one class count as one, by their mean probabilities.
        """
        found, labels, _ = grouped(*_stacked(outcomes, len(self.classes)))
        return class_scores(found, labels, self.classes)

    def pooled(
        self, outcomes: Sequence[tuple[str, Classified]], temperature: float | None = None
    ) -> dict[str, Any] | None:
        """Return counts by predicted probability, and sums for calibration."""
        return classification_sums(*_stacked(outcomes, len(self.classes)), self.classes, temperature)

    def temperature_sums(self, outcomes: Sequence[tuple[str, Classified]]) -> dict[str, Any] | None:
        """Return sums to fit a temperature."""
        return temperature_sums(*_stacked(outcomes, len(self.classes)))

    def paired(
        self, outcomes: Sequence[tuple[str, Classified]], others: Sequence[tuple[str, Classified]]
    ) -> Part | None:
        """Return the difference of two AUROCs on the same images.

        None where a class has, or lacks, too few patients.
        """
        first, labels, patients = grouped(*_stacked(outcomes, len(self.classes)))
        second, _, _ = grouped(*_stacked(others, len(self.classes)))
        for value in self.classes:
            for kind in (labels == value, labels != value):
                if len({patients[index] for index in np.flatnonzero(kind)}) < LEAST_PATIENTS:
                    return None
        return area_difference(first, second, labels, patients)

    def case_metrics(self, outcome: Classified) -> dict[str, float | str]:
        """Return the case's class and the probability of each."""
        figures = {f"probability.{name}": float(outcome.probabilities[value]) for value, name in self.classes.items()}
        return {"class": self.classes[outcome.label], **figures}

    def case_score(self, outcome: Classified) -> float | None:
        """Return the probability of the case's class."""
        return float(outcome.probabilities[outcome.label])

    def drawing(self, patients: Sequence[Sequence[Classified]]) -> Callable[[NDArray[np.int64]], float | None]:
        """Return a function from drawn patients to the metric.

        Their images of one class are averaged once.
        """
        if type(self).summarise is not Classification.summarise:
            return super().drawing(patients)
        rows: list[tuple[int, NDArray[np.float64]]] = []
        counts = []
        for outcomes in patients:
            values = sorted({outcome.label for outcome in outcomes})
            rows += [(v, np.mean([o.probabilities for o in outcomes if o.label == v], axis=0)) for v in values]
            counts.append(len(values))
        found, labels = np.array([row for _, row in rows]), np.array([label for label, _ in rows], np.int64)
        numbers, starts = np.array(counts), np.cumsum(counts) - counts

        def metric(drawn: NDArray[np.int64]) -> float | None:
            many = numbers[drawn]
            first = np.cumsum(many) - many
            index = np.arange(many.sum()) + np.repeat(starts[drawn] - first, many)
            return class_scores(found[index], labels[index], self.classes).mean if len(index) else None

        return metric

    def classes_told(self, outcome: Classified) -> set[str]:
        """Return the case's class; of two classes, both.

        The area of one is the other's mirror image.
        """
        return {self.classes[outcome.label]} if len(self.classes) > 2 else set(self.classes.values())

    def kinds(self, outcomes: Sequence[tuple[str, Classified]]) -> dict[str, set[str]]:
        """Return the patients who have each class."""
        return {name: {p for p, outcome in outcomes if outcome.label == value} for value, name in self.classes.items()}

    def patients_behind(self, outcomes: Sequence[tuple[str, Classified]]) -> dict[str, set[str]]:
        """Return the patients behind each figure.

        Of a class those with it or without it, whichever are fewer; of further figures the fewest.
        """
        having = self.kinds(outcomes)
        others = {
            name: {p for p, outcome in outcomes if outcome.label != value} for value, name in self.classes.items()
        }
        behind = {name: min(having[name], others[name], key=len) for name in having}
        if len(having) == 2:  # of as many of either kind, too: the area of both rests on the same few
            behind = dict.fromkeys(having, min(having.values(), key=len))
        fewest = min((patients for patients in having.values() if patients), key=len, default=set[str]())
        return {**behind, **dict.fromkeys((metric.name for metric in _FURTHER), fewest)}

    def picture(self, network: nn.Module, case: Case, device: torch.device) -> Picture:
        """Return the image with label and prediction."""
        found = self.evaluate_case(network, case, device, detailed=False)
        image = case.read_image()
        return middle_slice(image.values, image.affine, caption(found, self.classes))


def _stacked(
    outcomes: Sequence[tuple[str, Classified]], classes: int
) -> tuple[NDArray[np.float64], NDArray[np.int64], list[str]]:
    """Return probabilities (image, class), labels (image,), and the key of each image's patient."""
    found = np.array([outcome.probabilities for _, outcome in outcomes], dtype=np.float64).reshape(-1, classes)
    labels = np.array([outcome.label for _, outcome in outcomes], dtype=np.int64)
    return found, labels, [patient for patient, _ in outcomes]


def caption(found: Classified, classes: dict[int, str]) -> str:
    """Return label and prediction in words."""
    best = int(found.probabilities.argmax())
    return f"{classes[found.label]}; model: {classes[best]} ({found.probabilities[best]:.0%})"


def class_scores(found: NDArray[np.float64], labels: NDArray[np.int64], classes: dict[int, str]) -> Scores:
    """Return figures of a classifier.

    Args:
        found: probabilities, (case, class).
        labels: true classes, (case,).
        classes: value -> name.

    Returns:
        As metric the area under the ROC curve: of two classes that of the second one, of more the mean of each against
        the rest; None where only one class is there. Besides: average precision (AUPRC), balanced accuracy, and the
        expected calibration error over ten equal bins of confidence (Guo et al., ICML 2017).
    """
    if not len(labels):
        return Scores(None)
    areas, precisions, recalls = {}, {}, {}
    predicted = found.argmax(axis=1)
    for value, name in classes.items():
        is_it = labels == value
        if not is_it.any():
            continue
        recalls[name] = float((predicted[is_it] == value).mean())
        if is_it.all():
            continue
        areas[name], precisions[name] = ranking_scores(found[:, value], is_it)
    more = {
        "balanced_accuracy": float(np.mean(list(recalls.values()))),
        "calibration_error": _calibration(found, labels),
    }
    if not areas:
        return Scores(None, {}, more)
    # Of two classes one area is the other's mirror image: the second class is the positive one.
    shown = list(classes.values())[1:] if len(classes) == 2 else list(areas)
    mean = float(np.mean([areas[name] for name in shown if name in areas]))
    more["auprc"] = float(np.mean([precisions[name] for name in shown if name in precisions]))
    return Scores(mean, areas, more)


def ranking_scores(probability: NDArray[np.float64], truth: NDArray[np.bool_]) -> tuple[float, float]:
    """Return AUROC and average precision of one class.

    Equal probabilities are tied.

    As MONAI's ``compute_roc_auc`` and ``compute_average_precision`` have them, which take the cases one by one: an
    interval asks for them thousands of times.

    Args:
        probability: (case,).
        truth: (case,); both values are there.
    """
    order = np.argsort(-probability, kind="stable")
    last = np.append(np.flatnonzero(np.diff(probability[order])), len(order) - 1)  # of each run of equals
    hits = np.cumsum(truth[order])[last]
    misses = last + 1 - hits
    new_hits, new_misses = np.diff(hits, prepend=0), np.diff(misses, prepend=0)
    pairs = (new_hits * (misses[-1] - misses + new_misses / 2)).sum()
    return float(pairs / (hits[-1] * misses[-1])), float((new_hits * hits / (last + 1)).sum() / hits[-1])


def _calibration(found: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    confidence, right = found.max(axis=1), found.argmax(axis=1) == labels
    bins = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    gaps = [
        (bins == number).mean() * abs(confidence[bins == number].mean() - right[bins == number].mean())
        for number in np.unique(bins)
    ]
    return float(sum(gaps))
