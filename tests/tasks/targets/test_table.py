"""Targets of image and table together, and of the table alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from oncofed.data.cases import Cases
from oncofed.job.spec import JobSpec
from oncofed.training.baselines import Baseline, train_baseline
from oncofed.training.plan import Plan
from tabular import IMAGE, JOB, TABLE_ALONE, make_table_site, table_cases, table_job


def _figure(spec: JobSpec, cases: Cases, out: Path) -> float:
    """Return a job's test AUROC at a site alone."""
    baseline = Baseline("alone", cases, {"here": cases.test}, cases.validation)
    found = train_baseline(spec.plan(), baseline, out, None)["here"].mean
    assert found is not None
    return found


@pytest.fixture(scope="module")
def told_by_table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_table_site(tmp_path_factory.mktemp("told") / "set", 120, missing=12)


@pytest.fixture(scope="module")
def told_by_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_table_site(tmp_path_factory.mktemp("told") / "set", 120, noise=True, missing=12)


@pytest.mark.parametrize("fusion", ["concat", "film"])
def test_covariates_that_tell_the_outcome_raise_the_figure(fusion: str, told_by_table: Path, tmp_path: Path) -> None:
    spec = table_job(tmp_path).changed({"model": {"fusion": fusion}})
    cases = table_cases(spec, told_by_table)
    alone = _figure(spec.changed({"model": {"fusion": "none"}}), cases, tmp_path)
    assert _figure(spec, cases, tmp_path) > max(0.9, alone + 0.15)


def test_covariates_of_noise_lower_it_little(told_by_image: Path, tmp_path: Path) -> None:
    spec = table_job(tmp_path)
    cases = table_cases(spec, told_by_image)
    alone = _figure(spec.changed({"model": {"fusion": "none"}}), cases, tmp_path)
    assert alone > 0.95
    assert _figure(spec, cases, tmp_path) > alone - 0.05


def test_the_table_alone_is_a_job(told_by_table: Path, told_by_image: Path, tmp_path: Path) -> None:
    spec = table_job(tmp_path, JOB.replace(IMAGE, TABLE_ALONE)).changed({"training": {"steps_per_round": 80}})
    assert spec.task.type == "table_targets"
    assert spec.plan().try_network()(torch.zeros(1, 2)).shape == (1, 2)
    assert _figure(spec, table_cases(spec, told_by_table), tmp_path) > 0.9
    assert _figure(spec, table_cases(spec, told_by_image), tmp_path) < 0.9
    case = table_cases(spec, told_by_table).test[0]
    task, network = spec.plan().build_task(), spec.plan().build_network().eval()
    assert task.picture(network, case, torch.device("cpu")).caption.startswith("outcome, model: ")


def test_a_job_with_a_table_is_read_back_the_same(tmp_path: Path) -> None:
    spec = table_job(tmp_path / "first")
    assert table_job(tmp_path / "again", spec.to_yaml()) == spec
    assert Plan.model_validate(spec.plan().model_dump()) == spec.plan()


SLIDES = (
    JOB.replace("modality: xray", "modality: microscopy")
    .replace("channels: [grey]", "channels: [red, green, blue]")
    .replace(IMAGE, "network: attention_mil, fusion: film")
)


def test_a_slides_bag_is_seen_with_its_row_and_keeps_its_attention(tmp_path: Path) -> None:
    plan = table_job(tmp_path, SLIDES).plan()
    assert plan.task.type == "slide_targets"
    task, network = plan.build_task(), plan.try_network().eval()
    bags = torch.rand(5, task.in_channels)
    places, slides = torch.zeros(5, 2, dtype=torch.int32), torch.zeros(5, dtype=torch.int16)
    prepared = {"bags": bags, "places": places, "slides": slides}
    rows = [torch.tensor([60.0, 0.0]), torch.tensor([20.0, 2.0])]
    first, second = (task.infer(network, {**prepared, "table": row}, torch.device("cpu")) for row in rows)
    assert first.attention is not None
    assert float(first.attention.sum()) == pytest.approx(1, rel=1e-5)
    assert (first.outputs["outcome"] != second.outputs["outcome"]).all()
