"""From files to batches: samples a second.

Three things are measured for DICOM series, NIfTI volumes and a slide's tiles alike: the work before the first
training step (reading, resampling to the job's grid, copying to the device), with the decoding alone as the limit;
and then patches a second, with the same random augmentations: "light", and nnU-Net's set, "full". Baselines: MONAI's
``LoadImaged`` with ``CacheDataset`` and ``DataLoader``, and its ``WSIReader``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pydicom
import tifffile
import torch
from monai.data import CacheDataset, DataLoader
from monai.data.wsi_reader import WSIReader
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
    RandGaussianSmoothd,
    RandScaleIntensityd,
    RandSimulateLowResolutiond,
    Spacingd,
    SpatialPadd,
)

from dicoms import make_seg, make_series
from harness.bench import Bench
from harness.results import Limit, Target
from oncofed.data.batches import BatchStream
from oncofed.data.cases import read_cases
from oncofed.data.inputs import Patches
from oncofed.data.label_mapping import Supervision
from oncofed.data.prepared import PreparedCases
from oncofed.data.register import RegisterOptions, register
from oncofed.data.slides import TileReader, TileSpec
from oncofed.data.spec import DataSpec, SplitSpec
from tissue import write_tissue
from volumes import make_volumes

_KEYS = ("image", "label")
_WORKERS = min(8, os.cpu_count() or 1)
_TILES_AT_ONCE = 64


def run(bench: Bench) -> None:
    """Measure reading of each kind, then patches."""
    _dicom(bench)
    _nifti(bench)
    _tiles(bench)
    _patches(bench)


def _dicom(bench: Bench) -> None:
    """DICOM series with segmentations, registered before; MONAI reads series only."""
    count, side = (4, 96) if bench.quick else (16, 192)
    rng = np.random.default_rng(0)
    source = bench.folder / "dicom"
    for number in range(count):
        values = rng.integers(0, 900, (side, side, 48)).astype(np.int16)
        mask = np.zeros(values.shape, bool)
        mask[side // 4 : side // 2, side // 4 : side // 2, 10:30] = True
        files = make_series(source / f"s{number}", values, patient=f"P{number}")
        (source / f"g{number}").mkdir()
        make_seg(source / f"g{number}" / "seg.dcm", files, {"liver": mask})
    register(RegisterOptions(source, "bench", bench.folder / "dicom-set"))
    folders = sorted(path for path in source.iterdir() if path.name.startswith("s"))
    data = DataSpec(dataset="bench", modality="ct", window=(0.0, 900.0), spacing=(2.0, 2.0, 2.0), patch=(32, 32, 32))
    transforms = _deterministic(("image",), data, reader="PydicomReader")

    def decode() -> None:
        for folder in folders:
            for path in folder.glob("*.dcm"):
                assert pydicom.dcmread(path).pixel_array.any()

    bench.doing("decoding DICOM")
    seconds = bench.best(decode)
    cases = read_cases(
        bench.folder / "dicom-set", SplitSpec(test=0, validation=0), 1, Supervision(classes={1: "liver"})
    ).train
    bench.race(
        "DICOM series, files to device",
        {
            "oncofed": lambda: _prepare(cases, data, bench.device),
            "MONAI LoadImaged": lambda: _cache([{"image": folder} for folder in folders], transforms, bench.device),
        },
        unit="series/s",
        amount=count,
        limit=Limit(name="decoding alone, one thread", value=count / seconds),
        settings={"series": count, "side": side, "slices": 48},
        note="oncofed reads what registering made of the series, with its segmentation; MONAI reads the series alone",
    )


def _nifti(bench: Bench) -> None:
    import nibabel as nib

    count, side = (8, 64) if bench.quick else (24, 128)
    rng = np.random.default_rng(0)
    source = bench.folder / "nifti"
    label = np.zeros((side, side, side), np.uint8)
    label[side // 4 : side // 2, side // 4 : side // 2, side // 4 : side // 2] = 1
    for sub in ("images", "labels"):
        (source / sub).mkdir(parents=True)
    for number in range(count):
        image = rng.integers(0, 900, label.shape).astype(np.int16)
        for sub, values in (("images", image), ("labels", label)):
            nib.save(nib.Nifti1Image(values, np.diag([1, 1, 1.5, 1])), source / sub / f"c{number}.nii.gz")
    register(RegisterOptions(source, "bench", bench.folder / "nifti-set"))
    data = DataSpec(dataset="bench", modality="mri", spacing=(1.5, 1.5, 1.5), patch=(32, 32, 32))
    files = [{key: source / f"{key}s" / f"c{number}.nii.gz" for key in _KEYS} for number in range(count)]
    transforms = _deterministic(_KEYS, data)

    def decode() -> None:
        for pair in files:
            for path in pair.values():
                np.asarray(nib.load(path).dataobj)

    bench.doing("decoding NIfTI")
    seconds = bench.best(decode)
    cases = read_cases(bench.folder / "nifti-set", SplitSpec(test=0, validation=0), 1).train
    bench.race(
        "NIfTI with labels, files to device",
        {
            "oncofed": lambda: _prepare(cases, data, bench.device),
            "MONAI LoadImaged": lambda: _cache(files, transforms, bench.device),
        },
        unit="cases/s",
        amount=count,
        limit=Limit(name="decoding alone, one thread", value=count / seconds),
        settings={"cases": count, "side": side},
    )


def _prepare(cases: Any, data: DataSpec, device: torch.device) -> None:
    """Read, resample and hold all cases.

    Like the start of a training without a cache.
    """
    PreparedCases([replace(case, folder=None) for case in cases], Patches(data, "light", 2), device)


def _deterministic(keys: tuple[str, ...], data: DataSpec, reader: str | None = None) -> Compose:
    modes = ("bilinear", "nearest")[: len(keys)]
    return Compose(
        [
            LoadImaged(keys, reader=reader),
            EnsureChannelFirstd(keys),
            Orientationd(keys, axcodes="RAS", labels=None),
            Spacingd(keys, data.spacing, mode=modes),
            NormalizeIntensityd("image"),
            SpatialPadd(keys, data.patch),
        ]
    )


def _cache(files: list[dict[str, Path]], transforms: Compose, device: torch.device) -> None:
    dataset = CacheDataset(files, transforms, num_workers=_WORKERS, progress=False)
    for number in range(len(files)):
        for value in dataset[number].values():
            value.to(device)


def _tiles(bench: Bench) -> None:
    """Load a slide's tiles to the device in batches."""
    side = 8 if bench.quick else 24
    path = bench.folder / "slide.tif"
    write_tissue(path, side)
    places = [(column * 256, row * 256) for row in range(side) for column in range(side)]
    few = places[:: max(1, len(places) // 40)]

    def on_device(tiles: list[np.ndarray]) -> None:
        for first in range(0, len(tiles), _TILES_AT_ONCE):
            torch.from_numpy(np.stack(tiles[first : first + _TILES_AT_ONCE])).to(bench.device)

    def ours() -> None:
        with TileReader(path, TileSpec(256, 0.5)) as reader:
            on_device([reader.read(x0, y0) for x0, y0 in places])

    def monai() -> None:
        reader = WSIReader("openslide")
        wsi = reader.read(str(path))
        tiles = [reader.get_data(wsi, location=(y0, x0), size=(256, 256), level=0)[0] for x0, y0 in few]
        on_device([tile.transpose(1, 2, 0) for tile in tiles])

    def plain() -> None:
        with openslide.OpenSlide(str(path)) as slide:
            on_device([np.asarray(slide.read_region(at, 0, (256, 256)).convert("RGB")) for at in places])

    def decode() -> None:
        with tifffile.TiffFile(path) as file:
            for _ in file.pages.first.segments(maxworkers=1):
                pass

    seconds = bench.best(decode)
    bench.race(
        "tiles of a slide, file to device",
        {"oncofed": ours, "MONAI WSIReader": monai, "OpenSlide": plain},
        unit="tiles/s",
        amount={"oncofed": len(places), "MONAI WSIReader": len(few), "OpenSlide": len(places)},
        limit=Limit(name="decoding alone, one thread", value=len(places) / seconds),
        target=Target(of="value", value=5000.0),
        settings={"tiles": len(places), "side": 256},
    )


def _patches(bench: Bench) -> None:
    """Augmented patches, from cases in each program's cache."""
    side, number = (128, 50) if bench.cuda else (32, 10) if bench.quick else (64, 20)
    batch = 2
    data = DataSpec(dataset="volumes", modality="mri", patch=(side,) * 3)
    dataset = make_volumes(bench.folder / "volumes", data, {1: "ball"})
    train = read_cases(dataset, data.split, 1).train
    for augmentation in ("light", "full"):
        patches = Patches(data, augmentation, 2)
        prepared = PreparedCases(train, patches, bench.device)
        ours = BatchStream(prepared, patches, batch, 1, bench.device)
        theirs = _monai_batches(prepared, data, augmentation == "full", batch, bench.device)

        def draw(source: Iterator[Any]) -> None:
            for _ in range(number):
                next(source)

        bench.race(
            f"patches of {side}³, {augmentation} changes",
            {"oncofed": partial(draw, ours), "MONAI's transforms and DataLoader": partial(draw, theirs)},
            unit="patches/s",
            amount=number * batch,
            limit=Limit(
                name="writing each once, memory bandwidth",
                value=bench.limits.memory_bandwidth() / (2 * side**3 * (len(data.channels) * 4 + 1)),
            ),
            target=Target(of="baseline", value=1.0),
            settings={"side": side, "workers": _WORKERS, "changes": augmentation},
        )


def _monai_batches(
    prepared: PreparedCases, data: DataSpec, full: bool, batch: int, device: torch.device
) -> Iterator[Any]:
    changes: list[Any] = [
        RandCropByPosNegLabeld(_KEYS, "label", data.patch, pos=1, neg=1, num_samples=1),
        RandAffined(
            _KEYS,
            prob=0.36 if full else 0.5,
            rotate_range=np.pi / 6 if full else 0.15,
            scale_range=0.3 if full else 0.1,
            mode=("bilinear", "nearest"),
            padding_mode="zeros",
        ),
        RandGaussianNoised("image", prob=0.1 if full else 0.15, std=0.1),
        RandScaleIntensityd("image", factors=0.15, prob=0.15 if full else 0.3),
        RandAdjustContrastd("image", prob=0.3 if full else 0.2, gamma=(0.7, 1.5)),
    ]
    if full:
        changes += [
            RandGaussianSmoothd("image", (0.5, 1.0), (0.5, 1.0), (0.5, 1.0), prob=0.1),
            RandScaleIntensityd("image", factors=0.25, prob=0.15),
            RandSimulateLowResolutiond("image", prob=0.125, zoom_range=(0.5, 1.0)),
            *(RandFlipd(_KEYS, prob=0.5, spatial_axis=axis) for axis in range(3)),
        ]
    held = [{key: prepared[n][key].cpu() for key in _KEYS} for n in range(len(prepared))]
    dataset = CacheDataset(held * 4, Compose(changes), cache_rate=0, progress=False)
    same = {"shuffle": True, "persistent_workers": True, "drop_last": True, "pin_memory": device.type == "cuda"}
    loader = DataLoader(dataset, num_workers=_WORKERS, batch_size=batch, **same)
    while True:
        for drawn in loader:
            yield {key: drawn[key].to(device, non_blocking=True) for key in _KEYS}
