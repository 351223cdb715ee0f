"""A mask or single objects beside other named targets, learned by one network with a shared encoder."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Literal, cast

import numpy as np
import torch
from pydantic import field_validator
from torch import Tensor, nn

from oncofed.data.augment import Augmentation, Batch
from oncofed.data.case import Case
from oncofed.data.inputs import BatchSource, Patches, Preparation, Prepared
from oncofed.data.patches_and_whole import PatchesAndWhole, ReferencedAndWhole, has_mask
from oncofed.data.slides.drawn import UNKNOWN
from oncofed.data.spec import DataSpec
from oncofed.data.targets import Target
from oncofed.models.shared_encoder import SharedEncoder
from oncofed.plugins import Kind
from oncofed.tasks.codes import ClassCode
from oncofed.tasks.inferred import LabelMap, LabelMapWithScores, ObjectMap, ObjectMapWithScores
from oncofed.tasks.objects import Objects, ObjectsSpec
from oncofed.tasks.pictures import Picture, middle_slice
from oncofed.tasks.regions import Regions, RegionsSpec
from oncofed.tasks.registry import register_task_type
from oncofed.tasks.segmentation import Segmentation, SegmentationSpec
from oncofed.tasks.settings import TaskSettings
from oncofed.tasks.targets.images import ImageTargets, ImageTargetsSpec
from oncofed.tasks.targets.mask import MaskHead, MaskTarget
from oncofed.tasks.targets.outcome import TargetOutcome
from oncofed.tasks.targets.settings import TargetsSpec
from oncofed.tasks.targets.task import TargetsTask

Drawing = Segmentation | Objects
DrawnWithScores = LabelMapWithScores | ObjectMapWithScores


class _ObjectsOfSome(Objects):
    """Objects that some images have no mask of."""

    _ignored = UNKNOWN


class MaskTargetsSpec(TargetsSpec):
    """Settings of a mask, or of single objects, beside other targets of an image or a volume."""

    type: Literal["mask_targets"] = "mask_targets"

    @field_validator("targets")
    @classmethod
    def _one_is_a_mask(cls, targets: tuple[Target, ...]) -> tuple[Target, ...]:
        masks = [target.name for target in targets if isinstance(target, MaskTarget)]
        if len(masks) != 1 or len(targets) == 1:
            raise ValueError(
                f"found {len(masks)} targets of kind mask or objects of {len(targets)}, expected one beside others. "
                "One alone is a segmentation; several structures are classes of one mask"
            )
        return targets

    @property
    def mask(self) -> MaskTarget:
        """The target that is drawn."""
        return next(target for target in self.targets if isinstance(target, MaskTarget))

    @property
    def named_targets(self) -> tuple[Target, ...]:
        """The targets that a case states; its mask is a file."""
        return tuple(target for target in self.targets if not isinstance(target, MaskTarget))

    @property
    def vocabulary(self) -> dict[int, str]:
        """Label values of the mask."""
        return self.mask.mask.vocabulary

    @property
    def codes(self) -> dict[int, ClassCode]:
        """Coded terms of the mask's classes, for DICOM."""
        return self.mask.mask.codes if isinstance(self.mask.mask, SegmentationSpec) else {}

    @property
    def class_codes(self) -> dict[int, str]:
        """Label value -> its code with modifiers; of classes that have one."""
        return self.mask.mask.class_codes

    @property
    def may_lack_classes(self) -> bool:
        """Whether the mask may lack some of its classes."""
        return self.mask.mask.may_lack_classes

    @property
    def label_regions(self) -> dict[str, tuple[int, ...]]:
        """Regions that may name the mask's values."""
        return self.mask.mask.label_regions


@register_task_type("mask_targets")
class MaskTargets(TargetsTask):
    """A task that draws a mask, or single objects, and answers other targets of the same image.

    The mask is learned from patches and scored by sliding windows, as ``Segmentation`` and ``Objects`` do; the others
    from whole images, as ``ImageTargets`` does. Their losses are added by the targets' weights; what a case lacks is
    zero.
    """

    Settings = MaskTargetsSpec
    network_kind: Kind = "dense"
    spec: MaskTargetsSpec

    def __init__(self, spec: MaskTargetsSpec, data: DataSpec) -> None:
        super().__init__(spec, data)
        self._mask, self._unlabelled = _drawing(spec.mask.mask, data)
        self._others = ImageTargets(ImageTargetsSpec(targets=spec.named_targets), data)
        self._head = cast("MaskHead", self.heads[spec.mask.name])
        # The same heads: thresholds and temperatures that one learns are the other's, too.
        self._others.heads = {name: head for name, head in self.heads.items() if head is not self._head}
        self.classes = self._mask.classes

    @property
    def figure_names(self) -> list[str]:
        """Names of the figures by class; see ``Scores.by_class``."""
        return list(self.spec.classes.values())

    @property
    def out_channels(self) -> int:
        """Values for each voxel."""
        return self._mask.out_channels

    @property
    def pooled_channels(self) -> int:
        """Outputs of the other targets' heads."""
        return self._others.out_channels

    @property
    def learns_from_teacher(self) -> bool:
        """Whether the mask's loss takes what the round's model says."""
        return self._mask.learns_from_teacher

    def input(self, augmentation: Augmentation) -> BatchSource:
        """Return patches with masks, beside whole images with their targets."""
        patches = self._mask.input(augmentation)
        assert isinstance(patches, Patches)
        return PatchesAndWhole(self.data, augmentation, patches, self._others.input(augmentation), self._unlabelled)

    def forward(self, network: Callable[..., Tensor], batch: Batch) -> Tensor:
        """Return the maps of patches, and behind them the outputs of whole images."""
        return network(batch["image"], batch["whole"], *self.row(batch))

    def maps(self, output: Tensor) -> Tensor:
        """Return maps (batch, out, x, y[, z]), or several of deep supervision along axis 1."""
        flat, patch = output[:, : -self.pooled_channels], self.data.patch
        each = self.out_channels * math.prod(patch)
        several = (flat.shape[1] // each,) if flat.shape[1] > each else ()
        return flat.reshape(len(flat), *several, self.out_channels, *patch)

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Return the sum of the losses by the targets' weights."""
        teacher = {"teacher": self.maps(batch["teacher"])} if "teacher" in batch else {}
        drawn = self._mask.loss(self.maps(output), {**batch, **teacher})
        others: Tensor = self._others.loss(output[:, -self.pooled_channels :], batch)
        return self.spec.mask.weight * drawn + others

    def scoring_preparation(self) -> Preparation:
        """Return the image with its mask, where it has one, and the whole image."""
        return ReferencedAndWhole(self.data, self._others.scoring_preparation(), self._mask.scoring_preparation())

    def inference_preparation(self) -> Preparation:
        """Return the same without masks."""
        return ReferencedAndWhole(self.data, self._others.inference_preparation())

    def infer(self, network: nn.Module, prepared: Prepared, device: torch.device) -> DrawnWithScores:
        """Return the mask and the other targets' outputs."""
        return self._both(self._mask.infer(network, prepared, device), network, prepared, device)

    def infer_with_entropy(self, network: nn.Module, prepared: Prepared, device: torch.device) -> DrawnWithScores:
        """Return the same, with the entropy of each voxel."""
        return self._both(self._mask.infer_with_entropy(network, prepared, device), network, prepared, device)

    def evaluate_case(self, network: nn.Module, case: Case, device: torch.device, detailed: bool) -> TargetOutcome:
        """Evaluate a network on one case."""
        prepared, known = self.prepared(case), has_mask(case)
        figures = self._mask.evaluate_prepared(network, prepared, case, device, detailed) if known else {}
        found = self._others.outcome(self._others.infer(_of_whole(network), self._whole(prepared), device), case)
        name = self.spec.mask.name
        answers = {**found.answers, name: self._head.encoded(figures)}
        truths = {**found.truths, name: (1.0,) if known else (math.nan,)}
        return TargetOutcome(
            {name: answers[name] for name in self.heads}, {name: truths[name] for name in self.heads}, found.loss
        )

    def case_score(self, outcome: TargetOutcome) -> float | None:
        """Return a case's mean Dice, or panoptic quality; None where it has no mask."""
        figures = self._head.own_figures(outcome.answers[self.spec.mask.name])
        return float(np.mean(figures)) if figures else None

    def picture(self, network: nn.Module, case: Case, device: torch.device) -> Picture:
        """Return the slice with most of the mask, and the other answers in words."""
        caption = self._others.caption(self.evaluate_case(network, case, device, detailed=False))
        if has_mask(case):
            return replace(self._mask.picture(network, case, device), caption=caption)
        image = case.read_image()
        return middle_slice(image.values, image.affine, caption)

    def _both(self, found: object, network: nn.Module, prepared: Prepared, device: torch.device) -> DrawnWithScores:
        outputs = {**self._others.infer(_of_whole(network), self._whole(prepared), device).outputs}
        outputs[self.spec.mask.name] = np.zeros(0)
        if isinstance(found, LabelMap):
            return LabelMapWithScores(outputs=outputs, values=found.values, affine=found.affine, entropy=found.entropy)
        assert isinstance(found, ObjectMap)
        return ObjectMapWithScores(outputs=outputs, numbers=found.numbers, affine=found.affine, entropy=found.entropy)

    @staticmethod
    def _whole(prepared: Prepared) -> Prepared:
        return {**prepared, "image": prepared["whole"]}


def _drawing(settings: TaskSettings, data: DataSpec) -> tuple[Drawing, int]:
    """Return the task that draws, and its label value of voxels that nobody labelled."""
    if isinstance(settings, ObjectsSpec):
        return _ObjectsOfSome(settings, data), UNKNOWN
    assert isinstance(settings, SegmentationSpec)
    if settings.ignore is None:
        settings = settings.model_copy(update={"ignore": UNKNOWN})
    made = Regions(settings, data) if isinstance(settings, RegionsSpec) else Segmentation(settings, data)
    return made, settings.ignore or UNKNOWN


def _of_whole(network: nn.Module) -> nn.Module:
    """Return what gives a network's values of whole images."""
    assert isinstance(network, SharedEncoder)
    return cast("nn.Module", network.values)  # only called
