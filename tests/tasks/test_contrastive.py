"""Contrastive pretraining: views, loss, score."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Generator, Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from oncofed.data.case import Case
from oncofed.data.cases import Cases
from oncofed.data.spec import DataSpec
from oncofed.data.two_views import TwoViews, random_part
from oncofed.errors import SpecError
from oncofed.job.spec import JobSpec
from oncofed.tasks.contrastive import Contrastive, ContrastiveSpec
from oncofed.training import Trainer

CHANNELS = ("red", "green", "blue")
DATA = DataSpec(dataset="tiles", modality="microscopy", channels=CHANNELS, patch=(32, 32))
JOB = {
    "schema": 1,
    "name": "tiles",
    "title": "Tiles without labels",
    "data": {"dataset": "tiles", "modality": "microscopy", "channels": CHANNELS, "patch": (32, 32)},
    "task": {"type": "contrastive_pretraining", "projection": 8},
    "model": {"network": "resnet18"},
    "training": {"batch_size": 4, "steps_per_round": 2},
}


def _tiles(folder: Path, number: int) -> list[Case]:
    rng, cases = np.random.default_rng(0), list[Case]()
    for tile in range(number):
        path = folder / f"{tile}.png"
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).resize((32, 32)).save(path)
        cases.append(Case(path.stem, path.stem, path, 0))
    return cases


def test_the_loss_is_the_papers() -> None:
    spec = ContrastiveSpec(temperature=0.5)
    output = torch.randn(3, 2, 5, generator=Generator().manual_seed(0))
    views = [view / view.norm() for image in output for view in image]
    expected = []
    for i, one in enumerate(views):
        exponents = [math.exp(float(one @ other) / 0.5) for other in views]
        partner = i + 1 if i % 2 == 0 else i - 1
        expected.append(-math.log(exponents[partner] / (sum(exponents) - exponents[i])))
    found = Contrastive(spec, DATA).loss(output, {})
    assert float(found) == pytest.approx(sum(expected) / len(expected), rel=1e-5)


def test_views_are_parts_of_their_image() -> None:
    ramp = torch.arange(32.0).expand(2, 1, 32, 32).contiguous()
    whole = random_part(ramp, 1.0, Generator().manual_seed(0))
    torch.testing.assert_close(whole, ramp)
    part = random_part(ramp, 0.5, Generator().manual_seed(0))
    spans = part.amax((1, 2, 3)) - part.amin((1, 2, 3))
    assert ((spans > 14) & (spans < 31)).all()
    assert part.min() >= 0
    assert part.max() <= 31
    source, images = TwoViews(DATA, "light", 0.5), torch.randn(4, 3, 32, 32)
    batch = source.change({"image": images.clone()}, Generator().manual_seed(1))
    assert batch["image"].shape == (4, 2, 3, 32, 32)
    assert not torch.equal(batch["image"][:, 0], batch["image"][:, 1])
    again = source.change({"image": images.clone()}, Generator().manual_seed(1))
    assert torch.equal(batch["image"], again["image"])


class _Coarse(nn.Module):
    """Tells images apart by what is left of them in eight pixels a side."""

    def forward(self, x: Tensor) -> Tensor:
        return adaptive_avg_pool2d(x, 8).flatten(1)


class _Blind(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.ones(len(x), 3)


def test_a_network_that_tells_images_apart_scores_higher(tmp_path: Path) -> None:
    cases, cpu = _tiles(tmp_path, 5), torch.device("cpu")
    # Of X-rays nothing is mirrored.
    task = Contrastive(ContrastiveSpec(least_part=0.95), DATA.model_copy(update={"modality": "xray"}))
    seeing, blind = task.evaluate(_Coarse(), cases, cpu), task.evaluate(_Blind(), cases, cpu)
    assert seeing.mean is not None
    assert blind.mean is not None
    assert seeing.mean > blind.mean
    assert seeing.extra_metrics["contrastive_loss"] < blind.extra_metrics["contrastive_loss"]
    assert blind.extra_metrics["contrastive_loss"] == pytest.approx(math.log(9), abs=1e-3)
    assert task.evaluate(_Coarse(), cases[:1], cpu).mean is None, "one image alone is compared with none"


def test_a_job_trains_on_images_without_labels(tmp_path: Path) -> None:
    tiles = _tiles(tmp_path, 10)
    plan = JobSpec.model_validate(JOB).plan()
    trainer = Trainer(plan, Cases(tuple(tiles[:6]), tuple(tiles[6:8]), tuple(tiles[8:])), "east")
    before = trainer.weights()
    assert trainer.train(2) > 0
    assert any(not torch.equal(value, before[name]) for name, value in trainer.weights().items())
    assert trainer.evaluate(trainer.cases.test).extra_metrics["contrastive_loss"] > 0
    trainer.close()
    with pytest.raises(SpecError, match="a job starts from its weights"):
        plan.build_task().inference_preparation()


def test_one_image_is_no_batch() -> None:
    with pytest.raises(SpecError, match="compares at least 2 samples"):
        JobSpec.model_validate(JOB).changed({"training": {"batch_size": 1}})
