"""Scoring a volume: seconds beside MONAI's evaluation loop, processor time beyond the network, and memory.

The case is a CT of two classes, stored compressed and turned as scanners do; its network is one convolution of one
voxel, so that what is measured is all that scoring does around a network. oncofed holds the case prepared, as it does
from a run's second validation on, and finds Dice, surface Dice and the Hausdorff distance. MONAI's loop is that of its
tutorials: transforms of image and label, ``sliding_window_inference``, ``DiceMetric``, ``HausdorffDistanceMetric``; its
figures are the same, or the suite fails.

Processor time is that of a round's validation, which finds Dice alone, less that of the network on as many windows.
Memory is what scoring allocates beside the image and the network's own needs, as torch's dispatcher sees it; on the
device "meta", where nothing is computed.
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

from oncofed.bench.harness import Bench, Settings
from oncofed.bench.results import Limit, Target
from oncofed.data.cases import Case
from oncofed.data.prepared import CachePlan, PreparedCases
from oncofed.data.spec import DataSpec
from oncofed.tasks import Evaluation, Segmentation, SegmentationSpec
from oncofed.tasks.grids import FileGrid
from oncofed.tasks.windows import Windows
from peak import TensorPeak

_OVERLAP = 0.25
_WINDOW_HU = (-160.0, 240.0)
_CLASSES = {1: "organ"}
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
    network = _network().to(bench.device)
    held = PreparedCases([case], task.scoring_preparation(), _CPU, plan=CachePlan(None, "memory", None, "held"))

    def scored(detailed: bool) -> Evaluation:
        return task.evaluate(network, [case], bench.device, detailed, held=held)

    ours, theirs = scored(True), _monai(case, network, patch, bench.device)
    _require_equal(ours, theirs)
    windows = math.prod(
        math.ceil(max(n - p, 0) / int(p * (1 - _OVERLAP))) + 1 for n, p in zip(shape, patch, strict=True)
    )
    alone = _alone(network, patch, windows, bench.device)
    name = f"case of {'×'.join(map(str, shape))}, two classes"
    settings: Settings = {"patch": patch[0], "windows": windows, "overlap": _OVERLAP}
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
        samples = [_cpu_seconds(program) - _cpu_seconds(alone) for _ in range(bench.times())]
        bench.measured(
            f"{name}, {what}, beyond the network",
            samples,
            "CPU-s",
            "lower",
            settings,
            target=Target(of="value", value=0.15) if what == "scored" else None,
        )


def _written(folder: Path, shape: tuple[int, ...]) -> Case:
    """Return a case of one organ, its image and mask written as compressed NIfTI in LPS order."""
    grid = np.meshgrid(*[np.linspace(-1, 1, side, dtype=np.float32) for side in shape], indexing="ij", sparse=True)
    label = ((grid[0] + 0.2) ** 2 / 0.12 + grid[1] ** 2 / 0.1 + grid[2] ** 2 / 0.3 < 1).astype(np.uint8)
    rng = np.random.default_rng(0)
    image = (label * 120 - 20 + rng.normal(0, 30, shape)).astype(np.int16)
    affine = np.diag([-0.8, -0.8, 2.5, 1])
    for name, values in (("image", image), ("label", label)):
        nib.save(nib.Nifti1Image(values, affine), folder / f"{name}.nii.gz")
    return Case("case", "case", folder / "image.nii.gz", folder / "label.nii.gz")


def _network() -> nn.Module:
    """Return a network that tells the organ by its density."""
    network = nn.Conv3d(1, 2, 1)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1, 1))
        network.bias.copy_(torch.tensor([0.5101, -0.5101]))  # type: ignore[union-attr]
    return network.eval()


@torch.no_grad()
def _monai(case: Case, network: nn.Module, patch: tuple[int, ...], device: torch.device) -> tuple[float, float]:
    """Return Dice and the Hausdorff distance's 95th percentile, as MONAI's tutorials find them."""
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
    found = ours.by_class["organ"], ours.more["hd95_mm.organ"]
    if not np.allclose(found, theirs, rtol=1e-6, atol=1e-6):
        raise AssertionError(f"oncofed finds Dice and distance {found}, MONAI {theirs}")


def _alone(network: nn.Module, patch: tuple[int, ...], windows: int, device: torch.device) -> Callable[[], None]:
    batch = torch.randn(4, 1, *patch, device=device)

    @torch.no_grad()
    def once() -> None:
        for first in range(0, windows, 4):
            network(batch[: windows - first])

    return once


def _cpu_seconds(program: Callable[[], object]) -> float:
    begun = time.process_time()
    program()
    return time.process_time() - begun


def _memory(bench: Bench) -> None:
    shape, patch = ((96, 96, 80), 32) if bench.quick else ((512, 512, 400), 96)
    for classes in (14, 105):
        bench.doing(f"memory of {classes} classes")
        size = _peak(classes + 1, shape, patch)
        slab = (classes + 1) * math.prod(sorted(shape)[:2]) * patch * 4
        name = f"{classes} classes at {'×'.join(map(str, shape))}, memory"
        settings: Settings = {"patch": patch, "slab, GB": round(slab / 1e9, 3)}
        if classes == 14:
            target = Target(of="value", value=1.3)
            bench.measured(name, [size / slab], "slabs", "lower", settings, target=target)
        else:
            bench.measured(name, [size / 1e9], "GB", "lower", settings, target=Target(of="value", value=12))


def _peak(outputs: int, shape: tuple[int, ...], patch: int) -> float:
    """Return the bytes that segmenting allocates at its highest, beside the image."""
    meta = torch.device("meta")
    windows = Windows(DataSpec(dataset="bench", patch=(patch,) * 3), _OVERLAP, False, outputs)
    network, image = nn.Conv3d(1, outputs, 1).to(meta), torch.empty(1, *shape, device=meta)
    grid = FileGrid(np.eye(4), shape, np.eye(4), shape, windows.axis(shape))
    with torch.no_grad(), TensorPeak() as peak:
        labels = torch.empty(1, *shape, dtype=torch.uint8, device=meta)
        planes = windows.slabs(network, image, meta, weighed=False)
        grid.fill(planes, labels, lambda values: values.max(0, keepdim=True).indices)
    return float(peak.most)
