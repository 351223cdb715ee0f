"""Tiles a second from slides to features: oncofed beside OpenSlide with a DataLoader, with the same encoder.

Slides are generated, JPEG-compressed and tiled as scanners write them. Both programs read every tile that shows tissue
and give it to the same encoder, in batches of 64: oncofed across the ends of slides and reading ahead, the plain loop
one slide after the other, with a ``DataLoader`` whose workers open the slide by themselves, as tutorials do. The
programs run in turn, and the median of the repeats counts.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import torch
from safetensors.torch import save_file
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from oncofed.data.cases import read_cases
from oncofed.data.register import Request, register
from oncofed.data.slides import TileSpec
from oncofed.data.spec import SplitSpec
from oncofed.data.tiles import SlideTiles, read_tiles
from oncofed.job.outcome import environment
from oncofed.models import ModelSpec, build_network
from oncofed.models import Request as NetworkRequest
from oncofed.models.weights import weights_of
from oncofed.tasks.slides import Encoder, EncoderSpec, extract
from synthetic import make_slides


def main() -> None:
    """Run, print and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cuda = torch.cuda.is_available()
    parser.add_argument("--slides", type=int, default=20 if cuda else 4)
    parser.add_argument("--side", type=int, default=8192 if cuda else 3072, help="of a slide in pixels")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1), help="of the plain DataLoader")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    figures: dict[str, Any] = {"machine": {**environment(), "cores": os.cpu_count()}}
    with tempfile.TemporaryDirectory(prefix="oncofed-slides-") as folder:
        figures |= measure(arguments, Path(folder))
    print(table(figures))
    if arguments.out:
        arguments.out.write_text(json.dumps(figures, indent=2) + "\n")


def measure(arguments: argparse.Namespace, root: Path) -> dict[str, dict[str, float]]:
    """Return tiles a second by encoder and program."""
    make_slides(root / "in", arguments.slides, arguments.side)
    spec = TileSpec(256, 1.0, 0.25)
    register(Request(root / "in", "slides", root / "set", "slides", table=root / "in" / "labels.csv", tiles=spec))
    cases = read_cases(root / "set", SplitSpec(test=0, validation=0), 1, labels="class").train
    slides = [read_tiles(case.image, case.tiles) for case in cases if case.tiles]
    count = sum(map(len, slides))
    network = build_network(NetworkRequest(ModelSpec(network="resnet18"), 3, 2, 2, (256, 256)), 1)
    weights = root / "encoder.safetensors"
    save_file({name: value.contiguous() for name, value in weights_of(network).items()}, weights)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rates: dict[str, dict[str, float]] = {}
    for encoder_spec in (EncoderSpec(), EncoderSpec(network="resnet18", weights=str(weights))):
        encoder = Encoder(encoder_spec, device)
        times: dict[str, list[float]] = {"oncofed": [], "plain": []}
        for _ in range(arguments.repeats):
            begun = time.perf_counter()
            for _, features in extract(slides, encoder):
                assert torch.isfinite(features).all()
            times["oncofed"].append(time.perf_counter() - begun)
            begun = time.perf_counter()
            _plain(slides, encoder, arguments.workers)
            times["plain"].append(time.perf_counter() - begun)
        rates[encoder_spec.network] = {name: count / statistics.median(values) for name, values in times.items()}
    return rates


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


def _plain(slides: Sequence[SlideTiles], encoder: Encoder, workers: int) -> None:
    for slide in slides:
        for tiles in DataLoader(_Tiles(slide), batch_size=64, num_workers=workers, collate_fn=list):
            encoder(tiles)


def table(figures: dict[str, Any]) -> str:
    """Return the figures as Markdown."""
    lines = [
        f"{figures['machine']['device']}: tiles of 256² a second, slide to features",
        "",
        "| encoder | oncofed | OpenSlide and DataLoader | ratio |",
        "|---|---|---|---|",
    ]
    for name in ("colour", "resnet18"):
        ours, theirs = figures[name]["oncofed"], figures[name]["plain"]
        lines.append(f"| {name} | {ours:,.1f} | {theirs:,.1f} | {ours / theirs:.1f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
