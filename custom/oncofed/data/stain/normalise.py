"""Normalise batches of stained images to a template."""

from __future__ import annotations

import torch
from torch import Tensor

from oncofed.data.stain.colours import density, from_density, from_lab, mixed, stained, to_lab

# A template may stretch a slide's colours by no more than this: noise of a pale slide would be all that is seen.
_MOST_STRETCH = 4.0
_LEAST_DEVIATION = 0.5


def by_vectors(rgb: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """Return images whose two stains have a template's directions and amounts.

    Macenko et al., ISBI 2009; Vahadane et al., IEEE Transactions on Medical Imaging 2016. What lies outside both
    stains' plane, such as ink, is left out; glass stays glass.

    Args:
        rgb: (batch, 3, ...) float, 0 to 255.
        source: of each image's slide, (batch, 8) in the order of ``columns.MACENKO``, or (8,) of all.
        target: of the template, (8,).

    Returns:
        The same shape, 0 to 255.
    """
    own, wanted = source.expand(len(rgb), 8), target
    vectors, amounts = own[:, :6].reshape(-1, 2, 3), own[:, 6:]
    stretch = (wanted[6:] / amounts).clamp(1 / _MOST_STRETCH, _MOST_STRETCH)
    unmix = torch.linalg.pinv(vectors.double()).to(rgb.dtype)  # (batch, 3, 2)
    units = torch.nn.functional.normalize(wanted[:6].reshape(2, 3), dim=1)
    # From densities to densities, in one product.
    matrix = (unmix * stretch[:, None]) @ units
    return from_density(mixed(density(rgb), matrix.transpose(1, 2)))


def by_moments(rgb: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """Return images whose CIELAB has a template's mean and spread.

    Reinhard et al., IEEE Computer Graphics and Applications 2001; in CIELAB, and of tissue alone: glass stays as it is.

    Args:
        rgb: (batch, 3, ...) float, 0 to 255.
        source: of each image's slide, (batch, 6) in the order of ``columns.LAB``, or (6,) of all.
        target: of the template, (6,), or of each image (batch, 6).

    Returns:
        The same shape, 0 to 255.
    """
    shape = (-1, 3, *[1] * (rgb.ndim - 2))
    own, wanted = source.expand(len(rgb), 6), target.expand(len(rgb), 6)
    stretch = (wanted[:, 3:] / own[:, 3:].clamp_min(_LEAST_DEVIATION)).clamp(1 / _MOST_STRETCH, _MOST_STRETCH)
    moved = (to_lab(rgb) - own[:, :3].reshape(shape)) * stretch.reshape(shape) + wanted[:, :3].reshape(shape)
    tissue = stained(rgb)
    return from_lab(moved) * tissue + rgb * (1 - tissue)
