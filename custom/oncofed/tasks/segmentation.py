"""Segmentation of volumes and flat images: Dice with cross-entropy, sliding window, Dice on the image's own grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from monai.inferers import SlidingWindowInferer
from monai.losses import DiceCELoss
from monai.transforms import SpatialResample
from numpy.typing import NDArray
from pydantic import Field, field_validator
from torch import Tensor, nn

from oncofed.data.cases import Case
from oncofed.data.spec import DataSpec, StrictModel
from oncofed.data.transforms import as_tensor, load_image


class SegmentationSpec(StrictModel):
    """What a segmentation job learns."""

    type: Literal["segmentation"] = "segmentation"
    classes: dict[int, str] = Field(min_length=1, description="label value -> name, without background (0)")
    overlap: float = Field(0.25, ge=0, lt=0.95, description="share by which inference windows overlap")

    @field_validator("classes")
    @classmethod
    def _consecutive(cls, classes: dict[int, str]) -> dict[int, str]:
        expected = list(range(1, len(classes) + 1))
        if sorted(classes) != expected:
            raise ValueError(f"label values are {sorted(classes)}, expected {expected}: 1, 2, … without gaps")
        return dict(sorted(classes.items()))


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


class Segmentation:
    """A segmentation task.

    Example:
        >>> task = Segmentation(SegmentationSpec(classes={1: "tumour"}), DataSpec(dataset="demo"))
        >>> logits, label = torch.zeros(1, 2, 8, 8, 8), torch.ones(1, 1, 8, 8, 8)
        >>> bool(task.loss(logits, label) > 0)
        True
    """

    def __init__(self, spec: SegmentationSpec, data: DataSpec) -> None:
        self.spec = spec
        self.data = data
        self.loss: nn.Module = DiceCELoss(to_onehot_y=True, softmax=True, include_background=False, squared_pred=True)
        self._infer = SlidingWindowInferer(data.patch, sw_batch_size=4, overlap=spec.overlap, mode="gaussian")
        self._load_image = load_image(data)

    @property
    def out_channels(self) -> int:
        """Classes with background."""
        return len(self.spec.classes) + 1

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
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits = self._infer(image.as_tensor()[None].to(device), network)[0].float()
        on_file = MetaTensor(logits.softmax(0), affine=image.affine)
        if self.data.dimensions == 3 or self.data.spacing:
            to_file = SpatialResample(mode="bilinear", padding_mode="border", dtype=torch.float32)
            on_file = to_file(on_file, dst_affine=reference.affine, spatial_size=reference.shape[1:])
        return Segmented(
            on_file.argmax(0).to(torch.uint8).as_tensor().cpu().numpy(),
            reference[0].as_tensor().numpy().astype(np.uint8),
            reference.affine.numpy(),
        )

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


def mean_score(by_case: list[dict[str, float]]) -> float | None:
    """Return the mean over cases of the mean over the classes that a case has; None without cases."""
    means = [float(np.nanmean(list(scores.values()))) for scores in by_case if not all(map(np.isnan, scores.values()))]
    return float(np.mean(means)) if means else None


def loss_is_finite(loss: Tensor) -> bool:
    """Return whether a loss can be learned from."""
    return bool(torch.isfinite(loss).item())
