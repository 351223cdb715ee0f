"""A bundle tells the numbers of named targets as the job's heads do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from oncofed.artifacts.kept_bundle import complete_bundle
from oncofed.job.spec import JobSpec
from oncofed.tasks.calibration import Calibration
from oncofed.tasks.inferred import TargetScores
from oncofed.tasks.targets import TargetsTask

TARGETS: list[dict[str, Any]] = [
    {"name": "lump", "kind": "class", "classes": ["absent", "$present"]},
    {"name": "findings", "kind": "labels", "findings": ["mass", "effusion", "@nodule"]},
    {"name": "grade", "kind": "grade", "grades": ["low", "middle", "high", "%worst"]},
    {"name": "age", "kind": "value", "unit": "years", "range": [0, 120], "loss": "gaussian"},
    {"name": "size", "kind": "value", "unit": "mm", "range": [0, 50]},
    {"name": "death", "kind": "survival", "unit": "months", "horizon": 24, "intervals": 4},
    {"name": "relapse", "kind": "survival", "unit": "months", "horizon": 12, "model": "cox"},
]


@pytest.fixture
def job() -> JobSpec:
    values = {
        "schema": 1,
        "name": "many",
        "title": "Many targets",
        "data": {"dataset": "many", "patch": [32, 32], "modality": "xray"},
        "targets": TARGETS,
        "model": {"network": "resnet18"},
    }
    return JobSpec.model_validate(values)


def told_by(bundle: Path, outputs: np.ndarray) -> list[dict[str, dict[str, float | str]]]:
    """Return what a bundle's configuration tells of outputs, (case, outputs)."""
    parser = ConfigParser()
    parser.read_config(bundle / "configs" / "inference.json")
    parser["bundle_root"] = str(bundle)
    tell = parser.get_parsed_content("answers")
    return [tell(torch.from_numpy(row)) for row in outputs]


def told_by_heads(task: TargetsTask, outputs: np.ndarray) -> list[dict[str, dict[str, float | str]]]:
    widths = np.cumsum([head.outputs for head in task.heads.values()])[:-1]
    return [task.described(TargetScores(dict(zip(task.heads, np.split(row, widths), strict=True)))) for row in outputs]


def assert_alike(found: list[dict[str, dict[str, Any]]], expected: list[dict[str, dict[str, Any]]]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            words = {key: value for key, value in other[name].items() if isinstance(value, str)}
            assert {key: one[name][key] for key in words} == words
            numbers = {key: value for key, value in other[name].items() if key not in words}
            assert {key: one[name][key] for key in numbers} == pytest.approx(numbers, abs=2e-9, rel=1e-9)


@pytest.mark.parametrize("scale", [1.0, 30.0], ids=["unsure", "sure"])
def test_every_kind_is_told_as_its_head_does(job: JobSpec, tmp_path: Path, scale: float) -> None:
    task = job.plan().build_task()
    assert isinstance(task, TargetsTask)
    bundle = job.plan().write_bundle(tmp_path, job.title, job.plan().initial_weights())
    outputs = scale * np.random.default_rng(0).normal(size=(20, task.out_channels))
    assert_alike(told_by(bundle, outputs), told_by_heads(task, outputs))


def test_learned_thresholds_are_the_bundles(job: JobSpec, tmp_path: Path) -> None:
    plan = job.plan()
    bundle = plan.write_bundle(tmp_path, job.title, plan.initial_weights())
    thresholds = {"findings": {"mass": 0.9, "@nodule": 0.1}}
    Calibration(patients=30, sites=["a"], thresholds=thresholds).write(tmp_path)
    complete_bundle(bundle, [tmp_path])
    task = plan.build_task()
    assert isinstance(task, TargetsTask)
    outputs = np.zeros((1, task.out_channels))
    (found,) = told_by(bundle, outputs)
    assert found["findings"]["answer"] == "effusion, @nodule", "0.5 is below 0.9, and not below 0.5 and 0.1"
    task.use_thresholds(thresholds)
    assert told_by_heads(task, outputs)[0]["findings"]["answer"] == "effusion, @nodule"


def test_metadata_and_readme_name_each_number_with_its_unit(job: JobSpec, tmp_path: Path) -> None:
    bundle = job.plan().write_bundle(tmp_path, job.title, job.plan().initial_weights())
    described = json.loads((bundle / "configs" / "metadata.json").read_text())
    age = described["targets"]["age"]
    assert age["numbers"]["value_years"] == {"title": "value", "unit": "years"}
    assert age["outputs"] == [8, 10]
    assert described["targets"]["death"]["numbers"]["risk"]["title"] == "risk of the event by 24 months"
    channels = described["network_data_format"]["outputs"]["pred"]
    assert channels["num_channels"] == len(channels["channel_def"]) == 16
    text = (bundle / "docs" / "README.md").read_text()
    assert "- `age` (value)\n  - `value_years`: value, in years\n  - `sd_years`: standard deviation, in years" in text
    assert "`grade` (grade): `answer` is one of low, middle, high" in text
