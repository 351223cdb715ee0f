"""Two random views of each image, for training that compares them."""

from __future__ import annotations

import torch
from torch import Generator, Tensor
from torch.nn import functional

from oncofed.data.augment import Augmentation, Batch
from oncofed.data.case import Case
from oncofed.data.inputs import Prepared, WholeImages
from oncofed.data.spec import DataSpec

VIEWS = 2


class TwoViews(WholeImages):
    """Whole images, each seen twice.

    A batch holds image (batch, 2, channel, x, y[, z]) float32.

    Args:
        spec: the job's data.
        augmentation: how much each view is changed at random, beside the part of the image that it shows.
        least: smallest share of a side that a view shows.
    """

    def __init__(self, spec: DataSpec, augmentation: Augmentation, least: float) -> None:
        super().__init__(spec, augmentation, truth=_nothing)
        self._least = least

    def change(self, batch: Batch, generator: Generator) -> Batch:
        """Return both views of each image, drawn apart."""
        views = []
        for _ in range(VIEWS):
            view = {"image": random_part(batch["image"], self._least, generator)}
            views.append(self.augment(generator)(view)["image"])
        return {"image": torch.stack(views, dim=1)}


def _nothing(case: Case) -> Prepared:
    """Return no label."""
    del case
    return {}


def random_part(images: Tensor, least: float, generator: Generator) -> Tensor:
    """Return a random part of each image, enlarged to its size.

    Args:
        images: (batch, channel, x, y[, z]).
        least: smallest share of a side that is shown.
        generator: on the CPU.

    Returns:
        As the images.
    """
    count, axes = len(images), images.ndim - 2
    shares = torch.rand(count, generator=generator) * (1 - least) + least
    corners = (torch.rand(count, axes, generator=generator) * 2 - 1) * (1 - shares[:, None])
    theta = torch.cat([torch.diag_embed(shares[:, None].expand(count, axes)), corners[..., None]], dim=2)
    grid = functional.affine_grid(theta.to(images.device), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
