"""A template of intensities: percentiles that images are mapped to, piecewise linearly.

Nyúl and Udupa, Magnetic Resonance in Medicine 1999: an MR scanner's values have no unit, and contrasts differ. The
template is the mean over the sites' patients of their images' landmarks, each image standardised before. An image of a
site that nobody has seen is mapped as all others are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from oncofed.data.covariates import Covariate
from oncofed.data.harmonization.agreed import PREFIX

# Name of the network's buffer that holds the template; zeros: nobody agreed on one.
INTENSITY = f"{PREFIX}intensity"
PERCENTILES = (1, 10, 20, 30, 40, 50, 60, 70, 80, 90, 99)
# Of a standardised image; one beyond is cut off, which no scanner's is.
_RANGE = (-10.0, 30.0)
# Landmarks this near to each other are one: what lies between is not stretched without end.
_LEAST_APART = 1e-3
_MOST_SAMPLED = 1 << 20


class IntensityColumn(Covariate):
    """One landmark of one channel, whose mean the sites agree on."""


def intensity_columns(channels: Sequence[str]) -> tuple[IntensityColumn, ...]:
    """Return the landmarks of a job's images, channel by channel."""
    return tuple(
        IntensityColumn(name=f"intensity {number} p{percentile}", range=_RANGE)
        for number in range(len(channels))
        for percentile in PERCENTILES
    )


def template_of(columns: Sequence[IntensityColumn], moments: Mapping[str, tuple[float, float]]) -> Tensor:
    """Return the template (landmark,) float32 of agreed means; zeros where some are missing.

    Args:
        columns: of the job.
        moments: column -> mean and spread.
    """
    if any(column.name not in moments for column in columns):
        return torch.zeros(len(columns))
    # Weights may travel in bfloat16: all sites, and who predicts later, then see the same template.
    return torch.tensor([moments[column.name][0] for column in columns]).bfloat16().float()


def landmarks(channel: Tensor) -> Tensor:
    """Return a channel's percentiles, (landmark,) float32.

    Of the whole channel: whatever a scanner does to contrast, a voxel keeps its rank.
    """
    values = channel.flatten().float()
    values = values[:: max(1, len(values) // _MOST_SAMPLED)]
    return torch.quantile(values, torch.tensor(PERCENTILES, dtype=torch.float32) / 100)


def intensity_row(image: Tensor, columns: Sequence[IntensityColumn]) -> dict[str, float]:
    """Return an image's landmarks by column; none of an image that has one value alone.

    Args:
        image: (channel, x, y[, z]), standardised.
        columns: of the job.
    """
    found = torch.cat([landmarks(channel) for channel in image])
    if not _rise(found):
        return {}
    return {column.name: float(value) for column, value in zip(columns, found.clamp(*_RANGE), strict=True)}


def mapped(image: Tensor, template: Tensor) -> Tensor:
    """Return an image whose landmarks are those of a template, in the image's type.

    Beyond the outermost ones it goes on with the slope between them.

    Args:
        image: (channel, x, y[, z]), standardised.
        template: (landmark,), channel by channel.
    """
    return torch.stack(
        [_mapped(channel, own) for channel, own in zip(image, template.reshape(len(image), -1), strict=True)]
    )


def _mapped(channel: Tensor, template: Tensor) -> Tensor:
    source = landmarks(channel)
    if not _rise(source):
        return channel
    source, target = _apart(source), _apart(template.to(source))
    slopes = (target[1:] - target[:-1]) / (source[1:] - source[:-1])
    whole = (target[-1] - target[0]) / (source[-1] - source[0])
    values = channel.float()
    piece = torch.bucketize(values, source) - 1
    inside = piece.clamp(0, len(slopes) - 1)
    found = target[inside] + slopes[inside] * (values - source[inside])
    found = torch.where(values < source[0], target[0] + whole * (values - source[0]), found)
    found = torch.where(values > source[-1], target[-1] + whole * (values - source[-1]), found)
    return found.to(channel.dtype)


def _rise(found: Tensor) -> bool:
    by_channel = found.reshape(-1, len(PERCENTILES))
    return bool((by_channel[:, -1] - by_channel[:, 0] > _LEAST_APART).all())


def _apart(values: Tensor) -> Tensor:
    """Return landmarks each of which is a little above the one before."""
    steps = torch.diff(values, prepend=values[:1]).clamp_min(_LEAST_APART)
    steps[0] = 0
    return values[0] + steps.cumsum(0)
