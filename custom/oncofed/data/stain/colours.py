"""Colour spaces of stained tissue: optical density and CIELAB.

Stains absorb light: their optical densities add up (Beer and Lambert; Ruifrok and Johnston, Analytical and Quantitative
Cytology and Histology 2001), their colours do not. All functions work on batches, on the batch's device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from oncofed.data.stain.sketch import GLASS, LEAST_DENSITY

# From linear sRGB to XYZ, as shares of the white point D65 (IEC 61966-2-1).
_TO_XYZ = (
    (0.412453 / 0.95047, 0.357580 / 0.95047, 0.180423 / 0.95047),
    (0.212671, 0.715160, 0.072169),
    (0.019334 / 1.08883, 0.119193 / 1.08883, 0.950227 / 1.08883),
)
# CIE 15, where the cube root becomes a line.
_BEND, _SLOPE = (6 / 29) ** 3, (29 / 6) ** 2 / 3


def density(rgb: Tensor) -> Tensor:
    """Return natural optical densities of colours from 0 to 255."""
    return -torch.log((rgb + 1) / GLASS)


def from_density(values: Tensor) -> Tensor:
    """Return colours from 0 to 255 of natural optical densities."""
    return (GLASS * torch.exp(-values) - 1).clamp(0, 255)


def stained(rgb: Tensor) -> Tensor:
    """Return how far each pixel is tissue: 0 on glass, 1 where a stain shows.

    Args:
        rgb: (batch, 3, ...), 0 to 255.

    Returns:
        (batch, 1, ...).
    """
    return (density(rgb).amax(1, keepdim=True) / LEAST_DENSITY).clamp(0, 1)


def to_lab(rgb: Tensor) -> Tensor:
    """Return CIELAB (batch, 3, ...) of sRGB (batch, 3, ...) from 0 to 255."""
    shares = rgb / 255
    linear = torch.where(shares > 0.04045, ((shares.clamp_min(0) + 0.055) / 1.055) ** 2.4, shares / 12.92)
    xyz = mixed(linear, torch.tensor(_TO_XYZ, dtype=rgb.dtype, device=rgb.device))
    bent = torch.where(xyz > _BEND, xyz.clamp_min(_BEND) ** (1 / 3), _SLOPE * xyz + 4 / 29)
    x, y, z = bent.unbind(1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)


def from_lab(lab: Tensor) -> Tensor:
    """Return sRGB (batch, 3, ...) from 0 to 255 of CIELAB; colours outside it are moved to its edge."""
    light, a, b = lab.unbind(1)
    y = (light + 16) / 116
    bent = torch.stack([y + a / 500, y, y - b / 200], 1)
    xyz = torch.where(bent > 6 / 29, bent**3, (bent - 4 / 29) / _SLOPE)
    back = torch.linalg.inv(torch.tensor(_TO_XYZ, dtype=torch.float64)).to(lab.device, lab.dtype)
    linear = mixed(xyz, back).clamp(0, 1)
    shares = torch.where(linear > 0.0031308, 1.055 * linear.clamp_min(1e-9) ** (1 / 2.4) - 0.055, 12.92 * linear)
    return (shares * 255).clamp(0, 255)


def mixed(values: Tensor, matrix: Tensor) -> Tensor:
    """Return channels mixed by a matrix.

    Args:
        values: (batch, channel, ...).
        matrix: (out, channel), or one for each sample (batch, out, channel).
    """
    flat = values.reshape(*values.shape[:2], -1)
    return torch.matmul(matrix, flat).view(len(values), matrix.shape[-2], *values.shape[2:])
