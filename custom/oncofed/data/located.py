"""Cases whose objects are to be found: images with boxes.

Boxes stated by a dataset and boxes of masks go the same way: to the working grid, and there into a map of objects,
which random changes move as they move the image. The boxes that are learned are those of the map's objects afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from monai.transforms import SpatialPad
from numpy.typing import NDArray
from torch import Generator, Tensor

from oncofed.data import boxes
from oncofed.data.augment import Augmentation, Batch
from oncofed.data.boxes import Boxes
from oncofed.data.case import Case
from oncofed.data.grids import transfer
from oncofed.data.inputs import BatchSource, Prepared, working_voxels
from oncofed.data.references import Unreferenced, affine_of
from oncofed.data.spec import DataSpec

# Patches with an object near their centre, among all.
_SHARE_OF_OBJECTS = 0.5
# How far the object's centre may be from the patch's, as a share of its sides.
_REACH = 0.25


def read_boxes(case: Case, labels: Sequence[int], axes: int) -> Boxes:
    """Return the objects of a case: as stated, else those of its mask.

    Args:
        case: of a job that looks for objects.
        labels: label values of the job's classes.
        axes: of its image.

    Raises:
        DataError: its mask cannot be read.
    """
    if case.boxes is not None:
        values = dict(case.label_values) if case.label_values is not None else None
        return boxes.stated(case.boxes, values, axes)
    return boxes.of_mask(case.read_label(case.instances).values[..., 0], labels, case.instances)


class Located(Unreferenced):
    """An image with its objects, for scores.

    In addition to what ``Unreferenced`` has, ``boxes`` (box, 2 * axes) float64 in voxels of the file, and ``classes``
    (box,) int64.

    Args:
        spec: the job's data.
        labels: label values of the job's classes.
    """

    def __init__(self, spec: DataSpec, labels: Sequence[int]) -> None:
        super().__init__(spec)
        self._labels = list(labels)

    def prepare(self, case: Case) -> Prepared:
        """Return the image and its objects."""
        found = read_boxes(case, self._labels, self.spec.dimensions)
        read = {"boxes": torch.from_numpy(found.corners), "classes": torch.from_numpy(found.labels)}
        return {**super().prepare(case), **read}

    def _more_settings(self) -> list[Any]:
        return [self._labels]


class ObjectBatches(BatchSource):
    """Batches of patches with the boxes of their objects.

    A sample holds image, objects (1, x, y[, z]) int16, each with a number from 1 on, and classes (object,) int64.
    """

    def together(self, parts: Sequence[Prepared]) -> Batch:
        """Return samples as one batch, with as many places for objects as any has."""
        most = max(1, *(len(part["classes"]) for part in parts))
        classes = [torch.nn.functional.pad(part["classes"], (0, most - len(part["classes"]))) for part in parts]
        batch = super().together([{name: part[name] for name in ("image", "objects")} for part in parts])
        return {**batch, "classes": torch.stack(classes)}

    def change(self, batch: Batch, generator: Generator) -> Batch:
        """Return a batch after random augmentation, with the boxes of its objects."""
        moved = self.augment(generator)({name: batch[name] for name in ("image", "objects")})
        found = torch.stack([boxes_of(numbers, batch["classes"].shape[1]) for numbers in moved["objects"][:, 0]])
        # An object that was turned out of the patch is none of its own.
        classes = batch["classes"] * ~found.isnan().any(dim=2)
        return {"image": moved["image"], "boxes": found, "classes": classes}


class BoxPatches(ObjectBatches):
    """Patches for detection, half of them with an object near the centre.

    A batch holds image (batch, channel, x, y[, z]) float32, boxes (batch, most, 2 * axes) float32 in voxels of the
    patch, NaN where a patch has fewer, and classes (batch, most) int64, 0 where a patch has fewer.

    Args:
        spec: the job's data.
        augmentation: how much is changed at random.
        labels: label values of the job's classes.
    """

    def __init__(self, spec: DataSpec, augmentation: Augmentation, labels: Sequence[int]) -> None:
        super().__init__(spec, augmentation)
        self._labels = list(labels)
        self._whole = Located(spec, labels)
        self._pad = SpatialPad(spec.patch)

    def prepare(self, case: Case) -> Prepared:
        """Return image, map of objects, and where they lie.

        ``centres.boxes`` (box, 2 * axes) float32 in voxels of the working grid, and ``centres.classes`` (box,) int64.
        """
        found = self._whole.prepare(case)
        padded = self._pad(MetaTensor(found["image"], affine=found["image.affine"]))
        matrix = transfer(padded.affine.numpy(), affine_of(found, "file"), self.spec.dimensions)
        corners = boxes.moved(found["boxes"].numpy(), matrix)
        return {
            "image": padded.as_tensor().contiguous(),
            "objects": torch.from_numpy(boxes.painted(corners, padded.shape[1:]))[None],
            "centres.boxes": torch.from_numpy(corners).float(),
            "centres.classes": found["classes"],
        }

    def size(self, case: Case) -> int | None:
        """Return about how many bytes the prepared case takes."""
        voxels = working_voxels(case, self.spec)
        if voxels is None:
            return None
        return int(voxels * (4 * len(self.spec.channels) + 2))

    def draw(self, prepared: Prepared, generator: Generator) -> Prepared:
        """Return a patch around an object, or anywhere."""
        image, around = prepared["image"], prepared["centres.boxes"]
        shape, patch = torch.tensor(image.shape[1:]), torch.tensor(self.spec.patch)
        places = torch.rand(len(patch), generator=generator)
        corner = places * (shape - patch + 1)
        if len(around) and torch.rand((), generator=generator) < _SHARE_OF_OBJECTS:
            number = int(torch.randint(len(around), (), generator=generator))
            centre = around[number].view(2, -1).mean(dim=0)
            corner = centre - patch / 2 + (2 * places - 1) * _REACH * patch
        first = torch.minimum(corner.floor().clamp_min(0), shape - patch).int().tolist()
        window = (slice(None), *(slice(at, at + side) for at, side in zip(first, self.spec.patch, strict=True)))
        return {"image": image[window], **own_objects(prepared["objects"][window], prepared["centres.classes"])}

    def _more_settings(self) -> list[Any]:
        return [self._labels]


def own_objects(objects: Tensor, classes: Tensor) -> Prepared:
    """Return a window's ``objects`` by numbers of its own, from 1 on, and their ``classes``.

    Args:
        objects: the window's part of a map, (1, x, y[, z]).
        classes: of all objects of the map, by their numbers, (object,).
    """
    numbers = torch.unique(objects)
    numbers = numbers[numbers > 0]
    own = torch.zeros(len(classes) + 1, dtype=torch.int16, device=objects.device)
    own[numbers.long()] = torch.arange(1, len(numbers) + 1, dtype=torch.int16, device=objects.device)
    there = numbers.long().to(classes.device) - 1
    return {"objects": own[objects.long()], "classes": classes[there].to(objects.device)}


def boxes_of(numbers: Tensor, most: int) -> Tensor:
    """Return the box of each object of a map, (most, 2 * axes) float32; NaN where there is none.

    Args:
        numbers: (x, y[, z]), of the objects from 1 on; 0 elsewhere.
        most: largest number that there may be.
    """
    inside = numbers == torch.arange(1, most + 1, device=numbers.device).view(-1, *[1] * numbers.ndim)
    low, high = [], []
    for axis in range(numbers.ndim):
        others = [1 + other for other in range(numbers.ndim) if other != axis]
        line = inside.any(dim=others).float() if others else inside.float()
        low.append(line.argmax(dim=1))
        high.append(line.shape[1] - line.flip(1).argmax(dim=1))
    found = torch.stack([*low, *high], dim=1).float()
    there = inside.flatten(1).any(dim=1, keepdim=True)
    return torch.where(there, found, torch.nan)


def of_file(corners: NDArray[np.float64], prepared: Prepared, spec: DataSpec) -> NDArray[np.float64]:
    """Return boxes on the working grid in voxels of the image's file.

    Args:
        corners: (box, 2 * axes).
        prepared: as ``Unreferenced`` and ``Located`` do.
        spec: the job's data.
    """
    matrix = transfer(affine_of(prepared, "file"), affine_of(prepared, "image"), spec.dimensions)
    return boxes.moved(corners, matrix)
