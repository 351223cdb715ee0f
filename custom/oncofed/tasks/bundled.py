"""The form of a bundle's answer, by task."""

from __future__ import annotations

from oncofed.data.spec import DataSpec
from oncofed.errors import SpecError, TrainingError
from oncofed.models.bundle import (
    Answer,
    ImageClasses,
    ImageTargets,
    LabelledVoxels,
    NumberedObjects,
    SlideClasses,
    SlideTargets,
)
from oncofed.models.encoders import catalogue
from oncofed.settings import StrictModel
from oncofed.tasks.classification import ClassificationSpec
from oncofed.tasks.detection import DetectionSpec
from oncofed.tasks.encoder import EncoderSpec, load_weights_of
from oncofed.tasks.objects import ObjectsSpec
from oncofed.tasks.regions import RegionsSpec
from oncofed.tasks.segmentation import SegmentationSpec
from oncofed.tasks.slides import SlideClassificationSpec
from oncofed.tasks.targets import MaskTargetsSpec, SlideTargetsSpec, TargetsSpec, target_answers
from oncofed.tasks.whole_slide.settings import SlideObjectsSpec, SlideSegmentationSpec


def answer_of(task: StrictModel, data: DataSpec) -> Answer:
    """Return the answer of a task's bundle, like ``Task.infer``'s.

    Args:
        task: section of the job.
        data: section of the job.

    Raises:
        SpecError: it takes code that bundles cannot hold: a pack's, or what joins the boxes of windows.
    """
    if isinstance(task, SlideSegmentationSpec | SlideObjectsSpec):
        raise SpecError("windows of a slide are joined by code of oncofed, which no bundle holds: use the run's folder")
    if isinstance(task, SegmentationSpec):
        order = task.order if isinstance(task, RegionsSpec) else ()
        return LabelledVoxels(task.overlap, task.mirror, task.keep_largest, order)
    if isinstance(task, ObjectsSpec):
        return NumberedObjects(task.overlap, task.mirror, task.seed_depth, task.smallest)
    if isinstance(task, ClassificationSpec):
        return ImageClasses()
    microns = data.spacing[0] * 1000 if data.spacing else None
    if isinstance(task, SlideTargetsSpec):
        targets = target_answers(task)
        return SlideTargets(_digest(task.encoder), data.patch[0], microns, targets)
    if isinstance(task, MaskTargetsSpec):
        raise SpecError(
            "what is drawn beside other targets takes code of oncofed, which no bundle holds: use the run's folder"
        )
    if isinstance(task, TargetsSpec):
        return ImageTargets(target_answers(task))
    if isinstance(task, SlideClassificationSpec):
        return SlideClasses(_digest(task.encoder), data.patch[0], microns)
    if isinstance(task, DetectionSpec):
        raise SpecError(
            "the boxes of windows are joined by code of oncofed, which no bundle holds: use the run's folder"
        )
    raise SpecError("the task comes with a pack, whose code no bundle holds")


def _digest(encoder: EncoderSpec) -> str:
    """Return what a bundle says of its encoder: ``Encoder.digest``, without the network."""
    if encoder.digest:
        return f"{encoder.network} {encoder.digest}"
    if encoder.network not in catalogue() or not catalogue()[encoder.network].has_weights:
        return encoder.network
    try:
        return f"{encoder.network} {load_weights_of(encoder).digest}"
    except TrainingError:
        return f"{encoder.network}, whose weights were not at hand where this was written"
