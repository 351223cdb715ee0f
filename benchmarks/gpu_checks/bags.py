"""Does a GPU wait for bags of a slide's features?"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator
from torch.nn import functional

from gpu_checks.context import Context
from gpu_checks.data import SLIDES, plan_of
from oncofed.data.augment import Batch
from oncofed.data.inputs import Prepared
from oncofed.devices import inference_type
from oncofed.models.mil import AttentionMIL
from oncofed.tasks.bags import Bags
from oncofed.tasks.slides import SlideClassificationSpec

_SIZE, _MOST_TILES, _TILES = 8, 4096, 5000


def check(context: Context) -> None:
    """Compare the time of a batch and its step."""
    for features in (62, 2048) if context.cuda else (62,):
        with context.report.attempt("bags", f"{features} features"):
            _keep_up(context, features)


def _keep_up(context: Context, features: int) -> None:
    steps = 10 if context.cuda else 1
    tiles = _TILES if context.cuda else 200
    held: list[Prepared] = [
        {
            "bags": torch.randn(tiles, features).to(torch.bfloat16),
            "label": torch.tensor(number % 2),
            "places": torch.zeros(tiles, 2, dtype=torch.int32),
        }
        for number in range(4)
    ]
    settings = SlideClassificationSpec(classes={0: "normal", 1: "tumour"}, most_tiles=_MOST_TILES)
    input_ = Bags(plan_of(context, SLIDES).data, settings, context.device)
    generator = Generator().manual_seed(1)

    def drawn(held: list[Prepared]) -> Batch:
        parts = [input_.draw(held[number % len(held)], generator) for number in range(_SIZE)]
        batch = {name: values.to(context.device) for name, values in input_.together(parts).items()}
        return input_.change(batch, generator)

    on_device = [{name: values.to(context.device) for name, values in case.items()} for case in held]
    batch = drawn(on_device)
    network = AttentionMIL(features, 2).to(context.device)

    def step() -> None:
        with torch.autocast(context.device.type, inference_type(context.device), enabled=context.cuda):
            output = network(batch["bags"], batch["there"])
        functional.cross_entropy(output.float(), batch["label"]).backward()  # type: ignore[no-untyped-call]

    def ms(program: Callable[[], object]) -> float:
        program()
        return context.median_seconds(lambda: [program() for _ in range(steps)]) / steps * 1e3

    input_ms, network_ms = ms(lambda: drawn(on_device)), ms(step)
    text = f"{features} features, held on the device"
    context.report.claim("bags", input_ms < network_ms, text, input_ms=input_ms, network_ms=network_ms)
    context.report.figure(f"{features} features, held in memory", input_ms=ms(lambda: drawn(held)))
