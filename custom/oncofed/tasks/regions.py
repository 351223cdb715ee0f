"""Segmentation of regions that may overlap.

Such as a tumour and its core, as nnU-Net has them (Isensee et al., BrainLes 2020): a region is of one or more label
values, each is learned by itself with a sigmoid, and what is predicted becomes label values again in a stated order.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from typing_extensions import Self

from oncofed.data.augment import Batch
from oncofed.data.spec import DataSpec
from oncofed.errors import SpecError
from oncofed.tasks.decisions import Decision, in_order
from oncofed.tasks.losses import dice_bce
from oncofed.tasks.region_losses import PartialLabel, marginal_dice_bce, regional_divergence
from oncofed.tasks.registry import register_task_type
from oncofed.tasks.segmentation import Segmentation, SegmentationSpec, deep_supervision
from oncofed.tasks.whole_slide.stitching import Stitching


class RegionsSpec(SegmentationSpec):
    """Settings of segmentation of regions that may overlap."""

    type: Literal["regions"] = "regions"  # type: ignore[assignment] # another task's name
    regions: dict[str, tuple[int, ...]] = Field(
        min_length=1, description="name -> label values that are a part of it, the largest first"
    )
    regions_class_order: tuple[int, ...] = Field(
        (),
        description="label value that each region is written with, in the order of regions: a later one replaces those "
        "before it. Empty: the one value of a region that none of the later ones has",
    )

    @model_validator(mode="after")
    def _regions_of_classes(self) -> Self:
        for name, values in self.regions.items():
            strange = sorted(set(values) - set(self.classes))
            if strange or not values:
                raise ValueError(f"region {name} has the values {strange}, expected some of {sorted(self.classes)}")
        left_out = sorted(set(self.classes) - {value for values in self.regions.values() for value in values})
        if left_out:
            raise ValueError(f"no region has the label values {left_out}, expected each class in a region")
        order = self.order
        if len(order) != len(self.regions) or len(set(order)) < len(order) or not set(order) <= set(self.classes):
            raise ValueError(
                f"regions_class_order is {list(order)}, expected another label value for each of {len(self.regions)} "
                "regions"
            )
        names = {name: value for value, name in self.classes.items()}
        unclear = [name for name, values in self.regions.items() if name in names and values != (names[name],)]
        if self.partial and unclear:
            raise ValueError(
                f"{unclear[0]} is a region and a class that is less: a mask that may lack either has to say which was "
                "looked for. Give the class another name"
            )
        return self

    @property
    def order(self) -> tuple[int, ...]:
        """Label value that each region is written with."""
        return self.regions_class_order or tuple(map(self._own_value, range(len(self.regions))))

    def _own_value(self, number: int) -> int:
        """Return a region's one value that no later one has."""
        name, *_ = list(self.regions)[number:]
        first, *later = list(self.regions.values())[number:]
        own = set(first).difference(*later)
        if len(own) != 1:
            raise ValueError(
                f"region {name} has {len(own)} label values that no later region has, expected one: name the largest "
                "region first, or say the value that each is written with (regions_class_order)"
            )
        return own.pop()

    @property
    def structures(self) -> dict[str, tuple[int, ...]]:
        """What is scored: name -> its label values."""
        return self.regions

    @property
    def figure_names(self) -> list[str]:
        """Names of the regions."""
        return list(self.regions)

    @property
    def label_regions(self) -> dict[str, tuple[int, ...]]:
        """Regions by which a dataset may name its label values."""
        return self.regions


@register_task_type("regions")
class Regions(Segmentation):
    """Segmentation of regions that may overlap.

    Example:
        >>> classes, regions = {1: "oedema", 2: "core"}, {"whole": (1, 2), "core": (2,)}
        >>> Regions(RegionsSpec(classes=classes, regions=regions), DataSpec(dataset="demo")).out_channels
        2
    """

    Settings = RegionsSpec
    loss_name = "Dice with binary cross-entropy, by region"
    spec: RegionsSpec

    def __init__(self, spec: RegionsSpec, data: DataSpec) -> None:
        super().__init__(spec, data)
        self._members_on: dict[torch.device, Tensor] = {}

    @property
    def out_channels(self) -> int:
        """Regions."""
        return len(self.spec.regions)

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Return Dice with binary cross-entropy over all outputs; see ``dice_bce``, ``marginal_dice_bce``."""
        label, teacher, alike = batch["label"], batch.get("teacher"), batch.get("alike")
        members = self._members(label.device)
        if alike is None:
            member = members[label[:, 0].clamp_max(len(self.classes) + 1).long()].movedim(-1, 1)
            counts = None if self.spec.ignore is None else label != self.spec.ignore
            return deep_supervision(lambda logits: dice_bce(logits, member, counts), output, label)
        partial = PartialLabel(label, alike, members[:-1], self.spec.ignore)
        loss = deep_supervision(lambda logits: marginal_dice_bce(logits, partial), output, label)
        if teacher is None:
            return loss
        finest = output if output.ndim == label.ndim else output[:, 0]
        return loss + self.spec.distillation * regional_divergence(finest, teacher, partial)

    @property
    def _decision(self) -> Decision:
        return in_order(self.spec.order)

    def _stitching(self) -> Stitching:
        raise SpecError("regions that overlap are not predicted on whole slides: use slide_segmentation")

    def _members(self, device: torch.device) -> Tensor:
        """Return which label value is of which region.

        (value, region) bool; the last value stands for one to be ignored.
        """
        if device not in self._members_on:
            members = torch.zeros(len(self.classes) + 2, self.out_channels, dtype=torch.bool)
            for number, values in enumerate(self.spec.regions.values()):
                members[list(values), number] = True
            self._members_on[device] = members.to(device)
        return self._members_on[device]
