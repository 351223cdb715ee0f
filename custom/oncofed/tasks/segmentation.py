"""Semantic segmentation of volumes and flat images.

Dice with cross-entropy, sliding windows, scores on the label file's grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, ItemsView, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn
from typing_extensions import Self

from oncofed.data.augment import Augmentation, Batch
from oncofed.data.case import Case
from oncofed.data.inputs import BatchSource, Patches, Preparation, Prepared
from oncofed.data.label_names import IGNORED
from oncofed.data.looked_for import tells
from oncofed.data.references import Referenced, affine_of
from oncofed.data.region_patches import open_slide_of
from oncofed.data.spec import DataSpec
from oncofed.tasks.codes import ClassCode, require_known
from oncofed.tasks.decisions import LIKELIEST, TWO_CLASSES, Decision
from oncofed.tasks.dense import DenseTask
from oncofed.tasks.grids import FileGrid
from oncofed.tasks.inferred import LabelMap, TargetGrid, target_grid
from oncofed.tasks.losses import conditional_divergence, dice_ce
from oncofed.tasks.overlap import confusion, dice, keep_largest
from oncofed.tasks.patient_statistics import mean_over_patients
from oncofed.tasks.pictures import Picture, best_slice
from oncofed.tasks.registry import register_task_type
from oncofed.tasks.scores import Scores
from oncofed.tasks.settings import TaskSettings
from oncofed.tasks.slide_strips import SlideRegions
from oncofed.tasks.surfaces import SURFACE_METRICS, surface_figures
from oncofed.tasks.whole_slide.labelling import labelled
from oncofed.tasks.whole_slide.stitching import Stitching
from oncofed.tasks.whole_slide.store import NOTHING_KEPT, StripStore
from oncofed.tasks.windows import Windows


class SegmentationSpec(TaskSettings):
    """Settings of segmentation."""

    type: Literal["segmentation"] = "segmentation"
    classes: dict[int, str] = Field(min_length=1, description="label value -> name, without background (0)")
    ignore: int | None = Field(
        None, ge=1, le=255, description="label value of voxels that nobody labelled; its name in dataset.json: ignore"
    )
    partial: bool = Field(
        False,
        description="masks may lack classes: what nobody looked for there is unknown, and not background. dataset.json "
        "names the classes that a site has, looked_for those of one case",
    )
    distillation: float = Field(
        0.0,
        ge=0,
        le=10,
        description="with partial: weight at which a site keeps what the round's model knows of classes that the site "
        "does not label",
    )
    overlap: float = Field(0.25, ge=0, lt=0.95, description="share by which inference windows overlap")
    mirror: bool = Field(False, description="inference is the mean over all mirrorings; takes 4 or 8 times as long")
    keep_largest: tuple[int, ...] = Field((), description="label values of which only the largest piece is kept")
    surface_tolerance: float = Field(
        1.0, gt=0, le=50, description="surface Dice: mm (pixels of flat images) that count as equal"
    )
    codes: dict[int, ClassCode] = Field(
        default_factory=dict, description="label value -> coded term for DICOM; of common names SNOMED CT is known"
    )

    @field_validator("classes")
    @classmethod
    def _consecutive(cls, classes: dict[int, str]) -> dict[int, str]:
        expected = list(range(1, len(classes) + 1))
        if sorted(classes) != expected:
            raise ValueError(f"label values are {sorted(classes)}, expected {expected}: 1, 2, … without gaps")
        return dict(sorted(classes.items()))

    @model_validator(mode="after")
    def _codes_of_classes(self) -> Self:
        require_known(self.codes, self.classes)
        return self

    @model_validator(mode="after")
    def _distilled_where_partial(self) -> Self:
        if self.distillation and not self.partial:
            raise ValueError("distillation is of classes that a site lacks: say partial: true, or leave it out")
        return self

    @property
    def class_codes(self) -> dict[int, str]:
        """Label value -> its code with modifiers; of classes that have one."""
        return {value: code.text for value, code in self.codes.items()}

    @property
    def may_lack_classes(self) -> bool:
        """Whether masks may lack some of the classes."""
        return self.partial

    @property
    def structures(self) -> dict[str, tuple[int, ...]]:
        """What is scored: name -> its label values."""
        return {name: (value,) for value, name in self.classes.items()}

    @property
    def vocabulary(self) -> dict[int, str]:
        """Label values of a mask without background."""
        return {**self.classes, **({self.ignore: IGNORED} if self.ignore else {})}


@dataclass(frozen=True)
class Segmented:
    """One case with its prediction, on its label file's grid.

    Attributes:
        prediction: label values, (x, y[, z]) uint8.
        reference: label values, (x, y[, z]) uint8.
        affine: (4, 4), from voxels to RAS+ in mm; of a flat image its pixel sizes.
    """

    prediction: NDArray[np.uint8]
    reference: NDArray[np.uint8]
    affine: NDArray[np.float64]


@dataclass(frozen=True)
class _Found:
    """As ``Segmented``, on the device that computed the labels."""

    prediction: Tensor
    reference: Tensor
    affine: NDArray[np.float64]


@register_task_type("segmentation")
class Segmentation(DenseTask[dict[str, float], LabelMap]):
    """A segmentation task.

    Example:
        >>> task = Segmentation(SegmentationSpec(classes={1: "tumour"}), DataSpec(dataset="demo"))
        >>> batch = {"label": torch.ones(1, 1, 8, 8, 8)}
        >>> bool(task.loss(torch.zeros(1, 2, 8, 8, 8), batch) > 0)
        True
    """

    Settings: ClassVar[type[TaskSettings]] = SegmentationSpec
    metric = "dice"
    metric_name = "Dice"
    extra_metrics = SURFACE_METRICS
    loss_name = "Dice with cross-entropy"
    averages = True

    def __init__(self, spec: SegmentationSpec, data: DataSpec) -> None:
        super().__init__(data, spec.classes)
        self.spec = spec
        self._windows = Windows(data, spec.overlap, spec.mirror, self.out_channels)

    @property
    def out_channels(self) -> int:
        """Classes with background."""
        return self._labels_with_background

    @property
    def figure_names(self) -> list[str]:
        """Names of what is scored."""
        return self.spec.figure_names

    @property
    def learns_from_teacher(self) -> bool:
        """Whether the loss takes what the round's model says."""
        return self.spec.distillation > 0

    def input(self, augmentation: Augmentation) -> BatchSource:
        """Return patches around voxels of each class."""
        return Patches(self.data, augmentation, self._labels_with_background, partial=self.spec.partial)

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Return Dice with cross-entropy over all outputs.

        A coarser output counts half as much as the next finer one. With a teacher's output in the batch
        (``learns_from_teacher``) its divergence is added.
        """
        label, teacher, alike = batch["label"], batch.get("teacher"), batch.get("alike")
        known = None if alike is None else alike == torch.arange(alike.shape[1], device=alike.device)
        loss = deep_supervision(lambda logits: dice_ce(logits, label, self.spec.ignore, known), output, label)
        if teacher is None or known is None:
            return loss
        finest = output if output.ndim == label.ndim else output[:, 0]
        return loss + self.spec.distillation * conditional_divergence(finest, teacher, label, known)

    def scoring_preparation(self) -> Preparation:
        """Return how image and reference are read."""
        return Referenced(self.data)

    def predict(self, network: nn.Module, case: Case, device: torch.device) -> Segmented:
        """Segment one case.

        Args:
            network: from (1, channels, x, y[, z]) to logits (1, classes, x, y[, z]), on ``device``, in evaluation mode.
            case: image and label files.
            device: where the network is.
        """
        found = self._find(network, self.prepared(case), device)
        return Segmented(found.prediction.cpu().numpy(), found.reference.cpu().numpy(), found.affine)

    def evaluate_case(self, network: nn.Module, case: Case, device: torch.device, detailed: bool) -> dict[str, float]:
        """Return the case's figures by name; see ``score``."""
        if type(self).predict is Segmentation.predict:
            return self.evaluate_prepared(network, self.prepared(case), case, device, detailed)
        predicted = self.predict(network, case, device)  # which a subclass changes
        reference, prediction = (torch.from_numpy(values) for values in (predicted.reference, predicted.prediction))
        return self._figures(_Found(prediction, reference, predicted.affine), case, detailed)

    def evaluate_prepared(
        self, network: nn.Module, prepared: Prepared, case: Case, device: torch.device, detailed: bool
    ) -> dict[str, float]:
        """Return the figures of a case that was prepared by ``scoring_preparation``."""
        return self._figures(self._find(network, prepared, device), case, detailed)

    def _figures(self, found: _Found, case: Case, detailed: bool) -> dict[str, float]:
        counts = confusion(found.prediction, found.reference, self._labels_with_background, self.spec.ignore)
        known = self._known(case)
        figures = {f"dice.{name}": dice(counts, v) if name in known else math.nan for name, v in self._structures()}
        return figures | (self._surfaces(found, known) if detailed else {})

    @torch.no_grad()
    def _infer(self, network: nn.Module, prepared: Prepared, device: torch.device, entropy: bool) -> LabelMap:
        image, target = prepared["image"], target_grid(prepared)

        def segment(spare: bool) -> Tensor:
            return self._labels(network, prepared, target, device, spare, entropy)

        labels, *more = self._windows.within_memory(segment, image[0].numel())
        if self.spec.keep_largest:
            labels = labels.cpu()
            for value in self.spec.keep_largest:
                keep_largest(labels.numpy(), value)
        return LabelMap(labels, target.affine, more[0].to(torch.uint8) if entropy else None)

    def infer_slide(
        self, network: nn.Module, prepared: Prepared, device: torch.device, store: StripStore = NOTHING_KEPT
    ) -> SlideRegions:
        """Return the class of each working pixel of a whole slide."""
        with open_slide_of(prepared, self.data) as canvas:
            return labelled(self._stitching(), network, canvas, device, store)

    def _stitching(self) -> Stitching:
        """Return how a slide's windows become probabilities of each class."""
        return Stitching(self.data.patch[0], self.spec.overlap, self.spec.mirror, lambda logits: logits.softmax(1))

    def _find(self, network: nn.Module, prepared: Prepared, device: torch.device) -> _Found:
        found = self.infer(network, prepared, device)
        assert isinstance(found, LabelMap)
        return _Found(found.values, prepared["label"].to(found.values.device), found.affine)

    def _labels(
        self,
        network: nn.Module,
        prepared: Prepared,
        target: TargetGrid,
        device: torch.device,
        spare: bool,
        entropy: bool = False,
    ) -> Tensor:
        """Return labels on the target grid, (1, x, y[, z]).

        With their entropy on request, (2, …). The class is chosen slab by slab, so no volume of all classes is held.
        """
        decision, image, shape = self._decision, prepared["image"], target.shape
        grid = file_grid(self.data, image, (affine_of(prepared, "image"), target.affine), shape, self._windows)
        weighed = entropy or not grid.whole
        planes = self._windows.slabs(network, image, device, decision.change, weighed=weighed, spare=spare)
        place = torch.device("cpu") if spare else device
        labels = torch.empty(1 + entropy, *shape, dtype=_type_of(self._labels_with_background), device=place)
        grid.fill(planes if grid.whole else decision.planes(planes), labels, decision.of(grid.whole, entropy))
        return labels

    def score(self, prediction: NDArray[np.uint8], reference: NDArray[np.uint8]) -> dict[str, float]:
        """Return Dice by name.

        NaN for what is in neither volume.

        Args:
            prediction: label values, (x, y[, z]).
            reference: label values, (x, y[, z]).
        """
        counts = confusion(torch.from_numpy(prediction), torch.from_numpy(reference), self._labels_with_background)
        return {name: dice(counts, values) for name, values in self._structures()}

    def summarise(self, outcomes: Sequence[tuple[str, dict[str, float]]]) -> Scores:
        """Return mean Dice over patients, and further figures.

        A case's Dice is the mean over its classes.
        """
        with_mean = []
        for patient, figures in outcomes:
            dice = [v for k, v in figures.items() if k.startswith("dice.") and not math.isnan(v)]
            with_mean.append((patient, {**figures, "": float(np.mean(dice)) if dice else float("nan")}))
        means = mean_over_patients(with_mean)
        by_class = {name: means[f"dice.{name}"] for name, _ in self._structures() if f"dice.{name}" in means}
        more = {name: v for name, v in means.items() if name and not name.startswith("dice.")}
        return Scores(means.get(""), by_class, more)

    def case_metrics(self, outcome: dict[str, float]) -> dict[str, float | str]:
        """Return the case's figures."""
        return dict(outcome)

    def picture(self, network: nn.Module, case: Case, device: torch.device) -> Picture:
        """Return the slice with most of the reference, with contours."""
        found = self.predict(network, case, device)
        prediction = found.prediction
        if case.alike is not None:  # of what nobody told apart nobody knows whether it is right
            prediction = np.array(case.alike, prediction.dtype)[prediction]
        return best_slice(case.read_image().values, found.reference, prediction, found.affine)

    @property
    def _labels_with_background(self) -> int:
        return len(self.spec.classes) + 1

    @property
    def _decision(self) -> Decision:
        return TWO_CLASSES if self.out_channels == 2 else LIKELIEST

    def _structures(self) -> ItemsView[str, tuple[int, ...]]:
        return self.spec.structures.items()

    def _known(self, case: Case) -> dict[str, tuple[int, ...]]:
        """Return the structures that a case's mask can judge."""
        return {name: values for name, values in self._structures() if tells(case.alike, values)}

    def _surfaces(self, found: _Found, structures: dict[str, tuple[int, ...]]) -> dict[str, float]:
        """Return surface Dice and hd95; see ``surface_figures``."""
        prediction, reference = found.prediction.cpu().numpy(), found.reference.cpu().numpy()
        if self.spec.ignore:
            unlabelled = reference == self.spec.ignore
            prediction, reference = np.where(unlabelled, 0, prediction), np.where(unlabelled, 0, reference)
        spacing = voxel_sizes(found.affine)[: reference.ndim].tolist()
        return surface_figures(prediction, reference, structures, spacing, self.spec.surface_tolerance)


def deep_supervision(loss: Callable[[Tensor], Tensor], output: Tensor, label: Tensor) -> Tensor:
    """Return a loss over all outputs of deep supervision.

    Lee et al. (2015). MONAI's ``DeepSupervisionLoss`` does not normalise its weights, and copies a zero to the GPU at
    each step.

    Args:
        loss: of one output.
        output: one output, (batch, class, x, y[, z]), or several, stacked along axis 1, finest first.
        label: (batch, 1, x, y[, z]).
    """
    if output.ndim == label.ndim:
        return loss(output)
    weights = [0.5**n for n in range(output.shape[1])]
    losses = [weight * loss(output[:, n]) for n, weight in enumerate(weights)]
    return torch.stack(losses).sum() / sum(weights)


def file_grid(
    data: DataSpec,
    image: Tensor,
    affines: tuple[NDArray[np.float64], NDArray[np.float64]],
    shape: Sequence[int],
    windows: Windows,
) -> FileGrid:
    """Return a label file's grid, seen from the working grid.

    Args:
        data: of the job.
        image: (channel, x, y[, z]) on the working grid.
        affines: of the working grid and of the file's, (4, 4).
        shape: of the file's grid.
        windows: give the axis of the planes.
    """
    working = tuple(image.shape[1:])
    # Flat images and their masks coincide, whatever their files state.
    same = data.dimensions == 2 and not data.spacing
    return FileGrid(affines[1] if same else affines[0], working, affines[1], shape, windows.axis(working))


def _type_of(classes: int) -> torch.dtype:
    return torch.uint8 if classes <= 256 else torch.int16
