"""Plan a job's settings from the sites' pooled statistics.

The rules are those of nnU-Net (Isensee et al., Nature Methods 2021, supplementary note 2), as far as the networks here
allow: one stride for all axes, and a patch whose sides all resolutions divide.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from oncofed.data.profile import AXES, FLAT_AXES
from oncofed.data.spec import Modality

# Voxels of a batch per GiB of GPU memory, for training a network with 32 feature maps at full resolution:
# nnU-Net's 128 x 128 x 128 voxels, two at a time, in 8 GiB; flat images 512 x 512, 12 at a time.
_VOXELS_PER_GIB = {3: 2 * 128**3 / 8, 2: 12 * 512**2 / 8}
_FEATURES = {3: (32, 320), 2: (32, 512)}
_ANISOTROPIC = 3.0
_COARSEST_SIDE = 4
_LARGEST_BATCH = {3: 4, 2: 32}


class Reason(BaseModel):
    """Why a setting has its value."""

    setting: str
    value: Any
    because: str
    statistic: str


class PlanFile(BaseModel):
    """``plan.json``."""

    model_config = ConfigDict(populate_by_name=True)

    schema_: Literal[1] = Field(1, alias="schema")
    modality: Modality
    dimensions: int
    patients: dict[str, int] = Field(description="site -> patients behind the statistics")
    settings: dict[str, dict[str, Any]] = Field(description="section of job.yaml -> setting -> value")
    normalisation: str
    reasons: list[Reason]
    statistics: dict[str, Any] = Field(description="of all sites together")


def make_plan(
    statistics: Mapping[str, Any],
    patients: dict[str, int],
    modality: Modality,
    dimensions: int,
    gpu_gib: float = 8.0,
) -> PlanFile:
    """Return proposed settings.

    Args:
        statistics: of all sites together: "mean", "histogram", … by feature.
        patients: site -> patients behind them.
        modality: of the images.
        dimensions: 3 for volumes, 2 for flat images.
        gpu_gib: memory of the smallest GPU among the sites.

    Raises:
        ValueError: the statistics hold no size of an image.
    """
    axes = AXES if dimensions == 3 else FLAT_AXES
    reasons: list[Reason] = []
    sizes = [2.0 ** _mean(statistics, f"log2_size_{axis}") for axis in axes]
    spacing = _spacing(statistics, axes, reasons)
    if spacing:
        typical = [2.0 ** _mean(statistics, f"log2_spacing_{axis}") for axis in axes]
        sizes = [n * own / target for n, own, target in zip(sizes, typical, spacing, strict=True)]
    first, most = _FEATURES[dimensions]
    budget = _VOXELS_PER_GIB[dimensions] * gpu_gib
    patch, levels = _patch(sizes, spacing, budget / 2)
    reasons.append(
        Reason(
            setting="data.patch",
            value=patch,
            because=f"as much of a typical image ({' x '.join(f'{s:.0f}' for s in sizes)} voxels on that grid) as two "
            f"patches in {gpu_gib:g} GiB of GPU memory allow",
            statistic="mean of log2_size",
        )
    )
    batch = max(2, min(_LARGEST_BATCH[dimensions], int(budget / math.prod(patch))))
    reasons.append(
        Reason(
            setting="training.batch_size",
            value=batch,
            because=f"what {gpu_gib:g} GiB of GPU memory hold beside a patch of that size, at least 2",
            statistic="mean of log2_size",
        )
    )
    channels = [min(first * 2**level, most) for level in range(levels)]
    reasons.append(
        Reason(
            setting="model.channels",
            value=channels,
            because=f"{levels} resolutions halve the patch until its shortest side has about {_COARSEST_SIDE} voxels",
            statistic="data.patch",
        )
    )
    normalisation = (
        "Hounsfield units clipped to a fixed window and scaled"
        if modality == "ct"
        else "each image to mean 0 and spread 1"
    )
    reasons.append(
        Reason(
            setting="data.modality",
            value=modality,
            because=f"{normalisation}: intensities of {modality} images "
            + ("mean the same at every site" if modality == "ct" else "are comparable within an image only"),
            statistic=_intensity_note(statistics, modality),
        )
    )
    return PlanFile(
        modality=modality,
        dimensions=dimensions,
        patients=patients,
        settings={
            "data": {"spacing": spacing, "patch": patch, "modality": modality},
            "model": {"channels": channels},
            "training": {"batch_size": batch},
        },
        normalisation=normalisation,
        reasons=reasons,
        statistics=dict(statistics),
    )


def quantile(histogram: Sequence[Sequence[float]], share: float) -> float | None:
    """Return an approximate quantile; None where counts are withheld."""
    total = sum(count for _, _, count in histogram)
    reached = 0.0
    for low, high, count in histogram:
        if count and reached + count >= share * total:
            return low + (high - low) * (share * total - reached) / count
        reached += count
    return None


def _spacing(statistics: Mapping[str, Any], axes: Sequence[str], reasons: list[Reason]) -> list[float] | None:
    known = [axis for axis in axes if f"log2_spacing_{axis}" in statistics.get("mean", {})]
    if len(known) < len(axes):
        reasons.append(
            Reason(
                setting="data.spacing",
                value=None,
                because="too few images say how large their pixels are: each keeps its own grid",
                statistic="count of log2_spacing",
            )
        )
        return None
    typical = [2.0 ** _mean(statistics, f"log2_spacing_{axis}") for axis in axes]
    spacing = list(typical)
    because, statistic = "the spacing of a typical image (geometric mean)", "mean of log2_spacing"
    coarsest = max(range(len(axes)), key=lambda n: typical[n])
    finest = min(typical)
    if typical[coarsest] > _ANISOTROPIC * finest:
        name = f"log2_spacing_{axes[coarsest]}"
        tenth = quantile(statistics.get("histogram", {}).get(name, ()), 0.1)
        if tenth is not None:
            spacing[coarsest] = max(2.0**tenth, finest)
            because += (
                f"; {axes[coarsest]} is more than {_ANISOTROPIC:g} times coarser than the others, and takes the 10th "
                "percentile so that thin slices are not thrown away"
            )
            statistic += f", histogram of {name}"
    rounded = [float(f"{s:.3g}") for s in spacing]
    reasons.append(Reason(setting="data.spacing", value=rounded, because=because, statistic=statistic))
    return rounded


def _patch(sizes: Sequence[float], spacing: list[float] | None, voxels: float) -> tuple[list[int], int]:
    """Return a patch and the network's resolutions.

    The patch has at most ``voxels``, and a typical image's shape in mm.
    """
    scale = [1.0 / s for s in spacing] if spacing else [1.0] * len(sizes)
    factor = (voxels / math.prod(scale)) ** (1 / len(sizes))
    sides = [s * factor for s in scale]
    # An axis longer than the image passes its surplus to the others.
    for _ in sizes:
        filled = [side >= size for side, size in zip(sides, sizes, strict=True)]
        sides = [min(side, size) for side, size in zip(sides, sizes, strict=True)]
        free = [n for n, full in enumerate(filled) if not full]
        if not free:
            break
        grow = (voxels / math.prod(sides)) ** (1 / len(free))
        sides = [side * grow if n in free else side for n, side in enumerate(sides)]
    sides = [min(side, size) for side, size in zip(sides, sizes, strict=True)]
    levels = min(6, max(2, int(math.log2(max(min(sides), 8) / _COARSEST_SIDE)) + 1))
    divisor = 2 ** (levels - 1)
    patch = [max(math.ceil(8 / divisor) * divisor, round(side / divisor) * divisor) for side in sides]
    while math.prod(patch) > voxels * 1.05 and max(patch) > divisor:
        largest = max(range(len(patch)), key=lambda n: patch[n])
        patch[largest] -= divisor
    return patch, levels


def _mean(statistics: Mapping[str, Any], name: str) -> float:
    try:
        return float(statistics["mean"][name])
    except KeyError:
        raise ValueError(f"no site told {name}: too few patients, or no image of the job's kind") from None


def _intensity_note(statistics: Mapping[str, Any], modality: str) -> str:
    name = "intensity_median" if modality == "ct" else "log10_intensity_median"
    mean, spread = (statistics.get(kind, {}).get(name) for kind in ("mean", "stddev"))
    return f"{name}: mean {mean:.3g}, spread {spread:.3g}" if mean is not None and spread is not None else name
