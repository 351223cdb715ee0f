"""Plan a job's settings from the sites' pooled statistics.

Spacing follows the rule of nnU-Net's planner (Isensee et al., Nature Methods 2021, supplementary note 2), patch,
network and batch those of ``oncofed.data.topology``. Where nnU-Net takes medians over all images, which no site may
tell, the geometric mean stands for them; its 10th percentile is read from the histogram, or follows from mean and
spread where too many counts are withheld.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from oncofed.data.profile import AXES, FLAT_AXES
from oncofed.data.spec import Modality
from oncofed.data.topology import Topology, plan_topology

_ANISOTROPIC = 3.0
_TENTH = 0.1
# A histogram that shows fewer of the patients leaves out too much of its ends.
_SHOWN = 0.95
_SMALLEST_SIDE, _LARGEST_SIDE = 8, 2048
_MOST_COARSER_OUTPUTS = 4
# nnU-Net learns from neither of the two coarsest resolutions, nor twice from the finest.
_UNUSED_OUTPUTS = 3


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
    classes: int = 2,
    residual: bool = False,
) -> PlanFile:
    """Return proposed settings.

    Args:
        statistics: of all sites together: "mean", "histogram", … by feature.
        patients: site -> patients behind them.
        modality: of the images.
        dimensions: 3 for volumes, 2 for flat images.
        gpu_gib: memory of the smallest GPU among the sites.
        classes: that the network tells apart, with background.
        residual: the network's encoder has residual blocks.

    Raises:
        ValueError: the statistics hold no size of an image.
    """
    axes = AXES if dimensions == 3 else FLAT_AXES
    reasons: list[Reason] = []
    sizes = [2.0 ** _mean(statistics, f"log2_size_{axis}") for axis in axes]
    spacing = _spacing(statistics, sizes, axes, reasons)
    if spacing:
        typical = [2.0 ** _mean(statistics, f"log2_spacing_{axis}") for axis in axes]
        sizes = [n * own / target for n, own, target in zip(sizes, typical, spacing, strict=True)]
    sizes = [float(min(max(round(size), _SMALLEST_SIDE), _LARGEST_SIDE)) for size in sizes]
    grid = spacing or [1.0] * len(axes)
    planned = plan_topology(grid, sizes, sum(patients.values()), classes, gpu_gib, residual)
    reasons += _reasons(planned, sizes, gpu_gib)
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
            "data": {"spacing": spacing, "patch": list(planned.resolutions.patch), "modality": modality},
            "model": model_settings(planned),
            "training": {"batch_size": planned.batch},
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


def model_settings(planned: Topology) -> dict[str, Any]:
    """Return the section ``model`` of a job with a planned network."""
    return {
        "network": "residual_unet" if planned.blocks else "dynunet",
        "norm": "instance",
        "channels": list(planned.channels),
        "strides": [list(stride) for stride in planned.resolutions.strides],
        "kernel_size": [list(kernel) for kernel in planned.resolutions.kernels],
        "deep_supervision": min(max(len(planned.channels) - _UNUSED_OUTPUTS, 0), _MOST_COARSER_OUTPUTS),
        **({"arguments": {"blocks": list(planned.blocks)}} if planned.blocks else {}),
    }


def _reasons(planned: Topology, sizes: Sequence[float], gpu_gib: float) -> list[Reason]:
    halvings = [int(math.log2(divisor)) for divisor in planned.resolutions.divisors]
    return [
        Reason(
            setting="data.patch",
            value=list(planned.resolutions.patch),
            because=f"as much of a typical image ({' x '.join(f'{s:.0f}' for s in sizes)} voxels on that grid) as two "
            f"patches in {gpu_gib:g} GiB of GPU memory allow",
            statistic="mean of log2_size",
        ),
        Reason(
            setting="training.batch_size",
            value=planned.batch,
            because=f"what {gpu_gib:g} GiB of GPU memory hold beside a patch of that size, at most "
            f"{'all' if planned.blocks else 'a twentieth of all'} voxels, at least 2",
            statistic="mean of log2_size",
        ),
        Reason(
            setting="model.channels",
            value=list(planned.channels),
            because=f"{len(planned.channels)} resolutions: the axes are halved {', '.join(map(str, halvings))} times, "
            "each as long as it keeps 4 voxels and is at most twice as coarse as the finest",
            statistic="data.patch, data.spacing",
        ),
    ]


def _spacing(
    statistics: Mapping[str, Any], sizes: Sequence[float], axes: Sequence[str], reasons: list[Reason]
) -> list[float] | None:
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
    spacing = [2.0 ** _mean(statistics, f"log2_spacing_{axis}") for axis in axes]
    because, statistic = "the spacing of a typical image (geometric mean)", "mean of log2_spacing"
    coarsest = max(range(len(axes)), key=lambda n: spacing[n])
    others = [n for n in range(len(axes)) if n != coarsest]
    coarsest_other = max(spacing[n] for n in others)
    few_slices = sizes[coarsest] * _ANISOTROPIC < min(sizes[n] for n in others)
    if len(axes) == 3 and spacing[coarsest] > _ANISOTROPIC * coarsest_other and few_slices:
        name = f"log2_spacing_{axes[coarsest]}"
        tenth, source = _tenth(statistics, name)
        spacing[coarsest] = max(2.0**tenth, coarsest_other)
        because += (
            f"; {axes[coarsest]} is more than {_ANISOTROPIC:g} times coarser than the others and has fewer voxels, and "
            "takes the 10th percentile so that thin slices are not thrown away"
        )
        statistic += f", {source} of {name}"
    rounded = [float(f"{s:.4g}") for s in spacing]
    reasons.append(Reason(setting="data.spacing", value=rounded, because=because, statistic=statistic))
    return rounded


def _tenth(statistics: Mapping[str, Any], name: str) -> tuple[float, str]:
    """Return the 10th percentile, and from what it is."""
    histogram = statistics.get("histogram", {}).get(name, ())
    patients = statistics.get("count", {}).get(name)
    shown = sum(count or 0 for _, _, count in histogram)
    found = quantile(histogram, _TENTH) if not patients or shown >= _SHOWN * patients else None
    if found is not None:
        return found, "histogram"
    spread = statistics.get("stddev", {}).get(name, 0.0)
    return _mean(statistics, name) + NormalDist().inv_cdf(_TENTH) * spread, "mean and spread"


def _mean(statistics: Mapping[str, Any], name: str) -> float:
    try:
        return float(statistics["mean"][name])
    except KeyError:
        raise ValueError(f"no site told {name}: too few patients, or no image of the job's kind") from None


def _intensity_note(statistics: Mapping[str, Any], modality: str) -> str:
    name = "intensity_median" if modality == "ct" else "log10_intensity_median"
    mean, spread = (statistics.get(kind, {}).get(name) for kind in ("mean", "stddev"))
    return f"{name}: mean {mean:.3g}, spread {spread:.3g}" if mean is not None and spread is not None else name
