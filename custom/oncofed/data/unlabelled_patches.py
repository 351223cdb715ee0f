"""Patches of images without labels, parts of which are hidden."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Generator, Tensor

from oncofed.data.augment import Augmentation, Batch
from oncofed.data.case import Case
from oncofed.data.inputs import BatchSource, Prepared, working_voxels
from oncofed.data.spec import DataSpec
from oncofed.data.transforms import load_unlabelled


class HiddenPatches(BatchSource):
    """Patches from anywhere in an image, with hidden cubes.

    A batch holds image (batch, channel, x, y[, z]) float32 and hidden (batch, 1, x, y[, z]) bool.

    Args:
        spec: the job's data.
        augmentation: how much is changed at random.
        ratio: share of a patch that is hidden.
        side: of a cube, or square, in voxels.
    """

    def __init__(self, spec: DataSpec, augmentation: Augmentation, ratio: float, side: int) -> None:
        super().__init__(spec, augmentation)
        self._ratio, self._side = ratio, side
        self._load = load_unlabelled(spec)

    def prepare(self, case: Case) -> Prepared:
        """Return the image on the working grid, at least as large as a patch."""
        return {"image": self._load(case)["image"].contiguous()}

    def size(self, case: Case) -> int | None:
        """Return about how many bytes the prepared case takes."""
        voxels = working_voxels(case, self.spec)
        return None if voxels is None else int(voxels * 4 * len(self.spec.channels))

    def draw(self, prepared: Prepared, generator: Generator) -> Prepared:
        """Return a patch from anywhere in the image."""
        image = prepared["image"]
        window: list[Any] = [slice(None)]
        for length, side in zip(image.shape[1:], self.spec.patch, strict=True):
            corner = int(torch.randint(length - side + 1, (), generator=generator))
            window.append(slice(corner, corner + side))
        return {"image": image[tuple(window)]}

    def change(self, batch: Batch, generator: Generator) -> Batch:
        """Return a batch after augmentation, with what is hidden of it."""
        image = super().change(batch, generator)["image"]
        hidden = [hidden_cubes(self.spec.patch, self._ratio, self._side, generator) for _ in image]
        return {"image": image, "hidden": torch.stack(hidden).to(image.device, non_blocking=True)}


def hidden_cubes(shape: tuple[int, ...], ratio: float, side: int, generator: Generator) -> Tensor:
    """Return which voxels of a patch are hidden.

    Cubes of a grid are drawn without repetition; at the far edges they may be cut off.

    Args:
        shape: of the patch, in voxels.
        ratio: share of the cubes that is hidden; one at least is, and one is not.
        side: of a cube, in voxels.
        generator: on the CPU.

    Returns:
        (1, x, y[, z]) bool.
    """
    cells = [math.ceil(length / side) for length in shape]
    number = math.prod(cells)
    count = min(max(round(ratio * number), 1), number - 1)
    flags = torch.zeros(number, dtype=torch.bool)
    flags[torch.randperm(number, generator=generator)[:count]] = True
    hidden = flags.view(1, *cells)
    for axis, length in enumerate(shape, start=1):
        hidden = hidden.repeat_interleave(side, axis).narrow(axis, 0, length)
    return hidden.contiguous()
