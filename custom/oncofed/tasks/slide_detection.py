"""Lesions and other objects as boxes, learned from outlines and points on slides.

The job's ``data.spacing`` is the resolution at which slides are seen.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from oncofed.data.augment import Augmentation
from oncofed.data.boxes import Boxes, filled
from oncofed.data.case import Case
from oncofed.data.inputs import BatchSource, Preparation, Prepared
from oncofed.data.region_patches import OnSlide, open_slide_of
from oncofed.data.slide_boxes import SlideBoxPatches, boxes_on, drawn_objects
from oncofed.data.slides.canvas import SlideCanvas
from oncofed.data.spec import DataSpec
from oncofed.tasks.detection import Detection, DetectionOutcome
from oncofed.tasks.detection.on_slide import SlideFinder
from oncofed.tasks.detection.outcome import matched
from oncofed.tasks.inferred import SlideBoxes
from oncofed.tasks.pictures import Picture
from oncofed.tasks.registry import register_task_type
from oncofed.tasks.settings import TaskSettings
from oncofed.tasks.slide_task import SlideTask
from oncofed.tasks.whole_slide.settings import SlideDetectionSpec, require_resolution
from oncofed.tasks.whole_slide.store import NOTHING_KEPT, StripStore


@register_task_type("slide_detection")
class SlideDetection(Detection, SlideTask):
    """Detection of a slide's objects as boxes, scored by FROC."""

    Settings = SlideDetectionSpec
    reads_slides = True

    def __init__(self, spec: SlideDetectionSpec, data: DataSpec) -> None:
        require_resolution(data)
        super().__init__(spec, data)
        self._slides = spec
        self._find_on_slide = SlideFinder(self._find, spec, np.array(list(self.classes), np.int64))

    @classmethod
    def false_positives_per(cls, settings: TaskSettings) -> str:
        """Return by what FROC counts false positives, as the job says."""
        assert isinstance(settings, SlideDetectionSpec)
        return {"slide": "a slide", "mm2": "a mm² of tissue"}[settings.false_positives]

    def input(self, augmentation: Augmentation) -> BatchSource:
        """Return patches around objects, each class as often, and away from them."""
        spec = self._slides
        return SlideBoxPatches(self.data, augmentation, len(self.classes) + 1, spec.patches, spec.point_size)

    def scoring_preparation(self) -> Preparation:
        """Return the slide, which is read where the network looks."""
        return OnSlide(self.data)

    def inference_preparation(self) -> Preparation:
        """Return the slide, which is read where the network looks."""
        return OnSlide(self.data)

    def infer(self, network: nn.Module, prepared: Prepared, device: torch.device) -> SlideBoxes:
        """Return the boxes found, in pixels of the finest level."""
        return self.infer_slide(network, prepared, device)

    def infer_slide(
        self, network: nn.Module, prepared: Prepared, device: torch.device, store: StripStore = NOTHING_KEPT
    ) -> SlideBoxes:
        """Return the boxes of a whole slide, in pixels of the finest level."""
        with open_slide_of(prepared, self.data) as canvas:
            return self._find_on_slide(network, canvas, device, store)

    def evaluate_case(self, network: nn.Module, case: Case, device: torch.device, detailed: bool) -> DetectionOutcome:
        """Return a slide's boxes, held against its objects."""
        with SlideCanvas.of(case, self.data, self.data.patch[0]) as canvas:
            reference, found = self._drawn(case, canvas), self._find_on_slide(network, canvas, device)
        extent = 1.0 if self._slides.false_positives == "slide" else found.tissue_mm2
        return matched(found, reference, self.classes, self._hit, extent)

    def picture(self, network: nn.Module, case: Case, device: torch.device) -> Picture:
        """Return the slide, small, with its boxes; as many of the likeliest ones as there are objects."""
        with SlideCanvas.of(case, self.data, self.data.patch[0]) as canvas:
            reference, found = self._drawn(case, canvas), self._find_on_slide(network, canvas, device)
            pixels, scale = canvas.overview
            shrunk = 1 / (scale * canvas.pixel)
        shown = slice(max(1, len(reference.labels)))
        image = np.ascontiguousarray(pixels.swapaxes(0, 1))
        expected, answer = (
            filled(corners * shrunk, labels, image.shape[:2])
            for corners, labels in (
                (reference.corners, reference.labels),
                (found.corners[shown], found.classes[shown]),
            )
        )
        return Picture(image, expected, answer, downwards=True)

    def _drawn(self, case: Case, canvas: SlideCanvas) -> Boxes:
        """Return a slide's objects, in pixels of the finest level."""
        found = boxes_on(case, drawn_objects(case, canvas, self._slides.point_size), len(self.classes) + 1)
        return Boxes(found.corners * canvas.pixel, found.labels)
