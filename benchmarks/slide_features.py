"""Tiles a second from slides to features.

Against OpenSlide with a DataLoader. Slides are generated, JPEG-compressed and tiled as scanners write them. Both
programs read every tile with tissue and pass it to the same encoder, in batches of 64: oncofed across slides and
reading ahead, the plain loop one slide after the other, with a ``DataLoader`` whose workers open the slide, as in
tutorials. The limit is the encoder on as many batches in memory.

A ViT-S of random weights is also beside TRIDENT's way (Zhang et al., arXiv 2502.06750): workers that read through
OpenSlide, and turn each tile into a normalised tensor. There, the limit is the bare network on tensors that lie ready,
in the best of several sizes of batches.

Decoders: tiles as Aperio's scanners store them, by JPEG and JPEG 2000, read by one thread and by two, beside OpenSlide
and Pillow. Both spend nine tenths of a tile's processor time and more inside the decoder, where other threads run (of
JPEG 2000 3.5 of 3.6 ms): where two threads are no faster than one, other programs had the second core.

A slide whose decoder sleeps for a millisecond a tile shows how reading scales to more cores than this machine has:
eight threads against one. Aligned tiles and an encoder without work show the rate at which a GPU could be fed.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import openslide
import tifffile
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, Dataset

from harness.bench import Bench
from harness.results import Limit, Target
from oncofed.data import slides as slides_module
from oncofed.data.cases import read_cases
from oncofed.data.label_mapping import Supervision
from oncofed.data.register import RegisterOptions, register
from oncofed.data.slides import Level, Pixels, TileSpec
from oncofed.data.spec import SplitSpec
from oncofed.data.tiles import SlideTiles, read_tiles, stream_tiles
from oncofed.models import ModelSpec, NetworkRequest, build_network
from oncofed.models.encoders import find_entry
from oncofed.models.encoders.networks import import_timm
from oncofed.models.weights import weights_of
from oncofed.tasks.encoder import Encoder, EncoderSpec, extract
from synthetic import make_slides
from tissue import write_aperio, write_tissue

_TILES_AT_ONCE = 64
_WORKERS = min(8, os.cpu_count() or 1)
_THREADS = 8
_DECODE_SECONDS = 0.001


def run(bench: Bench) -> None:
    """Measure each encoder, then reading."""
    _encoders(bench)
    _vision_transformer(bench)
    _decoders(bench)
    _threads(bench)
    _aligned(bench)


def _encoders(bench: Bench) -> None:
    root = bench.folder
    count, side = (20, 8192) if bench.cuda else (2, 1536) if bench.quick else (4, 2048)
    make_slides(root / "in", count, side)
    spec = TileSpec(256, 1.0, 0.25)
    register(
        RegisterOptions(root / "in", "slides", root / "set", "slides", table=root / "in" / "labels.csv", tiles=spec)
    )
    cases = read_cases(root / "set", SplitSpec(test=0, validation=0), 1, Supervision("class")).train
    slides = [read_tiles(case.image, case.tiles) for case in cases if case.tiles]
    tiles = sum(map(len, slides))
    network = build_network(NetworkRequest(ModelSpec(network="resnet18"), 3, 2, 2, (256, 256)), 1)
    weights = root / "encoder.safetensors"
    save_file({name: value.contiguous() for name, value in weights_of(network).items()}, weights)
    for encoder_spec in (EncoderSpec(), EncoderSpec(network="resnet18", weights=str(weights))):
        encoder = Encoder(encoder_spec, bench.device)
        alone = _alone(bench, encoder)

        def ours(encoder: Encoder = encoder) -> None:
            for _, features in extract(slides, encoder):
                assert torch.isfinite(features).all()

        bench.race(
            f"slide to features, {encoder_spec.network}",
            {"oncofed": ours, "OpenSlide and DataLoader": partial(_plain, slides, encoder)},
            unit="tiles/s",
            amount=tiles,
            limit=Limit(name="the encoder alone", value=alone),
            target=Target(of="baseline", value=1.0),
            settings={"slides": count, "side": side, "encoder": encoder_spec.network},
        )


def _alone(bench: Bench, encoder: Encoder) -> float:
    """Return an encoder's tiles a second from memory."""
    shape = (encoder.at_once, 256, 256, 3)
    batches = [list(np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8))] * (8 if bench.cuda else 1)
    return len(batches) * encoder.at_once / bench.best(lambda: list(encoder.stream(batches)))


def _vision_transformer(bench: Bench) -> None:
    """Encode aligned tiles by a ViT-S of random weights."""
    timm = import_timm()

    side, tile = 4 if bench.quick else 64 if bench.cuda else 10, 224
    path = write_aperio(bench.folder / "vit.svs", side, "jpeg", tile)
    slides = [_grid(path, side, tile)]
    entry = find_entry("kaiko-vits16")
    network = timm.create_model(entry.architecture, num_classes=0, **entry.arguments)
    weights = bench.folder / "vit.safetensors"
    save_file(network.state_dict(), weights)
    encoder = Encoder(EncoderSpec(network=entry.name, weights=str(weights)), bench.device)
    network = network.eval().to(bench.device)

    def ours() -> None:
        assert sum(len(features) for _, features in extract(slides, encoder)) == side**2

    bench.race(
        "slide to features, ViT-S/16",
        {
            "oncofed": ours,
            "OpenSlide and DataLoader": partial(_plain, slides, encoder),
            "TRIDENT's way": partial(_as_trident, slides, network, bench.device),
        },
        unit="tiles/s",
        amount=side**2,
        limit=Limit(name="the bare network", value=_bare(bench, network, tile)),
        target=Target(of="limit", value=0.95),
        settings={"side": side, "tile": tile},
    )


def _bare(bench: Bench, network: nn.Module, tile: int) -> float:
    """Return a network's tiles a second on tensors that lie ready, at its best size of batches."""
    found = []
    for count in (256,) if bench.cuda else (16, 64):
        images = torch.zeros(count, 3, tile, tile, device=bench.device)

        def once(images: torch.Tensor = images) -> None:
            with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16, enabled=bench.cuda):
                network(images)

        found.append(count / bench.best(once, 2 if bench.quick else 5))
    return max(found)


def _as_trident(slides: Sequence[SlideTiles], network: nn.Module, device: torch.device) -> None:
    for slide in slides:
        loader = DataLoader(_Tensors(slide), batch_size=_TILES_AT_ONCE, num_workers=_WORKERS)
        for images in loader:
            with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16, enabled=device.type == "cuda"):
                network(images.to(device)).float().cpu()


def _decoders(bench: Bench) -> None:
    """Read a slide's tiles by one thread, and by two."""
    side, tile = 6 if bench.quick else 16, 256
    for compression in ("jpeg", "jpeg2000"):
        path = write_aperio(bench.folder / f"{compression}.svs", side, compression, tile)
        slide = _grid(path, side, tile)
        bench.race(
            f"decoding of one slide, {compression}",
            {
                "oncofed": partial(_read, slide, 2),
                "one thread": partial(_read, slide, 1),
                "OpenSlide, one thread": partial(_by_openslide, slide),
                "Pillow, one thread": partial(_by_pillow, path),
            },
            unit="tiles/s",
            amount=side**2,
            target=Target(of="baseline", value=1.6) if (os.cpu_count() or 1) > 1 else None,
            settings={"side": side, "tile": tile},
        )


def _grid(path: Path, side: int, tile: int) -> SlideTiles:
    x, y = (places.ravel().astype(np.int32) * tile for places in np.meshgrid(np.arange(side), np.arange(side)))
    return SlideTiles(path, TileSpec(tile, 0.5), x, y)


def _by_openslide(slide: SlideTiles) -> None:
    file = openslide.OpenSlide(str(slide.path))
    for x, y in zip(slide.x, slide.y, strict=True):
        np.asarray(file.read_region((int(x), int(y)), 0, (slide.spec.size,) * 2).convert("RGB"))
    file.close()


def _by_pillow(path: Path) -> None:
    """Decode the tiles' bytes, without what tells their colours."""
    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        for offset, size in zip(page.dataoffsets, page.databytecounts, strict=True):
            file.filehandle.seek(offset)
            data = file.filehandle.read(size)
            if page.jpegtables:  # before the tile's own: without its end and the tile's beginning
                data = page.jpegtables[:-2] + data[2:]
            np.asarray(Image.open(io.BytesIO(data)))


class _Sleeps:
    """A slide whose decoder releases the GIL for a while."""

    def __init__(self) -> None:
        self.levels, self.vendor = [Level(1_000_000, 256, 0.5)], None
        self._tile = np.zeros((256, 256, 3), np.uint8)

    def read(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        """Return the same tile each time."""
        time.sleep(_DECODE_SECONDS)
        return self._tile

    def close(self) -> None:
        """Do nothing."""


def _threads(bench: Bench) -> None:
    """Read a slide by eight threads and one.

    Its decoder takes a millisecond a tile.
    """
    count = 500 if bench.quick else 4000
    x = np.arange(count, dtype=np.int32) * 256
    slide = SlideTiles(Path(), TileSpec(256, 0.5), x, np.zeros_like(x))
    with patch.object(slides_module, "open_slide", lambda path: _Sleeps()):
        bench.race(
            "one slide, a decoder of 1 ms a tile",
            {"oncofed": partial(_read, slide, _THREADS), "one thread": partial(_read, slide, 1)},
            unit="tiles/s",
            amount=count,
            limit=Limit(name="all threads decode all the time", value=_THREADS / _DECODE_SECONDS),
            target=Target(of="baseline", value=6.0),
            settings={"tiles": count, "threads": _THREADS},
            note="the decoder is simulated: it sleeps",
        )


def _read(slide: SlideTiles, threads: int) -> None:
    assert sum(len(tiles) for _, _, tiles in stream_tiles([slide], threads)) == len(slide)


def _aligned(bench: Bench) -> None:
    """Read tiles on the file's grid.

    The encoder is faster than reading.
    """
    side = 8 if bench.quick else 40 if bench.cuda else 24
    path = bench.folder / "aligned.tif"
    write_tissue(path, side)
    x, y = (places.ravel().astype(np.int32) * 256 for places in np.meshgrid(np.arange(side), np.arange(side)))
    slides = [SlideTiles(path, TileSpec(256, 0.5), x, y)] * (4 if bench.cuda else 1)
    encoder = Encoder(EncoderSpec(), bench.device)

    def ours() -> None:
        assert sum(len(features) for _, features in extract(slides, encoder)) == len(slides) * side**2

    bench.race(
        "aligned tiles of a slide to features, colour",
        {"oncofed": ours, "OpenSlide and DataLoader": partial(_plain, slides, encoder)},
        unit="tiles/s",
        amount=len(slides) * side**2,
        limit=Limit(name="the encoder alone", value=_alone(bench, encoder)),
        target=Target(of="value", value=5000.0) if bench.cuda else Target(of="baseline", value=1.0),
        settings={"slides": len(slides), "side": side},
    )


class _Tiles(Dataset[Any]):
    def __init__(self, slide: SlideTiles) -> None:
        self._slide = slide
        self._file: openslide.OpenSlide | None = None

    def __len__(self) -> int:
        return len(self._slide)

    def __getitem__(self, index: int) -> np.ndarray:
        self._file = self._file or openslide.OpenSlide(str(self._slide.path))
        corner = (int(self._slide.x[index]), int(self._slide.y[index]))
        return np.asarray(self._file.read_region(corner, 0, (self._slide.spec.size,) * 2).convert("RGB"))


class _Tensors(Dataset[Any]):
    """Tiles as normalised tensors, which its workers make."""

    def __init__(self, slide: SlideTiles) -> None:
        self._tiles = _Tiles(slide)

    def __len__(self) -> int:
        return len(self._tiles)

    def __getitem__(self, index: int) -> torch.Tensor:
        pixels = torch.from_numpy(self._tiles[index].copy())
        return (pixels.permute(2, 0, 1).float() / 255 - 0.5) / 0.5


def _plain(slides: Sequence[SlideTiles], encoder: Encoder) -> None:
    for slide in slides:
        for tiles in DataLoader(_Tiles(slide), batch_size=_TILES_AT_ONCE, num_workers=_WORKERS, collate_fn=list):
            encoder(tiles)
