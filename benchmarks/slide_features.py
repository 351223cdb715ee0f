"""Tiles a second from slides to features: oncofed beside OpenSlide with a DataLoader, with the same encoder.

Slides are generated, JPEG-compressed and tiled as scanners write them. Both programs read every tile that shows tissue
and give it to the same encoder, in batches of 64: oncofed across the ends of slides and reading ahead, the plain loop
one slide after the other, with a ``DataLoader`` whose workers open the slide by themselves, as tutorials do. The
limit is the encoder on as many batches that lie in memory.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import openslide
import torch
from safetensors.torch import save_file
from torch.utils.data import DataLoader, Dataset

from oncofed.bench.harness import Bench
from oncofed.bench.results import Limit, Target
from oncofed.data.cases import read_cases
from oncofed.data.register import Request, register
from oncofed.data.slides import TileSpec
from oncofed.data.spec import SplitSpec
from oncofed.data.tiles import SlideTiles, read_tiles
from oncofed.models import ModelSpec, build_network
from oncofed.models import Request as NetworkRequest
from oncofed.models.weights import weights_of
from oncofed.tasks.encoder import Encoder, EncoderSpec, extract
from synthetic import make_slides

_TILES_AT_ONCE = 64
_WORKERS = min(8, os.cpu_count() or 1)


def run(bench: Bench) -> None:
    """Measure each encoder."""
    root = bench.folder
    count, side = (20, 8192) if bench.cuda else (2, 1536) if bench.quick else (4, 3072)
    make_slides(root / "in", count, side)
    spec = TileSpec(256, 1.0, 0.25)
    register(Request(root / "in", "slides", root / "set", "slides", table=root / "in" / "labels.csv", tiles=spec))
    cases = read_cases(root / "set", SplitSpec(test=0, validation=0), 1, labels="class").train
    slides = [read_tiles(case.image, case.tiles) for case in cases if case.tiles]
    tiles = sum(map(len, slides))
    network = build_network(NetworkRequest(ModelSpec(network="resnet18"), 3, 2, 2, (256, 256)), 1)
    weights = root / "encoder.safetensors"
    save_file({name: value.contiguous() for name, value in weights_of(network).items()}, weights)
    batch = list(np.random.default_rng(0).integers(0, 255, (_TILES_AT_ONCE, 256, 256, 3), dtype=np.uint8))
    for encoder_spec in (EncoderSpec(), EncoderSpec(network="resnet18", weights=str(weights))):
        encoder = Encoder(encoder_spec, bench.device)
        alone = bench.best(partial(encoder, batch))

        def ours(encoder: Encoder = encoder) -> None:
            for _, features in extract(slides, encoder):
                assert torch.isfinite(features).all()

        bench.race(
            f"slide to features, {encoder_spec.network}",
            {"oncofed": ours, "OpenSlide and DataLoader": partial(_plain, slides, encoder)},
            unit="tiles/s",
            amount=tiles,
            limit=Limit(name="the encoder alone", value=_TILES_AT_ONCE / alone),
            target=Target(of="baseline", value=1.0),
            settings={"slides": count, "side": side, "encoder": encoder_spec.network},
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
        return np.asarray(self._file.read_region(corner, 0, (256, 256)).convert("RGB"))


def _plain(slides: Sequence[SlideTiles], encoder: Encoder) -> None:
    for slide in slides:
        for tiles in DataLoader(_Tiles(slide), batch_size=_TILES_AT_ONCE, num_workers=_WORKERS, collate_fn=list):
            encoder(tiles)
