"""Semantic segmentation of volumes and flat images.

Dice with cross-entropy, sliding windows, scores on the label file's grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn
from typing_extensions import Self

from oncofed.data.augment import Augmentation, Batch
from oncofed.data.cases import Case
from oncofed.data.inputs import BatchSource, Patches, Preparation, Prepared
from oncofed.data.label_mapping import IGNORED
from oncofed.data.references import Referenced, affine_of
from oncofed.data.spec import DataSpec
from oncofed.tasks.codes import ClassCode, require_known
from oncofed.tasks.dense import DenseTask
from oncofed.tasks.entropy import entropy_bytes
from oncofed.tasks.grids import Decide, FileGrid
from oncofed.tasks.inferred import LabelMap, TargetGrid, target_grid
from oncofed.tasks.losses import dice_ce
from oncofed.tasks.overlap import confusion, dice, keep_largest
from oncofed.tasks.patient_statistics import mean_over_patients
from oncofed.tasks.pictures import Picture, best_slice
from oncofed.tasks.registry import register_task_type
from oncofed.tasks.scores import Scores
from oncofed.tasks.settings import TaskSettings
from oncofed.tasks.surfaces import SURFACE_METRICS, surface_figures
from oncofed.tasks.windows import Planes, Windows


class SegmentationSpec(TaskSettings):
    """Settings of segmentation."""

    type: Literal["segmentation"] = "segmentation"
    classes: dict[int, str] = Field(min_length=1, description="label value -> name, without background (0)")
    ignore: int | None = Field(
        None, ge=1, le=255, description="label value of voxels that nobody labelled; its name in dataset.json: ignore"
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

    Settings = SegmentationSpec
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
        return len(self.spec.classes) + 1

    def input(self, augmentation: Augmentation) -> BatchSource:
        """Return patches around voxels of each class."""
        return Patches(self.data, augmentation, self.out_channels)

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Return Dice with cross-entropy over all outputs.

        A coarser output counts half as much as the next finer one.
        """
        return deep_supervision(
            lambda logits: dice_ce(logits, batch["label"], self.spec.ignore), output, batch["label"]
        )

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
        found = self._find(network, case, device)
        return Segmented(found.prediction.cpu().numpy(), found.reference.cpu().numpy(), found.affine)

    def evaluate_case(self, network: nn.Module, case: Case, device: torch.device, detailed: bool) -> dict[str, float]:
        """Return the case's figures by name; see ``score``."""
        if type(self).predict is Segmentation.predict:
            found = self._find(network, case, device)
        else:  # a subclass changes the prediction
            predicted = self.predict(network, case, device)
            found = _Found(
                torch.from_numpy(predicted.prediction), torch.from_numpy(predicted.reference), predicted.affine
            )
        counts = confusion(found.prediction, found.reference, self.out_channels, self.spec.ignore)
        figures = {f"dice.{k}": v for k, v in zip(self.classes.values(), dice(counts), strict=True)}
        return figures | (self._surfaces(found) if detailed else {})

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

    def _find(self, network: nn.Module, case: Case, device: torch.device) -> _Found:
        prepared = self.prepared(case)
        found = self.infer(network, prepared, device)
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
        two, image, shape = self.out_channels == 2, prepared["image"], target.shape
        grid = file_grid(self.data, image, (affine_of(prepared, "image"), target.affine), shape, self._windows)
        change, weighed = _difference if two else None, entropy or not grid.whole
        planes = self._windows.slabs(network, image, device, change, weighed=weighed, spare=spare)
        labels = torch.empty(
            1 + entropy, *shape, dtype=_type_of(self.out_channels), device=torch.device("cpu") if spare else device
        )
        decorate = _with_entropy(grid.whole) if entropy else _alone
        # Probabilities are needed only for interpolation; at a voxel the largest logit is also the largest probability.
        if two:
            limit = 0.0 if grid.whole else 0.5
            # A bool is a byte of 0 or 1, so a view is a label without a copy.
            decide = decorate(lambda v: (v > limit).view(torch.uint8))
            grid.fill(planes if grid.whole else _sigmoid(planes), labels, decide)
        else:
            # Like argmax, also for ties, in a seventh of the time on a CPU.
            decide = decorate(lambda v: v.max(0, keepdim=True).indices)
            grid.fill(planes if grid.whole else _softmax(planes), labels, decide)
        return labels

    def score(self, prediction: NDArray[np.uint8], reference: NDArray[np.uint8]) -> dict[str, float]:
        """Return Dice by class name.

        NaN for a class in neither volume.

        Args:
            prediction: label values, (x, y[, z]).
            reference: label values, (x, y[, z]).
        """
        counts = confusion(torch.from_numpy(prediction), torch.from_numpy(reference), self.out_channels)
        return dict(zip(self.classes.values(), dice(counts), strict=True))

    def summarise(self, outcomes: Sequence[tuple[str, dict[str, float]]]) -> Scores:
        """Return mean Dice over patients, and further figures.

        A case's Dice is the mean over its classes.
        """
        with_mean = []
        for patient, figures in outcomes:
            dice = [v for k, v in figures.items() if k.startswith("dice.") and not math.isnan(v)]
            with_mean.append((patient, {**figures, "": float(np.mean(dice)) if dice else float("nan")}))
        means = mean_over_patients(with_mean)
        by_class = {name: means[f"dice.{name}"] for name in self.classes.values() if f"dice.{name}" in means}
        more = {name: v for name, v in means.items() if name and not name.startswith("dice.")}
        return Scores(means.get(""), by_class, more)

    def case_metrics(self, outcome: dict[str, float]) -> dict[str, float | str]:
        """Return the case's figures."""
        return dict(outcome)

    def picture(self, network: nn.Module, case: Case, device: torch.device) -> Picture:
        """Return the slice with most of the reference, with contours."""
        found = self.predict(network, case, device)
        return best_slice(case.read_image().values, found.reference, found.prediction, found.affine)

    def _surfaces(self, found: _Found) -> dict[str, float]:
        """Return surface Dice and hd95; see ``surface_figures``."""
        prediction, reference = found.prediction.cpu().numpy(), found.reference.cpu().numpy()
        if self.spec.ignore:
            unlabelled = reference == self.spec.ignore
            prediction, reference = np.where(unlabelled, 0, prediction), np.where(unlabelled, 0, reference)
        spacing = voxel_sizes(found.affine)[: reference.ndim].tolist()
        return surface_figures(prediction, reference, self.classes, spacing, self.spec.surface_tolerance)


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


def _alone(decide: Decide) -> Decide:
    return decide


def _with_entropy(logits: bool) -> Callable[[Decide], Decide]:
    """Return a decorator of decisions that adds the entropy.

    From probabilities, or from ``logits``.
    """

    def with_it(decide: Decide) -> Decide:
        def both(values: Tensor) -> Tensor:
            labels = decide(values)
            likely = values if not logits else values.sigmoid() if len(values) == 1 else values.softmax(0)
            return torch.cat([labels, entropy_bytes(likely).to(labels.dtype)])

        return both

    return with_it


def _difference(logits: Tensor) -> Tensor:
    """Return the second class's logits minus the first's.

    Half the values give the same decision.
    """
    return logits[1:].sub_(logits[:1])


def _sigmoid(planes: Iterable[Planes]) -> Iterable[Planes]:
    return ((first, values.sigmoid()) for first, values in planes)


def _softmax(planes: Iterable[Planes]) -> Iterable[Planes]:
    return ((first, values.softmax(0)) for first, values in planes)


def _type_of(classes: int) -> torch.dtype:
    return torch.uint8 if classes <= 256 else torch.int16
