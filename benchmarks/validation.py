"""Scoring a volume, against MONAI's evaluation loop: seconds, overhead, memory.

The case is a compressed CT of two classes in a scanner's orientation; its network subtracts a number, so that the
work around a network is measured. oncofed holds the case prepared, as from a run's second validation on, and finds
Dice, surface Dice and the Hausdorff distance. MONAI's loop is that of its tutorials: transforms of image and label,
``sliding_window_inference``, ``DiceMetric``, ``HausdorffDistanceMetric``; its figures are the same, or the suite
fails.

Processor time is that of a round's validation, which finds Dice alone, less the network's in the same run; on one
thread, since two that wait for the same memory would count its time twice. Memory is the allocation of scoring
beyond the image and the network, as torch's dispatcher sees it on the device "meta", where nothing is computed. Both
are measured with the network on the grid of the label's file, and on a coarser one (``data.spacing``), from which
each class' probabilities are resampled to the file's.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai.inferers import sliding_window_inference
from monai.metrics import DiceMetric, HausdorffDistanceMetric
from monai.networks.utils import one_hot
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, Orientationd, ScaleIntensityRanged
from torch import Tensor, nn

from harness.bench import Bench, Settings
from harness.results import Limit, Target
from oncofed.data.case import Case
from oncofed.data.prepared import CachePlan, PreparedCases
from oncofed.data.spec import DataSpec
from oncofed.tasks import Evaluation, Segmentation, SegmentationSpec
from oncofed.tasks.inferred import TargetGrid
from peak import TensorPeak

_OVERLAP = 0.25
_WINDOW_HU = (-160.0, 240.0)
_CLASSES = {1: "organ"}
_VOXEL, _SPACING = (0.8, 0.8, 2.5), (1.5, 1.5, 3.0)  # mm, of the files and of the coarser grid
_GRID, _SAME, _COARSER = "network's grid", "that of the label's file", f"{'×'.join(map(str, _SPACING))} mm"
_CPU = torch.device("cpu")


def run(bench: Bench) -> None:
    """Measure one case, and the memory of many classes."""
    _case(bench)
    _memory(bench)


def _case(bench: Bench) -> None:
    shape = (96, 96, 48) if bench.quick else (512, 512, 100)
    patch = (32, 32, 32) if bench.quick else (96, 96, 96)
    case = _written(bench.folder, shape)
    data = DataSpec(dataset="bench", modality="ct", window=_WINDOW_HU, patch=patch)
    task = Segmentation(SegmentationSpec(classes=_CLASSES, overlap=_OVERLAP), data)
    network = _Density().to(bench.device)
    held = PreparedCases([case], task.scoring_preparation(), _CPU, plan=CachePlan(None, "memory", None, "held"))

    def scored(detailed: bool) -> Evaluation:
        return task.evaluate(network, [case], bench.device, detailed, held=held)

    ours, theirs = scored(True), _monai(case, network, patch, bench.device)
    _require_equal(ours, theirs)
    windows = _count(shape, patch)
    alone = _alone(network, patch, windows, bench.device)
    name = f"case of {'×'.join(map(str, shape))}, two classes"
    settings: Settings = {"patch": patch[0], "windows": windows, "overlap": _OVERLAP, _GRID: _SAME}
    bench.race(
        f"{name}, all figures",
        {
            "oncofed": lambda: scored(True),
            "MONAI's evaluation loop": lambda: _monai(case, network, patch, bench.device),
            "oncofed, reading it first": lambda: task.evaluate(network, [case], bench.device, True),
        },
        limit=Limit(name="the network alone", value=bench.best(alone, 3)),
        target=Target(of="baseline", value=5.0),
        settings=settings,
    )
    for what, program in (("scored", lambda: scored(False)), ("with surfaces", lambda: scored(True))):
        bench.measured(
            f"{name}, {what}, beyond the network",
            [_beyond(network, program) for _ in range(bench.times())],
            "CPU-s",
            "lower",
            settings | {"threads": 1},
            target=Target(of="value", value=0.15) if what == "scored" else None,
        )
    _coarser(bench, case, name, network, shape, data)


def _coarser(bench: Bench, case: Case, name: str, network: _Density, shape: tuple[int, ...], data: DataSpec) -> None:
    """Measure the case on a grid coarser than its label's."""
    data = data.model_copy(update={"spacing": _SPACING})
    task = Segmentation(SegmentationSpec(classes=_CLASSES, overlap=_OVERLAP), data)
    held = PreparedCases([case], task.scoring_preparation(), _CPU, plan=CachePlan(None, "memory", None, "held"))
    windows = _count(_coarse(shape), data.patch)

    def scored() -> Evaluation:
        return task.evaluate(network, [case], bench.device, False, held=held)

    scored()
    samples = [_beyond(network, scored) for _ in range(bench.times())]
    settings: Settings = {"patch": data.patch[0], "windows": windows, "overlap": _OVERLAP, _GRID: _COARSER}
    settings["threads"] = 1
    bench.measured(f"{name}, scored on a coarser grid, beyond the network", samples, "CPU-s", "lower", settings)


def _coarse(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of the coarser grid."""
    return tuple(
        round((side - 1) * voxel / other) + 1 for side, voxel, other in zip(shape, _VOXEL, _SPACING, strict=True)
    )


def _count(shape: tuple[int, ...], patch: tuple[int, ...]) -> int:
    """Return the number of windows of an image."""
    return math.prod(math.ceil(max(n - p, 0) / int(p * (1 - _OVERLAP))) + 1 for n, p in zip(shape, patch, strict=True))


def _written(folder: Path, shape: tuple[int, ...]) -> Case:
    """Write a case of one organ.

    As compressed NIfTI in LPS order.
    """
    grid = np.meshgrid(*[np.linspace(-1, 1, side, dtype=np.float32) for side in shape], indexing="ij", sparse=True)
    label = ((grid[0] + 0.2) ** 2 / 0.12 + grid[1] ** 2 / 0.1 + grid[2] ** 2 / 0.3 < 1).astype(np.uint8)
    rng = np.random.default_rng(0)
    image = (label * 120.0 - 20 + rng.normal(0, 12, shape)).astype(np.int16)
    affine = np.diag([-_VOXEL[0], -_VOXEL[1], _VOXEL[2], 1])
    for name, values in (("image", image), ("label", label)):
        nib.save(nib.Nifti1Image(values, affine), folder / f"{name}.nii.gz")
    return Case("case", "case", folder / "image.nii.gz", folder / "label.nii.gz")


class _Density(nn.Module):
    """Segments the organ by density, at next to no cost.

    A convolution would take longer than all the rest.

    Attributes:
        spent: processor time of this process that passed within it, in seconds.
    """

    def __init__(self) -> None:
        super().__init__()
        self.spent = 0.0

    def forward(self, image: Tensor) -> Tensor:
        begun = time.process_time()
        found = torch.cat([0.5101 - image, image - 0.5101], 1)
        self.spent += time.process_time() - begun
        return found


@torch.no_grad()
def _monai(case: Case, network: nn.Module, patch: tuple[int, ...], device: torch.device) -> tuple[float, float]:
    """Return Dice and HD95 like MONAI's tutorials."""
    keys = ("image", "label")
    low, high = _WINDOW_HU
    read = Compose(
        [
            LoadImaged(keys),
            EnsureChannelFirstd(keys),
            Orientationd(keys, axcodes="RAS", labels=None),
            ScaleIntensityRanged("image", a_min=low, a_max=high, b_min=0, b_max=1, clip=True),
        ]
    )
    pair = read({"image": case.image, "label": case.mask})
    image, label = (pair[key].as_tensor()[None].to(device) for key in keys)
    output = sliding_window_inference(image, patch, 4, network, _OVERLAP, mode="gaussian")
    assert isinstance(output, Tensor)
    found, wanted = one_hot(output.argmax(1, keepdim=True), 2), one_hot(label, 2)
    dice, distance = DiceMetric(include_background=False), HausdorffDistanceMetric(percentile=95)
    spacing = np.abs(np.linalg.norm(pair["image"].affine[:3, :3].numpy(), axis=0)).tolist()
    dice(found, wanted)
    distance(found, wanted, spacing=spacing)
    return float(dice.aggregate()), float(distance.aggregate())


def _require_equal(ours: Evaluation, theirs: tuple[float, float]) -> None:
    found = ours.by_class["organ"], ours.extra_metrics["hd95_mm.organ"]
    if not np.allclose(found, theirs, rtol=1e-6, atol=1e-6):
        raise AssertionError(f"oncofed finds Dice and distance {found}, MONAI {theirs}")


def _alone(network: nn.Module, patch: tuple[int, ...], windows: int, device: torch.device) -> Callable[[], None]:
    """Return a program of windows and network alone."""
    image = torch.randn(1, *(2 * side for side in patch), device=device)
    batch = torch.empty(4, 1, *patch, device=device)

    @torch.no_grad()
    def once() -> None:
        for first in range(0, windows, 4):
            for n in range(min(4, windows - first)):
                at = (first + n) % patch[0]
                batch[n].copy_(image[:, at : at + patch[0], at : at + patch[1], at : at + patch[2]])
            network(batch[: windows - first])

    return once


def _beyond(network: _Density, program: Callable[[], object]) -> float:
    """Return processor seconds beyond those of the network."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    network.spent, begun = 0.0, time.process_time()
    program()
    spent = time.process_time() - begun
    torch.set_num_threads(threads)
    return spent - network.spent


def _memory(bench: Bench) -> None:
    shape, patch = ((96, 96, 80), 32) if bench.quick else ((512, 512, 400), 96)
    for classes in (14, 105):
        bench.doing(f"memory of {classes} classes")
        size = _peak(classes, shape, patch, shape)
        slab = _slab(classes, shape, patch)
        name = f"{classes} classes at {'×'.join(map(str, shape))}, memory"
        settings: Settings = {"patch": patch, "slab, GB": round(slab / 1e9, 3), _GRID: _SAME}
        if classes == 14:
            target = Target(of="value", value=1.3)
            bench.measured(name, [size / slab], "slabs", "lower", settings, target=target)
        else:
            bench.measured(name, [size / 1e9], "GB", "lower", settings, target=Target(of="value", value=12))
    classes, coarse = 14, _coarse(shape)
    size, slab = _peak(classes, shape, patch, coarse), _slab(classes, coarse, patch)
    name = f"{classes} classes at {'×'.join(map(str, shape))} from a coarser grid, memory"
    coarser: Settings = {"patch": patch, "slab, GB": round(slab / 1e9, 3), _GRID: _COARSER}
    bench.measured(name, [size / 1e9], "GB", "lower", coarser)


def _slab(classes: int, shape: tuple[int, ...], patch: int) -> int:
    """Return the bytes of the logits of one slab."""
    return (classes + 1) * math.prod(sorted(shape)[:2]) * patch * 4


def _peak(classes: int, shape: tuple[int, ...], patch: int, seen: tuple[int, ...]) -> float:
    """Return the peak bytes of segmenting, beyond the image.

    Args:
        classes: without the background.
        shape: of the label's file.
        patch: side of a window.
        seen: shape of the grid on which the network sees the image.
    """
    meta = torch.device("meta")
    named = {value: f"c{value}" for value in range(1, classes + 1)}
    data = DataSpec(dataset="bench", patch=(patch,) * 3)
    task = Segmentation(SegmentationSpec(classes=named, overlap=_OVERLAP), data)
    network, image = nn.Conv3d(1, classes + 1, 1).to(meta), torch.empty(1, *seen, device=meta)
    affine = np.eye(4) if seen == shape else np.diag([b / a for a, b in zip(_VOXEL, _SPACING, strict=True)] + [1])
    prepared = {"image": image, "image.affine": torch.from_numpy(np.asarray(affine, np.float64))}
    with torch.no_grad(), TensorPeak() as peak:
        task._labels(network, prepared, TargetGrid(np.eye(4), shape), meta, False, False)
    return float(peak.most)
