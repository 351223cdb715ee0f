"""Cases whose labels disagree with a model's answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from oncofed.data.case import Case
from oncofed.data.cases import Cases, read_cases
from oncofed.data.spec import DataSpec
from oncofed.job.spec import read_job
from oncofed.tasks.classification import Classification, ClassificationSpec, Classified
from oncofed.tasks.label_doubts import _confident, label_doubts
from oncofed.tasks.segmentation import Segmentation, SegmentationSpec
from oncofed.training import Trainer
from synthetic import make_site, write_job

_CPU = torch.device("cpu")


def _case(name: str) -> Any:
    return type("Named", (), {"name": name, "patient": name})()


class _Known(Classification):
    """Answers with stated outcomes."""

    outcomes: dict[str, Classified]

    def evaluate_cases(
        self, network: nn.Module, cases: Sequence[Case], device: torch.device, detailed: bool
    ) -> list[Classified]:
        return [self.outcomes[case.name] for case in cases]


class _Agreeing(Segmentation):
    """Agrees with labels as far as stated."""

    figures: dict[str, float]

    def evaluate_case(self, network: nn.Module, case: Case, device: torch.device, detailed: bool) -> dict[str, float]:
        return {"dice.ball": self.figures[case.name]}

    def scoring_preparation(self) -> Any:
        return None

    def certainty(self, network: nn.Module, case: Case, device: torch.device) -> float | None:
        return 0.9


def test_an_image_is_of_another_class_where_that_is_as_probable_as_usual() -> None:
    """Northcutt et al. (2021): thresholds are 0.7 and 0.593 here."""
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6], [0.3, 0.7], [0.2, 0.8], [0.72, 0.28]])
    labels = np.array([0, 0, 0, 1, 1, 1])
    assert _confident(probabilities, labels).tolist() == [False, False, True, False, False, True]
    unsure = np.array([[0.9, 0.1], [0.8, 0.2], [0.42, 0.58], [0.3, 0.7], [0.2, 0.8], [0.35, 0.65]])
    assert not _confident(unsure, labels).any(), "less sure than usual"


def test_suspected_labels_come_first_and_then_the_least_probable() -> None:
    task = _Known(ClassificationSpec(classes={0: "benign", 1: "malignant"}), DataSpec(dataset="balls", patch=(8, 8)))
    stated = {"a": (0.9, 0), "b": (0.8, 0), "c": (0.1, 0), "d": (0.3, 1), "e": (0.05, 1), "f": (0.65, 0)}
    task.outcomes = {name: Classified(np.array([p, 1 - p]), label) for name, (p, label) in stated.items()}
    found = label_doubts(task, nn.Identity(), [_case(name) for name in stated], _CPU)
    assert [one.case for one in found] == ["c", "f", "d", "b", "a", "e"]
    assert [one.case for one in found if one.suspected] == ["c"]
    assert (found[0].answer, found[0].certainty, found[0].doubt) == ("malignant", 0.9, pytest.approx(0.8))


@pytest.mark.parametrize(
    ("dice", "suspected"),
    [
        ([0.80, 0.82, 0.81, 0.83, 0.79, 0.30], ["5"]),
        ([0.80, 0.82, 0.81, 0.83, 0.79, 0.99], []),  # better than usual
        ([0.80, 0.60, 0.70, 0.90, 0.50, 0.40], []),  # all differ
        ([0.80, 0.80, 0.80, 0.30], []),  # too few to tell
        ([1.0] * 6 + [0.999, 0.97, 0.95], []),  # most are alike
        ([1.0] * 6 + [0.999, 0.97, 0.5], ["8"]),
    ],
)
def test_a_mask_is_suspected_where_it_agrees_unusually_little(dice: list[float], suspected: list[str]) -> None:
    task = _Agreeing(SegmentationSpec(classes={1: "ball"}), DataSpec(dataset="balls"))
    task.figures = {f"{n}": value for n, value in enumerate(dice)}
    found = label_doubts(task, nn.Identity(), [_case(name) for name in task.figures], _CPU)
    assert [one.case for one in found if one.suspected] == suspected
    assert found[0].score == min(dice)


def test_a_case_without_a_score_is_left_out_and_a_stop_ends_it() -> None:
    task = _Agreeing(SegmentationSpec(classes={1: "ball"}), DataSpec(dataset="balls"))
    task.figures = {"a": 0.5, "b": float("nan")}
    cases = [_case("a"), _case("b")]
    assert [one.case for one in label_doubts(task, nn.Identity(), cases, _CPU)] == ["a"]
    assert label_doubts(task, nn.Identity(), cases, _CPU, should_stop=lambda: True) == []


def test_a_network_that_learned_is_sure_where_a_new_one_is_not(tmp_path: Any) -> None:
    plan = read_job(write_job(tmp_path / "job")).plan()
    cases = read_cases(make_site(tmp_path / "site", 6), plan.data.split, plan.seed)
    trainer = Trainer(plan, Cases(cases.train, cases.validation, cases.test), "here")
    before = trainer.task.certainty(trainer.network.eval(), cases.test[0], _CPU)
    trainer.train(30)
    after = trainer.task.certainty(trainer.network.eval(), cases.test[0], _CPU)
    assert after is not None
    assert before is None or before < after
    assert 0 < after <= 1
