from __future__ import annotations

from pathlib import Path

import pytest
import torch

from oncofed.data.cases import read_cases
from oncofed.data.inputs import Patches
from oncofed.data.prepared import PreparedCases
from oncofed.job.spec import JobSpec
from oncofed.training import Trainer

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("precision", ["auto", "float16", "float32"])
def test_it_learns_on_a_gpu_in_each_precision(spec: JobSpec, site: Path, precision: str) -> None:
    plan = spec.changed({"training": {"precision": precision, "steps_per_round": 30}}).plan()
    trainer = Trainer(plan, read_cases(site, plan.data.split, plan.seed), "site-1")
    assert trainer.device.type == "cuda"
    first = trainer.train(5)
    trainer.train(45)
    assert trainer.train(5) < first * 0.8
    assert all(value.device.type == "cpu" and value.dtype == torch.float32 for value in trainer.weights().values())
    evaluation = trainer.evaluate(trainer.cases.validation)
    assert evaluation.mean is not None
    assert evaluation.mean > 0.3


def test_prepared_cases_may_be_held_on_the_gpu(spec: JobSpec, site: Path) -> None:
    plan = spec.changed({"data": {"cache": "gpu"}, "training": {"steps_per_round": 10}}).plan()
    cases = read_cases(site, plan.data.split, plan.seed)
    held = PreparedCases(cases.train, Patches(plan.data, "light", 3), torch.device("cuda"))
    assert held.plan.held == "gpu"
    assert held[0]["image"].is_cuda
    trainer = Trainer(plan, cases, "site-1")
    assert trainer.train(10) > 0
