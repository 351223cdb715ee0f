"""Scoring of cases in batches, halved if memory is short."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from oncofed.data.case import Case
from oncofed.data.cases import Cases, usable_cases
from oncofed.data.inputs import WholeImages
from oncofed.data.label_mapping import Supervision
from oncofed.data.register import RegisterOptions, register
from oncofed.data.spec import DataSpec, SplitSpec
from oncofed.errors import TrainingError
from oncofed.models import ModelSpec
from oncofed.tasks import Classification, ClassificationSpec
from oncofed.training import Plan, Trainer
from synthetic import make_textures

CLASSES = {0: "clear", 1: "pneumonia"}
CPU = torch.device("cpu")
DATA = DataSpec(
    dataset="x", modality="xray", channels=("grey",), patch=(32, 32), split=SplitSpec(validation=0.5, test=0.2)
)


@pytest.fixture
def plan() -> Plan:
    small = {"init_features": 8, "growth_rate": 8, "block_config": [1, 1]}
    return Plan(
        data=DATA, task=ClassificationSpec(classes=CLASSES), model=ModelSpec(network="densenet121", arguments=small)
    )


@pytest.fixture
def cases(tmp_path: Path) -> Cases:
    images = make_textures(tmp_path / "in", list(CLASSES.values()), each=20, colours=1)
    register(RegisterOptions(images, "x", tmp_path / "set", "classification"))
    return usable_cases(tmp_path / "set", DATA, Supervision("class", CLASSES), 1, "here").cases


class _Counting(nn.Module):
    """Counts its images, and fails above ``most`` at once."""

    def __init__(self, most: int = 1000) -> None:
        super().__init__()
        self.most = most
        self.given: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        self.given.append(len(images))
        if len(images) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return torch.stack([images.mean((1, 2, 3)), images.std((1, 2, 3))], dim=1)


def _task() -> Classification:
    return Classification(ClassificationSpec(classes=CLASSES), DATA)


def test_images_in_batches_score_as_single_ones(cases: Cases) -> None:
    task, network = _task(), _Counting()
    task.cases_at_once = 8
    every = tuple(cases)
    told: list[tuple[int, int]] = []
    together = task.evaluate(network, every, CPU, detailed=True, progress=lambda *done: told.append(done))
    assert max(network.given) == 8
    assert sum(network.given) == len(every)
    assert told[-1] == (len(every), len(every))
    assert [done for done, _ in told] == sorted({min(n, len(every)) for n in range(8, len(every) + 8, 8)})
    for (name, figures), case in zip(together.by_case, every, strict=True):
        alone = task.case_metrics(task.evaluate_case(network, case, CPU, detailed=False))
        assert name == case.name
        assert figures == pytest.approx(alone)


@pytest.mark.parametrize("most", [1, 3])
def test_a_batch_that_does_not_fit_is_scored_in_halves(cases: Cases, most: int) -> None:
    task, network = _task(), _Counting(most)
    every = tuple(cases)[:7]  # after each halving Python looks for garbage in all that a test process holds
    assert task.evaluate(network, every, CPU) == task.evaluate(_Counting(), every, CPU)
    assert sum(count for count in network.given if count <= most) == len(every)


def test_a_single_image_too_large_for_memory_is_an_error(cases: Cases) -> None:
    with pytest.raises(TrainingError, match="one case alone"):
        _task().evaluate(_Counting(0), cases.validation, CPU)


def test_validation_cases_are_read_once_for_all_rounds(
    plan: Plan, cases: Cases, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    prepare = WholeImages.prepare
    monkeypatch.setattr(WholeImages, "prepare", lambda self, case: read.append(case.name) or prepare(self, case))
    trainer = Trainer(plan, cases, "here")
    first = trainer.evaluate(cases.validation)
    assert sorted(read) == sorted(case.name for case in cases.validation)
    assert trainer.evaluate(cases.validation) == first
    assert trainer.evaluate(cases.validation[:2]).cases == 2
    assert len(read) == len(cases.validation)
    trainer.evaluate(cases.test)
    trainer.evaluate(cases.test)  # used once in a run, so not held
    assert len(read) == len(cases.validation) + 2 * len(cases.test)


def test_scoring_stops_between_batches(cases: Cases) -> None:
    task, network = _task(), _Counting()
    task.cases_at_once = 4
    answers = iter([False, False, True])
    assert task.evaluate(network, tuple(cases), CPU, should_stop=lambda: next(answers)).cases == 8


def test_a_task_with_its_own_evaluation_scores_case_by_case(cases: Cases) -> None:
    class Own(Classification):
        def evaluate_case(self, network: nn.Module, case: Case, device: torch.device, detailed: bool) -> Any:
            said = super().evaluate_case(network, case, device, detailed)
            return type(said)(np.array([0.0, 1.0]), said.label)

    class Batched(Own):
        def evaluate_cases(
            self, network: nn.Module, cases: Sequence[Case], device: torch.device, detailed: bool
        ) -> list[Any]:
            return [self.evaluate_case(network, case, device, detailed) for case in cases]

    network = _Counting()
    own = Own(ClassificationSpec(classes=CLASSES), DATA)
    found = own.evaluate(network, cases.validation, CPU, detailed=True)
    assert set(network.given) == {1}
    assert all(figures["probability.pneumonia"] == 1.0 for _, figures in found.by_case)
    assert Batched(ClassificationSpec(classes=CLASSES), DATA)._evaluator()[1] > 1
