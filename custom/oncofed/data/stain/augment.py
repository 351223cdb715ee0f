"""Change the stain of batches at random, on their device.

Random numbers come from a generator on the CPU, as in ``data.augment``.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from oncofed.data.stain.colours import density, from_density, mixed, stained, to_lab
from oncofed.data.stain.columns import LAB, Template
from oncofed.data.stain.normalise import by_moments
from oncofed.data.stain.spec import StainSpec

# Haematoxylin, eosin and DAB by red, green and blue: Ruifrok and Johnston, 2001.
_HED = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))
# Share by which amounts change, and density by which they are shifted: "HED-strong" of Tellez et al., Medical Image
# Analysis 2019.
_HED_RANGE = 0.2
# Of an image's pixels, that must be tissue for its own colours to be known.
_LEAST_TISSUE = 0.02


def changed(image: Tensor, spec: StainSpec, template: Template | None, generator: Generator) -> Tensor:
    """Return images of a batch, some of them with another stain.

    Args:
        image: (batch, 3, x, y) as the network sees it, -1 to 1.
        spec: of the job.
        template: that the sites agreed on; of ``randstainna`` alone, None: the published one.
        generator: on the CPU; its state determines the change.

    Returns:
        The same shape; images that are not chosen have the same values.
    """
    if spec.augment == "none":
        return image
    which = torch.nonzero(torch.rand(len(image), generator=generator) < spec.probability).flatten()
    if not len(which):
        return image
    index = which.to(image.device, non_blocking=True)
    rgb = (image.index_select(0, index).float() + 1) * 127.5
    if spec.augment == "hed":
        rgb = with_other_amounts(rgb, _HED_RANGE * spec.strength, generator)
    else:
        rgb = with_other_colours(rgb, template or Template.of(spec.columns, {}), spec.strength, generator)
    return image.index_copy(0, index, (rgb / 127.5 - 1).to(image.dtype))


def with_other_amounts(rgb: Tensor, most: float, generator: Generator) -> Tensor:
    """Return images with other amounts of haematoxylin, eosin and DAB.

    Tellez et al., IEEE Transactions on Medical Imaging 2018. Glass, which no stain is added to, stays glass.

    Args:
        rgb: (batch, 3, ...), 0 to 255.
        most: largest share by which an amount changes, and largest shift of its density.
        generator: on the CPU.
    """
    drawn = (torch.rand(2, len(rgb), 3, generator=generator) * 2 - 1) * most
    factors, shifts = drawn.to(rgb.device, non_blocking=True).unbind(0)
    stains = torch.nn.functional.normalize(torch.tensor(_HED), dim=1)
    mix, unmix = stains.T.to(rgb.device), torch.linalg.inv(stains.T).to(rgb.device)
    shape = (-1, 3, *[1] * (rgb.ndim - 2))
    amounts = mixed(density(rgb), unmix)
    amounts = amounts * (1 + factors).reshape(shape) + shifts.reshape(shape) * stained(rgb)
    return from_density(mixed(amounts, mix))


def with_other_colours(rgb: Tensor, template: Template, strength: float, generator: Generator) -> Tensor:
    """Return images with the colours of slides that might be.

    Shen et al., "RandStainNA", MICCAI 2022, in CIELAB: mean and deviation are drawn from what the sites' slides have.
    An image with hardly any tissue is taken for one of the template.

    Args:
        rgb: (batch, 3, ...), 0 to 255.
        template: what slides have.
        strength: of the draw; 1: as the slides differ.
        generator: on the CPU.
    """
    means, spreads = (values.to(rgb.device) for values in (template.means(LAB), template.spreads(LAB)))
    drawn = torch.randn(len(rgb), len(LAB), generator=generator).clamp(-3, 3).to(rgb.device, non_blocking=True)
    wanted = means + drawn * spreads * strength
    wanted = torch.cat([wanted[:, :3], torch.maximum(wanted[:, 3:], means[3:] / 4)], dim=1)
    return by_moments(rgb, _moments(rgb, means), wanted)


def _moments(rgb: Tensor, usual: Tensor) -> Tensor:
    """Return mean and deviation of the CIELAB of each image's tissue, (batch, 6)."""
    weights = stained(rgb).flatten(2)
    lab, total = to_lab(rgb).flatten(2), weights.sum(2)
    mean = (lab * weights).sum(2) / total.clamp_min(1)
    variance = ((lab - mean[:, :, None]) ** 2 * weights).sum(2) / total.clamp_min(1)
    known = total / weights.shape[2] > _LEAST_TISSUE
    return torch.where(known, torch.cat([mean, variance.sqrt()], dim=1), usual)
