"""Attention over a slide's features: is the GPU waiting for the bags?"""

from __future__ import annotations

from itertools import islice

import torch
from torch.nn import functional

from gpu_checks.context import Context
from gpu_checks.data import SLIDES, plan_of
from gpu_checks.support import batches_of
from oncofed.models.mil import AttentionMIL
from oncofed.tasks.segmentation import inference_type
from oncofed.tasks.slides import Bags, Encoder, EncoderSpec

_SIZE, _MOST_TILES, _TILES = 8, 4096, 5000


def check(context: Context) -> None:
    """Compare the time of a batch with that of the step that takes it."""
    for features in (62, 2048) if context.cuda else (62,):
        with context.report.attempt("bags", f"{features} features"):
            _keep_up(context, features)


def _keep_up(context: Context, features: int) -> None:
    steps = 10 if context.cuda else 1
    tiles = _TILES if context.cuda else 200
    held = [
        {
            "bags": torch.randn(tiles, features).to(torch.bfloat16),
            "label": torch.tensor(number % 2),
            "places": torch.zeros(tiles, 2, dtype=torch.int32),
        }
        for number in range(4)
    ]
    input_ = Bags(plan_of(context, SLIDES).data, Encoder(EncoderSpec(), context.device), _MOST_TILES)
    batches = batches_of(held, input_, _SIZE, context.device)
    batch = next(batches)
    network = AttentionMIL(features, 2).to(context.device)

    def step() -> None:
        with torch.autocast(context.device.type, inference_type(context.device), enabled=context.cuda):
            output = network(batch["bags"], batch["there"])
        functional.cross_entropy(output.float(), batch["label"]).backward()  # type: ignore[no-untyped-call]

    def several() -> None:
        for _ in range(steps):
            step()

    step()
    network_ms = context.median_seconds(several) / steps * 1e3
    input_ms = context.median_seconds(lambda: list(islice(batches, steps))) / steps * 1e3
    context.report.claim(
        "bags", input_ms < network_ms, f"{features} features", input_ms=input_ms, network_ms=network_ms
    )
