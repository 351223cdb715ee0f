"""Segmentation of volumes and flat images: Dice with cross-entropy, sliding window, scores on the image's own grid."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from monai.inferers import SlidingWindowInferer
from monai.metrics import compute_hausdorff_distance, compute_surface_dice
from monai.transforms import SpatialResample
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray
from pydantic import Field, field_validator
from scipy import ndimage
from torch import Tensor, nn

from oncofed.data.augment import Augmentation, Batch
from oncofed.data.cases import Case
from oncofed.data.inputs import Input, Patches
from oncofed.data.spec import DataSpec
from oncofed.data.transforms import as_tensor, load_image
from oncofed.data.vocabulary import IGNORED
from oncofed.devices import inference_type
from oncofed.settings import StrictModel
from oncofed.tasks.base import Scores, Task, mean_over_patients
from oncofed.tasks.losses import dice_ce
from oncofed.tasks.pictures import Picture, best_slice

_WINDOWS_AT_ONCE = 4


class SegmentationSpec(StrictModel):
    """What a segmentation job learns."""

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

    @field_validator("classes")
    @classmethod
    def _consecutive(cls, classes: dict[int, str]) -> dict[int, str]:
        expected = list(range(1, len(classes) + 1))
        if sorted(classes) != expected:
            raise ValueError(f"label values are {sorted(classes)}, expected {expected}: 1, 2, … without gaps")
        return dict(sorted(classes.items()))

    @property
    def vocabulary(self) -> dict[int, str]:
        """Label values that a mask may hold, beside background."""
        return {**self.classes, **({self.ignore: IGNORED} if self.ignore else {})}


@dataclass(frozen=True)
class Segmented:
    """One case with its prediction, on the grid of its label's file.

    Attributes:
        prediction: label values, (x, y[, z]) uint8.
        reference: label values, (x, y[, z]) uint8.
        affine: (4, 4), from voxels to RAS+ in mm; of a flat image its pixel sizes.
    """

    prediction: NDArray[np.uint8]
    reference: NDArray[np.uint8]
    affine: NDArray[np.float64]


class Windows:
    """Sliding-window inference with Gaussian weights, on the mean over mirrorings where that is wanted.

    Args:
        data: of the job: windows are as large as patches.
        overlap: share by which they overlap.
        mirror: average over all mirrorings.
    """

    def __init__(self, data: DataSpec, overlap: float, mirror: bool) -> None:
        self._infer = SlidingWindowInferer(data.patch, _WINDOWS_AT_ONCE, overlap, mode="gaussian")
        axes = range(2, 2 + data.dimensions)
        sets = (itertools.combinations(axes, n) for n in range(data.dimensions + 1)) if mirror else [[()]]
        self._mirrorings = [list(flips) for group in sets for flips in group]

    def __call__(self, network: nn.Module, image: Tensor, device: torch.device) -> Tensor:
        """Return the network's output (out, x, y[, z]) float32 for an image (channel, x, y[, z])."""
        batch = image[None].to(device)
        total: Tensor | None = None
        with torch.autocast(device.type, inference_type(device), enabled=device.type == "cuda"):
            for flips in self._mirrorings:
                output = self._infer(batch.flip(flips) if flips else batch, network).float()
                output = output.flip(flips) if flips else output
                total = output if total is None else total + output
        assert total is not None
        return total[0] / len(self._mirrorings)


class Segmentation(Task[dict[str, float]]):
    """A segmentation task.

    Example:
        >>> task = Segmentation(SegmentationSpec(classes={1: "tumour"}), DataSpec(dataset="demo"))
        >>> batch = {"label": torch.ones(1, 1, 8, 8, 8)}
        >>> bool(task.loss(torch.zeros(1, 2, 8, 8, 8), batch) > 0)
        True
    """

    metric = "dice"
    metric_name = "Dice"

    def __init__(self, spec: SegmentationSpec, data: DataSpec) -> None:
        super().__init__(data, spec.classes)
        self.spec = spec
        self._windows = Windows(data, spec.overlap, spec.mirror)
        self._load_image = load_image(data)

    @property
    def out_channels(self) -> int:
        """Classes with background."""
        return len(self.spec.classes) + 1

    def input(self, augmentation: Augmentation) -> Input:
        """Return patches around voxels of each class."""
        return Patches(self.data, augmentation, self.out_channels)

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Return Dice with cross-entropy; coarser outputs count half as much as the next finer one."""
        return deeply(lambda logits: dice_ce(logits, batch["label"], self.spec.ignore), output, batch["label"])

    @torch.no_grad()
    def predict(self, network: nn.Module, case: Case, device: torch.device) -> Segmented:
        """Segment one case.

        Args:
            network: from (1, channels, x, y[, z]) to logits (1, classes, x, y[, z]), on ``device``, in evaluation mode.
            case: image and label files.
            device: where the network is.
        """
        reference = as_tensor(case.read_label())
        image = self._load_image(case)["image"]
        logits = self._windows(network, image.as_tensor(), device)
        on_file = to_file(logits.softmax(0), image, reference, self.data)
        # As argmax, first of equals included, in a seventh of the time on a CPU.
        prediction = on_file.max(0).indices.to(torch.uint8).cpu().numpy()
        for value in self.spec.keep_largest:
            prediction[without_largest(prediction == value)] = 0
        return Segmented(
            prediction,
            reference[0].as_tensor().numpy().astype(np.uint8),
            reference.affine.numpy(),
        )

    def assess(self, network: nn.Module, case: Case, device: torch.device, detailed: bool) -> dict[str, float]:
        """Return the case's figures by name; see ``score``."""
        segmented = self.predict(network, case, device)
        if self.spec.ignore:
            nobody = segmented.reference == self.spec.ignore
            segmented.prediction[nobody] = segmented.reference[nobody] = 0
        figures = {f"dice.{k}": v for k, v in self.score(segmented.prediction, segmented.reference).items()}
        return figures | (self._surfaces(segmented) if detailed else {})

    def score(self, prediction: NDArray[np.uint8], reference: NDArray[np.uint8]) -> dict[str, float]:
        """Return Dice by class name; a class that is in neither volume has none (NaN).

        Args:
            prediction: label values, (x, y[, z]).
            reference: label values, (x, y[, z]).
        """
        scores = {}
        for value, name in self.spec.classes.items():
            p, r = prediction == value, reference == value
            size = int(p.sum()) + int(r.sum())
            scores[name] = 2.0 * int((p & r).sum()) / size if size else float("nan")
        return scores

    def summarise(self, outcomes: Sequence[tuple[str, dict[str, float]]]) -> Scores:
        """Return the mean over patients of the mean over the classes that a case has."""
        with_mean = []
        for patient, figures in outcomes:
            dice = [v for k, v in figures.items() if k.startswith("dice.") and not math.isnan(v)]
            with_mean.append((patient, {**figures, "": float(np.mean(dice)) if dice else float("nan")}))
        means = mean_over_patients(with_mean)
        by_class = {name: means[f"dice.{name}"] for name in self.classes.values() if f"dice.{name}" in means}
        more = {name: v for name, v in means.items() if name and not name.startswith("dice.")}
        return Scores(means.get(""), by_class, more)

    def figures(self, outcome: dict[str, float]) -> dict[str, float | str]:
        """Return the case's figures."""
        return dict(outcome)

    def picture(self, network: nn.Module, case: Case, device: torch.device) -> Picture:
        """Return the slice that shows most of the reference, with contours."""
        found = self.predict(network, case, device)
        return best_slice(case.read_image().values, found.reference, found.prediction, found.affine)

    def _surfaces(self, segmented: Segmented) -> dict[str, float]:
        """Return surface Dice (Nikolov et al., 2018) and the Hausdorff distance's 95th percentile in mm by class."""
        spacing = voxel_sizes(segmented.affine)[: segmented.reference.ndim].tolist()
        figures = {}
        for value, name in self.spec.classes.items():
            found, wanted = (
                torch.from_numpy(labels == value)[None, None] for labels in (segmented.prediction, segmented.reference)
            )
            if not found.any() or not wanted.any():
                # No surface to measure to: surface Dice is zero, unless nothing was to be found; no distance is known.
                figures[f"surface_dice.{name}"] = 0.0 if found.any() or wanted.any() else float("nan")
                continue
            same = {"include_background": True, "spacing": spacing}
            tolerance = [self.spec.surface_tolerance]
            figures[f"surface_dice.{name}"] = float(compute_surface_dice(found, wanted, tolerance, **same))
            figures[f"hd95_mm.{name}"] = float(compute_hausdorff_distance(found, wanted, percentile=95, **same))
        return figures


def deeply(loss: Callable[[Tensor], Tensor], output: Tensor, label: Tensor) -> Tensor:
    """Return a loss over all outputs of deep supervision, stacked along axis 1 finest first (Lee et al., 2015)."""
    if output.ndim == label.ndim:
        return loss(output)
    weights = [0.5**n for n in range(output.shape[1])]
    losses = [weight * loss(output[:, n]) for n, weight in enumerate(weights)]
    return torch.stack(losses).sum() / sum(weights)


def to_file(values: Tensor, image: MetaTensor, reference: MetaTensor, data: DataSpec) -> Tensor:
    """Bring values on the working grid (n, x, y[, z]) back to the grid of the label's file."""
    if data.dimensions == 2 and not data.spacing:
        return values
    resample = SpatialResample(mode="bilinear", padding_mode="border", dtype=torch.float32)
    placed = MetaTensor(values, affine=image.affine)
    moved = resample(placed, dst_affine=reference.affine, spatial_size=reference.shape[1:])
    result: Tensor = moved.as_tensor()
    return result


def without_largest(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return all pieces of a mask but the largest."""
    pieces, count = ndimage.label(mask)
    if count < 2:
        return np.zeros_like(mask)
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    return np.asarray(mask & (pieces != sizes.argmax()))
