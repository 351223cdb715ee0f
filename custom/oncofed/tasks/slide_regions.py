"""Segmentation of slides, and classes of their tiles, learned from drawn regions.

The job's ``data.spacing`` is the resolution at which slides are seen. Networks learn from patches in and around
regions; a slide is scored and predicted whole.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from oncofed.data.augment import Augmentation, Batch
from oncofed.data.case import Case
from oncofed.data.inputs import BatchSource, Preparation
from oncofed.data.region_patches import Cutting, OnSlide, RegionPatches
from oncofed.data.slides.canvas import SlideCanvas
from oncofed.data.slides.drawn import UNKNOWN, as_job, drawn_labels
from oncofed.data.spec import DataSpec
from oncofed.plugins import Kind
from oncofed.tasks.losses import conditional_divergence, dice_ce
from oncofed.tasks.metrics import Metric
from oncofed.tasks.overlap import dice
from oncofed.tasks.pictures import Picture
from oncofed.tasks.registry import register_task_type
from oncofed.tasks.segmentation import Segmentation, deep_supervision
from oncofed.tasks.settings import TaskSettings
from oncofed.tasks.whole_slide.labelling import labelled
from oncofed.tasks.whole_slide.scoring import drawn_confusion, on_overview, where_known
from oncofed.tasks.whole_slide.settings import SlideSegmentationSpec, SlideTilesSpec, require_resolution
from oncofed.tasks.whole_slide.stitching import Stitching

# A tile of which less is known has no class to learn.
_LEAST_KNOWN = 0.5


@register_task_type("slide_segmentation")
class SlideSegmentation(Segmentation):
    """A task that gives each place of a slide a class."""

    Settings: ClassVar[type[TaskSettings]] = SlideSegmentationSpec
    reads_slides = True
    extra_metrics = (Metric("iou", "intersection over union"), Metric("accuracy", "accuracy by pixel"))

    def __init__(self, spec: SlideSegmentationSpec, data: DataSpec) -> None:
        require_resolution(data)
        super().__init__(spec, data)
        self._slides = spec

    def input(self, augmentation: Augmentation) -> BatchSource:
        """Return patches in and around regions, each class as often."""
        spec, classes = self._slides, self._labels_with_background
        cutting = Cutting(classes, spec.patches, spec.undrawn_value, partial=spec.partial)
        return RegionPatches(self.data, augmentation, cutting)

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Return Dice with cross-entropy of what is known."""
        label, known, teacher = batch["label"], batch.get("known"), batch.get("teacher")
        loss = deep_supervision(lambda logits: dice_ce(logits, label, UNKNOWN, known), output, label)
        if teacher is None or known is None:
            return loss
        finest = output if output.ndim == label.ndim else output[:, 0]
        return loss + self.spec.distillation * conditional_divergence(finest, teacher, label, known)

    def scoring_preparation(self) -> Preparation:
        """Return the slide, which is read where the network looks."""
        return OnSlide(self.data)

    def inference_preparation(self) -> Preparation:
        """Return the slide, which is read where the network looks."""
        return OnSlide(self.data)

    def evaluate_case(self, network: nn.Module, case: Case, device: torch.device, detailed: bool) -> dict[str, float]:
        """Return Dice of each class, and figures over all of them, on one slide.

        What nobody drew counts as background or not at all, as the job says.
        """
        undrawn = self._slides.undrawn_value
        with SlideCanvas.of(case, self.data, self.data.patch[0]) as canvas:
            drawn = drawn_labels(case, canvas)
            wanted = where_known(case, drawn, canvas, undrawn)
            found = labelled(self._stitching(), network, canvas, device, wanted=wanted)
            counts = drawn_confusion(found, case, drawn, self._labels_with_background, undrawn)
        known = self._known(case)
        figures = {f"dice.{name}": dice(counts, v) if name in known else math.nan for name, v in self._structures()}
        shares = [value / (2 - value) for value in figures.values() if not math.isnan(value)]
        square = counts[:-1]
        figures["iou"] = float(np.mean(shares)) if shares else math.nan
        figures["accuracy"] = float(np.trace(square) / square.sum()) if square.sum() else math.nan
        return figures

    def picture(self, network: nn.Module, case: Case, device: torch.device) -> Picture:
        """Return the slide, small, with what was drawn and what was found."""
        with SlideCanvas.of(case, self.data, self.data.patch[0]) as canvas:
            drawn = drawn_labels(case, canvas)
            found = labelled(self._stitching(), network, canvas, device)
            pixels, scale = canvas.overview
            values = drawn.window(0, 0, pixels.shape[1], pixels.shape[0], scale)
            expected = as_job(case, values, self._labels_with_background, 0)
            shown = on_overview(found, canvas).astype(np.uint8)
        expected[expected == UNKNOWN] = 0
        if case.looked_for is not None:  # of other classes nobody knows whether they are right
            shown = np.where(np.isin(shown, list(case.looked_for)), shown, 0).astype(np.uint8)
        image = np.ascontiguousarray(pixels.swapaxes(0, 1))
        return Picture(image, expected.T.copy(), shown.T.copy(), downwards=True)


@register_task_type("slide_tiles")
class SlideTiles(SlideSegmentation):
    """A task that gives each tile of a slide a class."""

    Settings: ClassVar[type[TaskSettings]] = SlideTilesSpec
    network_kind: Kind = "image"
    loss_name = "cross-entropy"

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Return the cross-entropy of each tile's class: that of most of its pixels.

        A tile of which most is unknown counts nothing.
        """
        label = batch["label"].flatten(1).long()
        counts = torch.stack([(label == value).sum(1) for value in range(self._labels_with_background)], dim=1)
        told = counts.sum(1) >= _LEAST_KNOWN * label.shape[1]
        wanted = torch.where(told, counts.argmax(1), UNKNOWN)
        losses = functional.cross_entropy(output, wanted, ignore_index=UNKNOWN, reduction="none")
        return losses.sum() / told.sum().clamp_min(1)

    def _stitching(self) -> Stitching:
        side = self.data.patch[0]

        def spread(logits: Tensor) -> Tensor:
            return logits.softmax(1)[:, :, None, None].expand(-1, -1, side, side)

        return Stitching(side, self.spec.overlap, self.spec.mirror, spread)
