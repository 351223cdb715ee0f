"""Inference over a volume and a slide.

Seconds, against a plain loop and the network alone. The volume is as large as a CT of the trunk, the network a job's
own; oncofed segments it as an evaluation and as ``oncofed predict`` do, with overlapping windows and Gaussian weights
in the device's half precision. Baseline: MONAI's ``SlidingWindowInferer`` as its tutorials call it, in float32, four
windows at a time. The limit is the network on as many windows on the device. The tensor memory of ``oncofed predict``,
from the read image to labels on the file's grid, is compared with that of MONAI's inferer and an argmax. Tiles of the
slide are generated in memory, since ``slide_features`` measures reading: a ResNet18 encodes them, against the plain
loop over batches in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from monai.inferers import SlidingWindowInferer
from safetensors.torch import save_file
from torch import Tensor, nn

from harness.bench import Bench, Settings
from harness.results import Baseline, Figure, Limit, Target
from oncofed.devices import inference_type
from oncofed.job.spec import read_job
from oncofed.models import ModelSpec, NetworkRequest, build_network
from oncofed.models.weights import weights_of
from oncofed.tasks.encoder import Encoder, EncoderSpec
from oncofed.tasks.windows import Windows
from peak import TensorPeak

_TILE, _TILES_AT_ONCE = 256, 64
_OVERLAP = 0.25


def run(bench: Bench) -> None:
    """Measure a volume and a slide."""
    _volume(bench)
    _slide(bench)


def _volume(bench: Bench) -> None:
    job = "ct_organ_segmentation" if bench.cuda else "brain_tissue_segmentation"
    patch = 128 if bench.cuda else 32 if bench.quick else 64
    shape = (512, 512, 400) if bench.cuda and not bench.quick else (64, 64, 64) if bench.quick else (128, 128, 96)
    plan = read_job(job).changed({"data": {"patch": [patch] * 3, "spacing_range": None}}).plan()
    network = plan.build_network().to(bench.device).eval()
    volume = torch.randn(len(plan.data.channels), *shape, generator=torch.Generator().manual_seed(1))
    ours = Windows(plan.data, _OVERLAP, mirror=False)
    theirs = SlidingWindowInferer(plan.data.patch, 4, _OVERLAP, mode="gaussian")
    if bench.cuda:
        network = network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    @torch.no_grad()
    def plain() -> Tensor:
        batch = volume[None].to(bench.device)
        output = theirs(batch, network)
        assert isinstance(output, Tensor)
        return output

    windows = math.prod(_windows(side, patch) for side in shape)
    bench.doing("the network alone")
    alone = _alone(bench, network, len(plan.data.channels), patch)
    voxels = math.prod(shape) / 1e6
    settings: Settings = {"network": plan.model.network, "patch": patch, "windows": windows, "overlap": _OVERLAP}
    bench.race(
        f"volume of {'×'.join(map(str, shape))}",
        {
            "oncofed": torch.no_grad()(lambda: ours(network, volume, bench.device)),
            "MONAI's SlidingWindowInferer": plain,
        },
        unit="Mvoxel/s",
        amount=voxels,
        limit=Limit(name="the network alone", value=voxels / (windows * alone)),
        target=Target(of="limit", value=0.8),
        settings=settings,
    )
    grid = torch.eye(4, dtype=torch.float64)
    # As ``Unreferenced`` prepares a file that has the working grid.
    prepared = {"image": volume, "image.affine": grid, "file.affine": grid, "file.shape": torch.tensor(shape)}
    task = plan.build_task()
    name = f"prediction of {'×'.join(map(str, shape))}, image to labels"
    programs: dict[str, Callable[[], object]] = {
        "oncofed": lambda: task.infer_all(network, [prepared], bench.device),
        "MONAI's SlidingWindowInferer": lambda: plain().argmax(1)[0].to(torch.uint8).cpu(),
    }
    target = Target(of="baseline", value=1.0)
    bench.race(name, programs, unit="Mvoxel/s", amount=voxels, target=target, settings=settings)
    bench.doing(f"{name}, memory")
    own, baseline = (_megabytes(program) for program in programs.values())
    beside = Baseline(name="MONAI's SlidingWindowInferer", samples=[baseline])
    figure = Figure(name=f"{name}, memory", unit="MB", better="lower", samples=[own], baseline=beside, target=target)
    bench.add(figure, settings)


def _megabytes(program: Callable[[], object]) -> float:
    """Return a program's peak tensor memory beyond its input."""
    with TensorPeak() as peak:
        program()
    return float(peak.most) / 1e6


def _windows(side: int, patch: int) -> int:
    """Return MONAI's number of windows along a side."""
    return math.ceil(max(side - patch, 0) / int(patch * (1 - _OVERLAP))) + 1


@torch.no_grad()
def _alone(bench: Bench, network: nn.Module, channels: int, patch: int) -> float:
    """Return the network's seconds for one window.

    In half precision on a GPU, four windows at a time.
    """
    batch = torch.randn(4, channels, patch, patch, patch, device=bench.device)
    if bench.cuda:
        batch = batch.to(memory_format=torch.channels_last_3d)

    def once() -> Tensor:
        with torch.autocast(bench.device.type, inference_type(bench.device), enabled=bench.cuda):
            output = network(batch)
        assert isinstance(output, Tensor)
        return output

    return bench.best(once) / 4


def _slide(bench: Bench) -> None:
    count = 100_000 if bench.cuda and not bench.quick else 10_000 if bench.cuda else 64 if bench.quick else 128
    rng = np.random.default_rng(0)
    # A few batches, again and again: 100,000 tiles would take 20 GB.
    batches = [
        list(rng.integers(0, 255, (_TILES_AT_ONCE, _TILE, _TILE, 3), dtype=np.uint8))
        for _ in range(min(8, count // 64))
    ]
    turns = [batches[number % len(batches)] for number in range(count // _TILES_AT_ONCE)]
    network = build_network(NetworkRequest(ModelSpec(network="resnet18"), 3, 2, 2, (_TILE, _TILE)), 1)
    weights = bench.folder / "encoder.safetensors"
    save_file({name: value.contiguous() for name, value in weights_of(network).items()}, weights)
    encoder = Encoder(EncoderSpec(network="resnet18", weights=str(weights)), bench.device)
    plain = network.to(bench.device).eval()
    ready = torch.randn(_TILES_AT_ONCE, 3, _TILE, _TILE, device=bench.device)

    @torch.no_grad()
    def theirs() -> None:
        for tiles in turns:
            images = np.stack(tiles).transpose(0, 3, 1, 2).astype(np.float32) / 255
            plain(torch.from_numpy(images).to(bench.device)).cpu()

    def ours(of: Sequence[Sequence[np.ndarray]]) -> None:
        for tiles in of:
            encoder(tiles).cpu()

    @torch.no_grad()
    def alone() -> None:
        with torch.autocast(bench.device.type, inference_type(bench.device), enabled=bench.cuda):
            plain(ready)

    seconds = bench.best(alone)
    bench.race(
        f"slide of {count:,} tiles of 256²",
        {"oncofed": lambda: ours(turns), "plain loop": theirs},
        unit="tiles/s",
        amount=len(turns) * _TILES_AT_ONCE,
        limit=Limit(name="the network alone", value=_TILES_AT_ONCE / seconds),
        target=Target(of="limit", value=0.8),
        settings={"network": "resnet18", "tiles": count},
    )
