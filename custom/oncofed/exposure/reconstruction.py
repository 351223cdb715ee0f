"""Draws an image again from its gradient (Geiping et al., NeurIPS 2020).

The drawing whose gradient points as the seen one does, with little total variation, by Adam on signs. Labels are known
to the attacker, which is more than a server has.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor
from torch.nn.functional import cosine_similarity

from oncofed.data.augment import Batch
from oncofed.exposure.gradients import KnownModel
from oncofed.exposure.results import Reconstruction

_RATE, _DECAYS = 0.1, (3 / 8, 5 / 8, 7 / 8)
_SMOOTHNESS = 1e-2


def draw_again(
    model: KnownModel,
    seen: Tensor,
    labels: Batch,
    bounds: tuple[float, float],
    iterations: int,
    seed: int,
    step: Callable[[], None] = lambda: None,
) -> Tensor:
    """Return the image that a gradient was of, as far as it can be drawn.

    Args:
        model: that the gradient is of.
        seen: the gradient, (weights,).
        labels: the batch; its image gives the shape alone.
        bounds: of intensities.
        iterations: of the optimizer.
        seed: of the first drawing.
        step: called after each iteration.
    """
    noise = torch.randn(labels["image"].shape, generator=Generator().manual_seed(seed))
    image = noise.to(labels["image"].device).requires_grad_()
    optimizer = torch.optim.Adam([image], lr=_RATE)
    decay = torch.optim.lr_scheduler.MultiStepLR(optimizer, [int(iterations * share) for share in _DECAYS], 0.1)
    for _ in range(iterations):
        gradient = model.gradient({**labels, "image": image}, differentiable=True)
        variation = torch.stack([image.diff(dim=axis).abs().mean() for axis in range(2, image.ndim)]).sum()
        distance = 1 - cosine_similarity(gradient, seen, dim=0) + _SMOOTHNESS * variation
        image.grad = torch.autograd.grad(distance, [image])[0].sign()
        optimizer.step()
        decay.step()
        with torch.no_grad():
            image.clamp_(*bounds)
        step()
    return image.detach()


def reconstruction(drawings: Sequence[Tensor], images: Sequence[Tensor]) -> Reconstruction:
    """Return how well drawings are recognised.

    Args:
        drawings: of the first images, in their order.
        images: of all candidates.
    """
    alike = torch.tensor([[_correlation(drawing, image) for image in images] for drawing in drawings])
    own = alike.diagonal()
    return Reconstruction(
        targets=len(drawings),
        recognised=int((alike.argmax(dim=1) == torch.arange(len(drawings))).sum()),
        candidates=len(images),
        chance=1 / len(images),
        correlation=float(own.mean()),
        psnr_db=sum(_psnr(*pair) for pair in zip(drawings, images, strict=False)) / len(drawings),
    )


def _correlation(a: Tensor, b: Tensor) -> float:
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / (a.norm() * b.norm()).clamp(min=1e-30))


def _psnr(drawing: Tensor, image: Tensor) -> float:
    peak, error = float(image.max() - image.min()), float((drawing - image).square().mean())
    return 10 * math.log10(max(peak, 1e-6) ** 2 / max(error, 1e-12))
