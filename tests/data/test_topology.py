"""Plans beside those of nnU-Net 2.8.1's own planner on the same datasets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fingerprints import FINGERPRINTS, Fingerprint
from oncofed.data.planning import make_plan
from oncofed.data.profile import AXES, FLAT_AXES, features
from oncofed.data.topology import plan_topology, resolutions_of
from oncofed.job.spec import read_job
from oncofed.suppression import withheld_counts

# What ``ExperimentPlanner`` of nnunetv2 2.8.1 planned for ``fingerprints``, on its full resolution: dataset, GPU memory
# in GiB, spacing in mm, median size on that grid; patch, batch, strides and kernels of each resolution. Axes are right,
# anterior, superior.
NNUNET = (
    ("crops of a brain", 8, (1.0, 1.0, 1.0), (36.0, 49.5, 35.0), (40, 56, 40), 7, "111 222 222 222", "333 333 333 333"),
    (
        "crops of a brain",
        24,
        (1.0, 1.0, 1.0),
        (36.0, 49.5, 35.0),
        (40, 56, 40),
        7,
        "111 222 222 222",
        "333 333 333 333",
    ),
    (
        "brain tumours",
        8,
        (1.0, 1.0, 1.0),
        (138.0, 169.0, 139.0),
        (128, 128, 128),
        2,
        "111 222 222 222 222 222",
        "333 333 333 333 333 333",
    ),
    (
        "brain tumours",
        24,
        (1.0, 1.0, 1.0),
        (138.0, 169.0, 139.0),
        (160, 192, 160),
        3,
        "111 222 222 222 222 222",
        "333 333 333 333 333 333",
    ),
    (
        "liver",
        8,
        (0.781, 0.781, 1.0811),
        (512.0, 512.0, 485.0),
        (128, 128, 128),
        2,
        "111 222 222 222 222 222",
        "333 333 333 333 333 333",
    ),
    (
        "liver",
        24,
        (0.781, 0.781, 1.0811),
        (512.0, 512.0, 485.0),
        (192, 192, 192),
        2,
        "111 222 222 222 222 222",
        "333 333 333 333 333 333",
    ),
    (
        "prostate",
        8,
        (0.6601, 0.6601, 3.2856),
        (320.0, 320.0, 21.0),
        (256, 320, 20),
        2,
        "111 221 221 222 222 221 221",
        "331 331 333 333 333 333 333",
    ),
    (
        "prostate",
        24,
        (0.6601, 0.6601, 3.2856),
        (320.0, 320.0, 21.0),
        (320, 320, 24),
        2,
        "111 221 221 222 222 221 221",
        "331 331 333 333 333 333 333",
    ),
    (
        "left atrium",
        8,
        (1.25, 1.25, 1.37),
        (320.0, 320.0, 114.0),
        (192, 192, 64),
        2,
        "111 222 222 222 222 221",
        "333 333 333 333 333 333",
    ),
    (
        "left atrium",
        24,
        (1.25, 1.25, 1.37),
        (320.0, 320.0, 114.0),
        (256, 256, 112),
        2,
        "111 222 222 222 222 221 221",
        "333 333 333 333 333 333 333",
    ),
    (
        "lung",
        8,
        (0.7963, 0.7963, 1.3808),
        (512.0, 512.0, 237.0),
        (160, 192, 80),
        2,
        "111 222 222 222 222 221",
        "333 333 333 333 333 333",
    ),
    (
        "lung",
        24,
        (0.7963, 0.7963, 1.3808),
        (512.0, 512.0, 237.0),
        (256, 256, 112),
        2,
        "111 222 222 222 222 221 221",
        "333 333 333 333 333 333 333",
    ),
    (
        "pancreas",
        8,
        (0.7966, 0.7966, 1.4187),
        (512.0, 512.0, 187.0),
        (192, 192, 64),
        2,
        "111 222 222 222 222 221",
        "333 333 333 333 333 333",
    ),
    (
        "pancreas",
        24,
        (0.7966, 0.7966, 1.4187),
        (512.0, 512.0, 187.0),
        (256, 256, 112),
        2,
        "111 222 222 222 222 221 221",
        "333 333 333 333 333 333 333",
    ),
    (
        "spleen",
        8,
        (0.8091, 0.8091, 3.226),
        (512.0, 512.0, 109.0),
        (224, 224, 40),
        2,
        "111 221 222 222 222 221",
        "331 333 333 333 333 333",
    ),
    (
        "spleen",
        24,
        (0.8091, 0.8091, 3.226),
        (512.0, 512.0, 109.0),
        (256, 320, 64),
        2,
        "111 221 222 222 222 222 221",
        "331 333 333 333 333 333 333",
    ),
    (
        "cine of a heart",
        8,
        (1.5567, 1.5567, 6.5381),
        (202.5, 239.0, 13.0),
        (224, 256, 14),
        5,
        "111 221 221 222 221 221",
        "331 331 333 333 333 333",
    ),
    (
        "cine of a heart",
        24,
        (1.5567, 1.5567, 6.5381),
        (202.5, 239.0, 13.0),
        (224, 256, 14),
        8,
        "111 221 221 222 221 221",
        "331 331 333 333 333 333",
    ),
    (
        "vessels of a liver",
        8,
        (0.7893, 0.7893, 2.3585),
        (512.0, 512.0, 108.0),
        (224, 224, 40),
        2,
        "111 221 222 222 222 221",
        "331 333 333 333 333 333",
    ),
    (
        "vessels of a liver",
        24,
        (0.7893, 0.7893, 2.3585),
        (512.0, 512.0, 108.0),
        (256, 320, 64),
        2,
        "111 221 222 222 222 222 221",
        "331 333 333 333 333 333 333",
    ),
    (
        "whole body",
        8,
        (1.4675, 1.4675, 1.8945),
        (269.0, 269.0, 484.5),
        (96, 112, 192),
        2,
        "111 222 222 222 222 112",
        "333 333 333 333 333 333",
    ),
    (
        "whole body",
        24,
        (1.4675, 1.4675, 1.8945),
        (269.0, 269.0, 484.5),
        (160, 192, 224),
        2,
        "111 222 222 222 222 222",
        "333 333 333 333 333 333",
    ),
    ("flat images", 8, (1.0, 1.0), (523.5, 671.0), (640, 768), 3, "11 22 22 22 22 22 22 22", "33 33 33 33 33 33 33 33"),
    (
        "flat images",
        24,
        (1.0, 1.0),
        (523.5, 671.0),
        (640, 768),
        3,
        "11 22 22 22 22 22 22 22",
        "33 33 33 33 33 33 33 33",
    ),
)
# What its planners ``nnUNetPlannerResEncM`` (8 GiB) and ``nnUNetPlannerResEncL`` (24 GiB) planned for the same
# datasets, whose spacing and size stand above: patch, batch, strides, kernels, residual blocks of each resolution.
RESIDUAL = (
    ("crops of a brain", 8, (40, 56, 40), 58, "111 222 222 222", "333 333 333 333", "1346"),
    ("crops of a brain", 24, (40, 56, 40), 139, "111 222 222 222", "333 333 333 333", "1346"),
    ("brain tumours", 8, (128, 128, 128), 2, "111 222 222 222 222 222", "333 333 333 333 333 333", "134666"),
    ("brain tumours", 24, (160, 192, 160), 3, "111 222 222 222 222 222", "333 333 333 333 333 333", "134666"),
    ("liver", 8, (128, 128, 128), 2, "111 222 222 222 222 222", "333 333 333 333 333 333", "134666"),
    ("liver", 24, (192, 192, 192), 2, "111 222 222 222 222 222", "333 333 333 333 333 333", "134666"),
    ("prostate", 8, (256, 256, 20), 2, "111 221 221 222 222 221 221", "331 331 333 333 333 333 333", "1346666"),
    ("prostate", 24, (320, 320, 24), 4, "111 221 221 222 222 221 221", "331 331 333 333 333 333 333", "1346666"),
    ("left atrium", 8, (192, 192, 64), 2, "111 222 222 222 222 221", "333 333 333 333 333 333", "134666"),
    ("left atrium", 24, (256, 256, 112), 2, "111 222 222 222 222 221 221", "333 333 333 333 333 333 333", "1346666"),
    ("lung", 8, (160, 192, 80), 2, "111 222 222 222 222 221", "333 333 333 333 333 333", "134666"),
    ("lung", 24, (256, 256, 112), 2, "111 222 222 222 222 221 221", "333 333 333 333 333 333 333", "1346666"),
    ("pancreas", 8, (192, 192, 64), 2, "111 222 222 222 222 221", "333 333 333 333 333 333", "134666"),
    ("pancreas", 24, (256, 256, 112), 2, "111 222 222 222 222 221 221", "333 333 333 333 333 333 333", "1346666"),
    ("spleen", 8, (192, 224, 40), 2, "111 221 222 222 222 221", "331 333 333 333 333 333", "134666"),
    ("spleen", 24, (256, 320, 64), 2, "111 221 222 222 222 222 221", "331 333 333 333 333 333 333", "1346666"),
    ("cine of a heart", 8, (224, 256, 14), 4, "111 221 221 222 221 221", "331 331 333 333 333 333", "134666"),
    ("cine of a heart", 24, (224, 256, 14), 12, "111 221 221 222 221 221", "331 331 333 333 333 333", "134666"),
    ("vessels of a liver", 8, (192, 224, 40), 2, "111 221 222 222 222 221", "331 333 333 333 333 333", "134666"),
    (
        "vessels of a liver",
        24,
        (256, 320, 64),
        2,
        "111 221 222 222 222 222 221",
        "331 333 333 333 333 333 333",
        "1346666",
    ),
    ("whole body", 8, (96, 112, 192), 2, "111 222 222 222 222 112", "333 333 333 333 333 333", "134666"),
    ("whole body", 24, (160, 192, 224), 2, "111 222 222 222 222 222", "333 333 333 333 333 333", "134666"),
    ("flat images", 8, (448, 576), 13, "11 22 22 22 22 22 22", "33 33 33 33 33 33 33", "1346666"),
    ("flat images", 24, (640, 768), 19, "11 22 22 22 22 22 22 22", "33 33 33 33 33 33 33 33", "13466666"),
)
GRIDS = {row[0]: row[2:4] for row in NNUNET}
BY_NAME = {fingerprint.name: fingerprint for fingerprint in FINGERPRINTS}
SITES = 3
# From what sites may tell, the 10th percentile of the spacing across slices is read from a histogram of which counts
# under five are withheld: the working grid is then up to 9 % finer or coarser than nnU-Net's. The patch may then be
# shortened to the next step, or an axis be halved a resolution earlier. (dataset, GiB): patch.
DIFFERENT = {
    ("pancreas", 24): (256, 256, 96),
    ("spleen", 8): (192, 224, 40),
    ("spleen", 24): (256, 320, 64),
    ("cine of a heart", 8): (224, 256, 12),
    ("cine of a heart", 24): (224, 256, 12),
    ("vessels of a liver", 24): (320, 320, 56),
}


def _written(steps: tuple[tuple[int, ...], ...]) -> str:
    return " ".join("".join(map(str, step)) for step in steps)


@pytest.mark.parametrize("row", NNUNET, ids=lambda row: f"{row[0]}, {row[1]} GiB")
def test_patch_batch_and_network_are_nnunets(row: tuple[Any, ...]) -> None:
    name, gib, spacing, size, patch, batch, strides, kernels = row
    dataset = BY_NAME[name]
    planned = plan_topology(spacing, size, dataset.cases, dataset.classes, gib)
    assert planned.resolutions.patch == patch
    assert planned.batch == batch
    assert _written(planned.resolutions.strides) == strides
    assert _written(planned.resolutions.kernels) == kernels
    most = 320 if len(patch) == 3 else 512
    assert planned.channels == tuple(min(32 * 2**level, most) for level in range(len(planned.channels)))


@pytest.mark.parametrize("row", RESIDUAL, ids=lambda row: f"{row[0]}, {row[1]} GiB")
def test_residual_presets_are_nnunets(row: tuple[Any, ...]) -> None:
    name, gib, patch, batch, strides, kernels, blocks = row
    dataset = BY_NAME[name]
    planned = plan_topology(*GRIDS[name], dataset.cases, dataset.classes, gib, residual=True)
    assert planned.resolutions.patch == patch
    assert planned.batch == batch
    assert _written(planned.resolutions.strides) == strides
    assert _written(planned.resolutions.kernels) == kernels
    assert "".join(map(str, planned.blocks)) == blocks


def test_a_residual_preset_is_a_jobs_network() -> None:
    dataset = BY_NAME["prostate"]
    made = make_plan(_told(dataset), {"a": dataset.cases}, "mri", 3, 8, dataset.classes, residual=True).settings
    assert made["model"]["network"] == "residual_unet"
    assert made["model"]["arguments"] == {"blocks": [1, 3, 4, 6, 6, 6, 6]}
    job = read_job("hippocampus_segmentation").changed(made)
    assert job.model.divisors(3) == (64, 64, 4)


def _shown(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    by_bin = {str(n): int(count) for n, count in enumerate(counts)}
    hidden = withheld_counts(by_bin, int(counts.sum()), 5)
    return np.array([0 if name in hidden else count for name, count in by_bin.items()])


def _told(dataset: Fingerprint) -> dict[str, Any]:
    """Return what three sites tell of a dataset: counts, means, spreads, histograms without counts under five."""
    spacing, size = dataset.grids()
    axes = AXES if spacing.shape[1] == 3 else FLAT_AXES
    values = {f"log2_spacing_{axis}": np.log2(spacing[:, n]) for n, axis in enumerate(axes)}
    values |= {f"log2_size_{axis}": np.log2(size[:, n]) for n, axis in enumerate(axes)}
    ranges = {name: (low, high) for name, low, high in features("mri", len(axes), {})}
    told: dict[str, Any] = {"mean": {}, "stddev": {}, "count": {}, "histogram": {}}
    for name, found in values.items():
        edges = np.linspace(*ranges[name], 57)
        shown = sum(_shown(np.histogram(part, edges)[0]) for part in np.array_split(found, SITES))
        told["mean"][name], told["stddev"][name] = float(found.mean()), float(found.std())
        told["count"][name] = len(found)
        told["histogram"][name] = [list(bin_) for bin_ in zip(edges[:-1], edges[1:], shown, strict=True)]
    return told


@pytest.mark.parametrize("row", NNUNET, ids=lambda row: f"{row[0]}, {row[1]} GiB")
def test_what_sites_may_tell_gives_the_same_plan(row: tuple[Any, ...]) -> None:
    name, gib, spacing, _, patch, batch, strides, _ = row
    dataset = BY_NAME[name]
    modality = "mri" if len(patch) == 3 else "xray"
    told = make_plan(_told(dataset), {"a": dataset.cases}, modality, len(patch), gib, dataset.classes).settings
    assert told["data"]["patch"] == list(DIFFERENT.get((name, gib), patch))
    assert told["training"]["batch_size"] == batch
    assert told["data"]["spacing"] == pytest.approx(spacing, rel=0.09)
    if (name, gib) not in DIFFERENT:
        assert _written(tuple(map(tuple, told["model"]["strides"]))) == strides


@settings(deadline=None)
@example(spacing=[1.0, 2.0], size=9, gib=1.0)
@given(
    spacing=st.lists(st.floats(0.1, 10), min_size=2, max_size=3),
    size=st.integers(8, 2048),
    gib=st.floats(0.05, 80),
)
def test_every_patch_fits_its_network(spacing: list[float], size: int, gib: float) -> None:
    planned = plan_topology(spacing, [size] * len(spacing), 100, 3, gib)
    for side, divisor in zip(planned.resolutions.patch, planned.resolutions.divisors, strict=True):
        assert side % divisor == 0
        assert side // divisor >= (4 if len(planned.channels) > 3 else 2)
    assert planned.batch >= 2
    if len(planned.channels) > 3:
        # Fewer are filled up to the three that DynUNet needs, and the padding to fit those may be room for others.
        assert planned.resolutions == resolutions_of(spacing, planned.resolutions.patch)
