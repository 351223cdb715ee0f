"""From a slide to features: decoding, encoder, both."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from safetensors.torch import save_file

from gpu_checks.context import Context
from oncofed.data.slides import TileSpec
from oncofed.data.tiles import SlideTiles, stream_tiles
from oncofed.models import ModelSpec, NetworkRequest, build_network
from oncofed.models.weights import weights_of
from oncofed.tasks.encoder import Encoder, EncoderSpec, extract
from tissue import write_tissue

_TILES_A_SECOND = 5000
_SIDE = 256  # pixels of a tile


def check(context: Context) -> None:
    """Measure each, then both."""
    slides = _slides(context.folder, 32 if context.cuda else 3, 8 if context.cuda else 1)
    count = sum(map(len, slides))
    for threads in sorted({1, os.cpu_count() or 1}):
        seconds = context.seconds(lambda threads=threads: [None for _ in stream_tiles(slides[:1], threads=threads)])  # type: ignore[misc]
        context.report.figure(f"one slide decoded by {threads} threads", tiles_s=len(slides[0]) / seconds)
    encoder = _encoder(context)
    pixels = np.random.default_rng(0).integers(0, 255, (_SIDE, _SIDE, 3), dtype=np.uint8)
    batches = [[pixels] * (encoder.at_once if context.cuda else 4)] * (12 if context.cuda else 1)
    encoder(batches[0])
    seconds = context.seconds(lambda: list(encoder.stream(batches)))
    context.report.figure("the encoder alone", tiles_s=sum(map(len, batches)) / seconds)
    with context.report.attempt("tiles", "slides in one stream"):
        seconds = context.seconds(lambda: [None for _ in extract(slides, encoder)])
        rate = count / seconds
        context.report.claim("tiles", rate >= _TILES_A_SECOND, tiles_s=rate, tiles=count)


def _slides(folder: Path, side: int, count: int) -> list[SlideTiles]:
    """Return one slide several times, to be read each time."""
    path = folder / "tissue.tif"
    write_tissue(path, side)
    y, x = np.divmod(np.arange(side * side, dtype=np.int32), side)
    return [SlideTiles(path, TileSpec(_SIDE, 0.5), x * _SIDE, y * _SIDE)] * count


def _encoder(context: Context) -> Encoder:
    network = build_network(NetworkRequest(ModelSpec(network="resnet18"), 3, 2, 2, (_SIDE, _SIDE)), 1)
    weights = context.folder / "encoder.safetensors"
    save_file({name: value.contiguous() for name, value in weights_of(network).items()}, weights)
    return Encoder(EncoderSpec(network="resnet18", weights=str(weights)), context.device)
