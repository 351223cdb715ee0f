"""Slides on a GPU: features as on the CPU, batches in order while two are under way, bags held on the GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from oncofed.data.batches import BatchStream
from oncofed.data.cases import Cases, usable_cases
from oncofed.data.label_mapping import Supervision
from oncofed.data.prepared import PreparedCases
from oncofed.data.register import RegisterOptions, register
from oncofed.data.slides import Pixels, TileSpec
from oncofed.data.spec import DataSpec
from oncofed.errors import TrainingError
from oncofed.models import ModelSpec, NetworkRequest, build_network
from oncofed.models.weights import weights_of
from oncofed.tasks import SlideClassification, SlideClassificationSpec
from oncofed.tasks.encoder import Encoder, EncoderSpec
from oncofed.training import Plan, Trainer, TrainingSpec
from synthetic import make_slides

pytest.importorskip("tifffile")
pytestmark = pytest.mark.gpu

CLASSES = {0: "normal", 1: "tumour"}
DATA = DataSpec(dataset="slides", modality="microscopy", channels=("r", "g", "b"), patch=(64, 64))
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Cases:
    folder = tmp_path_factory.mktemp("slides")
    make_slides(folder / "in", 12, side=768)
    table = folder / "in" / "labels.csv"
    register(
        RegisterOptions(folder / "in", "slides", folder / "set", "slides", table=table, tiles=TileSpec(64, 1.0, 0.25))
    )
    return usable_cases(folder / "set", DATA, Supervision("class", CLASSES), 1, "here").cases


def _tiles(count: int) -> list[Pixels]:
    return list(np.random.default_rng(0).integers(0, 255, (count, 64, 64, 3), dtype=np.uint8))


def _encoders(tmp_path: Path, network: str, norm: Literal["batch", "group"]) -> tuple[Encoder, Encoder]:
    if network == "colour":
        return Encoder(EncoderSpec(), CPU), Encoder(EncoderSpec(), CUDA)
    built = build_network(NetworkRequest(ModelSpec(network="resnet18", norm=norm), 3, 2, 2, (64, 64)), 1)
    path = tmp_path / "encoder.safetensors"
    save_file({name: value.contiguous() for name, value in weights_of(built).items()}, path)
    spec = EncoderSpec(network="resnet18", weights=str(path))
    return Encoder(spec, CPU), Encoder(spec, CUDA)


@pytest.mark.parametrize(("network", "norm"), [("colour", "batch"), ("resnet18", "batch"), ("resnet18", "group")])
def test_features_are_those_of_the_cpu_and_in_order_with_two_batches_under_way(
    tmp_path: Path, network: str, norm: Literal["batch", "group"]
) -> None:
    here, there = _encoders(tmp_path, network, norm)
    assert (there._in_flight, there.at_once) == (2, 256)
    tiles = _tiles(700)
    expected = here(tiles).float()
    # Many small batches, so that each buffer is used again while a copy may still read from it.
    for size in (256, 16):
        batches = [tiles[first : first + size] for first in range(0, len(tiles), size)]
        found = list(there.stream(batches))
        assert [len(features) for features in found] == [len(batch) for batch in batches]
        assert all(features.device == CPU and features.dtype == torch.bfloat16 for features in found)
        scale = float(expected.abs().mean())
        torch.testing.assert_close(torch.cat(found).float(), expected, rtol=0.05, atol=0.05 * scale)


def test_the_next_batch_is_sent_before_the_last_one_is_done(tmp_path: Path) -> None:
    _, encoder = _encoders(tmp_path, "colour", "batch")
    order: list[str] = []

    def batches() -> Iterator[list[Pixels]]:
        for number in range(3):
            order.append(f"sent {number}")
            yield _tiles(8)

    for number, _ in enumerate(encoder.stream(batches())):
        order.append(f"done {number}")
    assert order == ["sent 0", "sent 1", "done 0", "sent 2", "done 1", "done 2"]


def test_a_full_gpu_halves_batches_and_says_so_where_one_tile_does_not_fit(tmp_path: Path) -> None:
    here, there = _encoders(tmp_path, "resnet18", "batch")
    tiles = _tiles(256)
    network = there._network
    assert network is not None

    def full_above(most: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def check(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if len(inputs[0]) > most:
                torch.empty(2**50, device=CUDA)  # no GPU has that much: CUDA's own error

        return check

    network.register_forward_pre_hook(full_above(64))
    features = there(tiles)
    assert there.at_once == 64
    expected = here(tiles).float()
    torch.testing.assert_close(features.float(), expected, rtol=0.05, atol=0.05 * float(expected.abs().mean()))
    network.register_forward_pre_hook(full_above(0))
    with pytest.raises(TrainingError, match="one tile alone does not fit"):
        there(tiles)


def test_bags_are_held_on_the_gpu_and_batches_are_those_of_the_cpu(cases: Cases) -> None:
    task = SlideClassification(SlideClassificationSpec(classes=CLASSES, most_tiles=16), DATA)
    bags = task.input("none")
    on_gpu, on_cpu = PreparedCases(cases.train, bags, CUDA), PreparedCases(cases.train, bags, CPU)
    assert (on_gpu.plan.held, on_cpu.plan.held) == ("gpu", "memory")
    assert on_gpu[0]["bags"].is_cuda
    assert on_gpu[0]["bags"].dtype == torch.bfloat16
    there, here = BatchStream(on_gpu, bags, 4, 1, CUDA), BatchStream(on_cpu, bags, 4, 1, CPU)
    for _ in range(8):
        one, other = next(there), next(here)
        assert all(values.is_cuda for values in one.values())
        for name, values in other.items():
            assert torch.equal(one[name].cpu(), values)


def test_drawing_bags_that_lie_on_the_gpu_never_waits_for_it(cases: Cases) -> None:
    task = SlideClassification(SlideClassificationSpec(classes=CLASSES, most_tiles=16), DATA)
    bags = task.input("none")
    batches = BatchStream(PreparedCases(cases.train, bags, CUDA), bags, 4, 1, CUDA)
    next(batches)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(4):
            next(batches)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_slides_task_trains_and_scores_with_bags_on_the_gpu(cases: Cases) -> None:
    plan = Plan(
        data=DATA,
        task=SlideClassificationSpec(classes=CLASSES),
        model=ModelSpec(network="attention_mil"),
        training=TrainingSpec(steps_per_round=20, batch_size=4, warmup_steps=0),
        rounds=1,
    )
    trainer = Trainer(plan, cases, "here")
    first = trainer.train(5)
    trainer.train(50)
    assert trainer.train(5) < first
    task = trainer.task
    assert isinstance(task, SlideClassification)
    assert trainer.evaluate(trainer.cases.validation or trainer.cases.train).mean is not None
    weights, places = task.attention(trainer.network, cases.train[0], trainer.device)
    assert len(weights) == len(places)
    assert weights.sum() == pytest.approx(1, abs=1e-2)
