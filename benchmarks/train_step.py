"""Training steps a second: oncofed beside a plain MONAI loop and beside the network alone, in one run on one machine.

All three train the same network on patches of the same generated volumes with the same batch size:

- oncofed: ``Trainer.train``, as a site does;
- plain: MONAI's tutorial loop: cached deterministic transforms, random ones for each patch in the workers of a
  ``DataLoader``, float32, ``DiceCELoss``, AdamW;
- ceiling: forward and backward of the network alone on one batch that never changes, in oncofed's precision.

The programs run in turn, and the median of the repeats counts. Operations are counted by torch's ``FlopCounterMode`` in
one forward and backward pass; their share is of the largest matrix product measured in the same run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import CacheDataset, DataLoader
from monai.losses import DiceCELoss
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    LoadImaged,
    NormalizeIntensityd,
    Orientationd,
    RandAdjustContrastd,
    RandAffined,
    RandCropByPosNegLabeld,
    RandFlipd,
    RandGaussianNoised,
    RandScaleIntensityd,
    SpatialPadd,
)
from torch.utils.flop_counter import FlopCounterMode

from oncofed.data.cases import read_cases
from oncofed.data.register import Request, register
from oncofed.data.spec import DataSpec
from oncofed.job.outcome import environment
from oncofed.job.spec import read_job
from oncofed.training import Plan, Trainer

_CASES = 6


def main() -> None:
    """Run, print and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cuda = torch.cuda.is_available()
    parser.add_argument("--job", default="ct_organ_segmentation" if cuda else "brain_tissue_segmentation")
    parser.add_argument("--patch", type=int, default=128 if cuda else 32, help="side in voxels")
    parser.add_argument("--batch", type=int, default=2, help="patches a step")
    parser.add_argument("--steps", type=int, default=40 if cuda else 30, help="in each repeat")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1), help="of the plain DataLoader")
    parser.add_argument("--compile", choices=["auto", "always", "never"], default="auto", help="as in a job")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("monai").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="oncofed-train-") as folder:
        figures = measure(arguments, Path(folder))
    print(table(figures))
    if arguments.out:
        arguments.out.write_text(json.dumps(figures, indent=2) + "\n")


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return all figures."""
    plan = _plan(arguments)
    dataset = make_volumes(folder, plan.data, plan.task.classes)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cases = read_cases(dataset, plan.data.split, plan.seed, plan.task.vocabulary)
    trainer = Trainer(plan, cases, "bench", device)
    trainer.prepare()
    begun = time.perf_counter()
    trainer.train(5)  # compiles where it is to
    first_steps = time.perf_counter() - begun
    plain = plain_loop(plan, dataset, device, arguments.workers)
    ceiling = network_alone(plan, device, trainer._precision)
    programs: dict[str, Callable[[], Any]] = {
        "oncofed": lambda: trainer.train(arguments.steps),
        "plain": lambda: [next(plain) for _ in range(arguments.steps)],
        "ceiling": lambda: [next(ceiling) for _ in range(arguments.steps)],
    }
    for program in programs.values():
        program()
    times: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(arguments.repeats):
        for name, program in programs.items():
            times[name].append(_timed(program, device))
    patches = arguments.steps * plan.training.batch_size
    rates = {name: patches / statistics.median(values) for name, values in times.items()}
    flops = _flops(plan, device)
    figures: dict[str, Any] = {
        "machine": {**environment(), "cores": os.cpu_count()},
        "network": plan.model.network,
        "patch": list(plan.data.patch),
        "batch": plan.training.batch_size,
        "precision": str(trainer._precision).removeprefix("torch."),
        "compiled": trainer._compiled,
        "first_five_steps_s": first_steps,
        "patches_per_s": rates,
        "over_plain": rates["oncofed"] / rates["plain"],
        "of_ceiling": rates["oncofed"] / rates["ceiling"],
        "tflops": rates["oncofed"] * flops / 1e12,
        "peak_tflops": _peak(device, trainer._precision) / 1e12,
    }
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        figures["busy"] = _busy(programs["oncofed"])
        figures["peak_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return figures


def _plan(arguments: argparse.Namespace) -> Plan:
    spec = read_job(arguments.job)
    sides = [arguments.patch] * spec.data.dimensions
    training = {
        "batch_size": arguments.batch,
        "steps_per_round": arguments.steps * (arguments.repeats + 1) + 5,
        "deterministic": False,
        "compile": arguments.compile,
    }
    # Generated volumes are on the job's grid: reading them is not what is measured.
    return spec.changed({"data": {"patch": sides, "spacing_range": None}, "training": training}).plan()


def make_volumes(folder: Path, data: DataSpec, classes: dict[int, str]) -> Path:
    """Write generated volumes half as large again as a patch, on the job's grid, and register them."""
    side = data.patch[0] * 3 // 2
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, side)] * 3, indexing="ij"))
    affine = np.diag([*(data.spacing or (1, 1, 1)), 1])
    for sub in ("images", "labels"):
        (folder / "in" / sub).mkdir(parents=True)
    for number in range(_CASES):
        distance = np.linalg.norm(grid - rng.uniform(-0.3, 0.3, (3, 1, 1, 1)), axis=0)
        label = np.zeros(distance.shape, np.uint8)
        for value in sorted(classes):
            label[distance < 0.6 / value] = value
        image = (label * 200 + rng.normal(0, 60, label.shape)).astype(np.int16)
        for sub, values in (("images", image), ("labels", label)):
            nib.save(nib.Nifti1Image(values, affine), folder / "in" / sub / f"c{number}.nii")
    register(Request(folder / "in", data.dataset, folder / "out", labels=classes))
    return folder / "out"


def plain_loop(plan: Plan, dataset: Path, device: torch.device, workers: int) -> Iterator[float]:
    """Yield each step's loss of MONAI's tutorial loop (spleen_segmentation_3d), with the same changes at random."""
    keys = ("image", "label")
    fixed = [
        LoadImaged(keys),
        EnsureChannelFirstd(keys),
        Orientationd(keys, axcodes="RAS", labels=None),
        NormalizeIntensityd("image"),
        SpatialPadd(keys, plan.data.patch),
    ]
    changes: list[Any] = [
        RandCropByPosNegLabeld(keys, "label", plan.data.patch, pos=2, neg=1, num_samples=1),
        RandAffined(
            keys, prob=0.3, rotate_range=0.15, scale_range=0.1, mode=("bilinear", "nearest"), padding_mode="border"
        ),
        RandScaleIntensityd("image", factors=0.15, prob=0.3),
        RandGaussianNoised("image", prob=0.15, std=0.1),
        RandAdjustContrastd("image", prob=0.2, gamma=(0.7, 1.5)),
    ]
    if plan.training.augmentation == "full":
        changes += [RandFlipd(keys, prob=0.5, spatial_axis=axis) for axis in range(3)]
    files = [{key: dataset / "source" / f"{key}s" / f"c{n}.nii" for key in keys} for n in range(_CASES)]
    cached = CacheDataset(files, Compose([*fixed, *changes]), num_workers=2, progress=False)
    same = {"shuffle": True, "persistent_workers": True, "drop_last": True}
    loader = DataLoader(cached, num_workers=workers, batch_size=plan.training.batch_size, **same)
    network = plan.build_network().to(device)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3)
    loss_of = DiceCELoss(to_onehot_y=True, softmax=True)
    while True:
        for batch in loader:
            image, label = batch["image"].to(device), batch["label"].to(device)
            optimizer.zero_grad()
            output = network(image)
            loss = loss_of(output[:, 0] if output.ndim > image.ndim else output, label)
            loss.backward()
            optimizer.step()
            yield loss.item()


def network_alone(plan: Plan, device: torch.device, precision: torch.dtype) -> Iterator[None]:
    """Yield after each forward and backward pass over one batch that lies on the device."""
    network = plan.build_network().to(device)
    image = torch.randn(plan.training.batch_size, len(plan.data.channels), *plan.data.patch, device=device)
    if device.type == "cuda":
        network = network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]  # torch takes it, its stubs do not
        image = image.to(memory_format=torch.channels_last_3d)
    forward = torch.compile(network) if plan.training.compile != "never" and device.type == "cuda" else network
    while True:
        with torch.autocast(device.type, precision, enabled=precision is not torch.float32):
            output = forward(image)
        output.float().mean().backward()
        network.zero_grad(set_to_none=True)
        yield


def _timed(program: Callable[[], Any], device: torch.device) -> float:
    _wait(device)
    begun = time.perf_counter()
    program()
    _wait(device)
    return time.perf_counter() - begun


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _flops(plan: Plan, device: torch.device) -> float:
    """Return the operations of one patch, forward and backward."""
    network = plan.build_network().to(device)
    image = torch.randn(1, len(plan.data.channels), *plan.data.patch, device=device)
    counter = FlopCounterMode(display=False)
    with counter:
        network(image).mean().backward()
    return float(counter.get_total_flops())


def _peak(device: torch.device, precision: torch.dtype) -> float:
    """Return the operations a second of a large matrix product."""
    size = 8192 if device.type == "cuda" else 1536
    one, two = (torch.randn(size, size, device=device, dtype=precision) for _ in range(2))
    best = min(_timed(lambda: one @ two, device) for _ in range(10))
    return 2 * size**3 / best


def _busy(program: Callable[[], Any]) -> float:
    """Return the share of time in which the GPU works on something."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        begun = time.perf_counter()
        program()
        torch.cuda.synchronize()
        wall = time.perf_counter() - begun
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in profile.events() or []
        if event.device_type.name == "CUDA"
    )
    covered, end = 0.0, float("-inf")
    for start, stop in spans:
        covered += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return covered / 1e6 / wall


def table(figures: dict[str, Any]) -> str:
    """Return the figures as Markdown."""
    rates = figures["patches_per_s"]
    what = f"{figures['network']}, patches of {'x'.join(map(str, figures['patch']))}, batch {figures['batch']}"
    target = 5 if "busy" in figures else 1.3
    lines = [
        f"{figures['machine']['device']}, {figures['precision']}{', compiled' if figures['compiled'] else ''}: {what}",
        "",
        "| figure | value | target |",
        "|---|---|---|",
        f"| oncofed, patches/s | {rates['oncofed']:.1f} | |",
        f"| over a plain MONAI loop ({rates['plain']:.1f}) | {figures['over_plain']:.2f} | {target} |",
        f"| of the network alone ({rates['ceiling']:.1f}) | {figures['of_ceiling']:.2f} | 0.9 on a GPU |",
        f"| TFLOP/s, of a matrix product's {figures['peak_tflops']:.2f} | {figures['tflops']:.3f} | |",
    ]
    with contextlib.suppress(KeyError):
        lines.append(f"| GPU busy | {figures['busy']:.0%} | 95% |")
        lines.append(f"| peak memory, GiB | {figures['peak_memory_gib']:.1f} | |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
