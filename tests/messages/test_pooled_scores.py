"""A site's sums, and the server's figures over all sites."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from oncofed.algorithms.plan import FederationPlan
from oncofed.artifacts.kept_job import copy_beside_model
from oncofed.client.case_sums import patients_of_sums, sums_of
from oncofed.client.in_memory import Unreported
from oncofed.client.in_process import InProcessTraining
from oncofed.client.local_training import SiteContext
from oncofed.data.register import RegisterOptions, register
from oncofed.flare import wire
from oncofed.job.outcome import begin_result, note_pooled
from oncofed.job.spec import read_job
from oncofed.messages.requests import EvaluateRequest, Split, SumsAsked
from oncofed.privacy.outbound import check_numbers
from oncofed.report.html import write_report
from oncofed.report.result import read_result
from oncofed.rounds.pooled_scores import OverSites, calibration_of, together
from oncofed.tasks.calibration import Calibration, read_calibration
from oncofed.tasks.classification import Classified
from oncofed.tasks.pooled import Reliability, ReliabilityBin
from synthetic import make_textures

SMALL = {"init_features": 16, "growth_rate": 16, "block_config": [1, 1]}
JOB = read_job("xray_classification").changed(
    {
        "data": {"patch": [32, 32], "split": {"validation": 0.3, "test": 0.5}},
        "model": {"arguments": SMALL},
        "training": {"steps_per_round": 2, "batch_size": 2},
        "rounds": {"number": 1},
        "evaluation": {"margin": 0.2},
    }
)
CLASSES = list(JOB.task.classes.values())


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InProcessTraining]:
    folder = tmp_path_factory.mktemp("site")
    make_textures(folder / "in", CLASSES, 24, colours=1)
    register(RegisterOptions(folder / "in", JOB.data.dataset, folder / "set"))
    other = {n: v + 0.05 if v.is_floating_point() else v for n, v in JOB.plan().initial_weights().items()}
    save_file({n: v.contiguous() for n, v in other.items()}, folder / "other.safetensors")
    context = SiteContext(
        site="east", data=folder / "set", state=folder / "state", against=folder / "other.safetensors"
    )
    training = InProcessTraining(plan=JOB.plan(), federation=FederationPlan(), context=context, reporter=Unreported())
    training.prepare()
    yield training
    training.close()


def _asked(training: InProcessTraining, split: Split, asked: SumsAsked | None) -> dict[str, Any]:
    request = EvaluateRequest(weights=training.trainer.weights(), round=1, split=split, sums=asked)
    score = training.validate(request, lambda: False)
    numbers = score.numbers
    assert bool(score.patient_groups) == bool(asked), "the site knows of whom the sums are"
    assert json.loads(json.dumps(numbers)).keys() == numbers.keys()
    check_numbers(numbers, CLASSES, sums=True)
    return numbers


def test_sums_are_sent_only_on_request(training: InProcessTraining) -> None:
    weights = training.trainer.weights()
    assert set(_asked(training, "test", None)) == {"evaluation", "validate_s"}
    assert set(_asked(training, "validation", SumsAsked())) == {"evaluation", "validate_s", "temperature"}
    tested = _asked(training, "test", SumsAsked(1.5))
    assert set(tested) == {"evaluation", "validate_s", "pooled", "paired"}
    assert tested["pooled"]["patients"] == tested["evaluation"]["cases"] == tested["paired"]["patients"]
    assert len(tested["pooled"]["reliability"]["brier"]) == 2
    # The model that was sent is scored, and is loaded again after the other one.
    assert all(torch.equal(value, training.trainer.weights()[name]) for name, value in weights.items())


def test_one_sites_sums_give_its_score(training: InProcessTraining) -> None:
    tested = _asked(training, "test", SumsAsked(1.5))
    found = together({"east": tested, "west": {"evaluation": {}}}, None, "auroc", 0.2, "ab" * 32)
    assert found.pooled
    assert found.pooled.auroc == pytest.approx(tested["evaluation"]["mean"], rel=1e-3)
    assert found.pooled.withheld == ["west"]
    assert found.paired
    assert (found.paired.margin, found.paired.against) == (0.2, "ab" * 32)
    assert found.calibration is None
    # The same model twice differs by nothing.
    task, cases = training.trainer.task, list[tuple[str, Any]]()
    training.trainer.evaluate(training.trainer.cases.test, None, False, None, cases)
    same = sums_of(task, "test", cases, cases, SumsAsked())
    assert same["paired"]["difference"] == same["paired"]["variance"] == 0


def _read(found: OverSites) -> dict[str, Any]:
    """Return the figures that a result takes from a record."""
    recorded = json.loads(json.dumps(found.recorded()))
    return {name: recorded[name] for name in ("pooled", "paired", "calibration")}


def test_a_calibration_with_reliability_is_in_result_and_report(training: InProcessTraining, tmp_path: Path) -> None:
    # An untrained model is sure of nothing: its best temperature is chance.
    learned = Calibration(temperature=1.5, patients=12, sites=["east"], log_loss=(0.7, 0.69))
    found = together({"east": _asked(training, "test", SumsAsked(1.5))}, learned, "auroc", 0.2, None)
    assert found.calibration
    assert found.calibration.before
    assert found.calibration.after
    found.calibration.write(tmp_path)
    (tmp_path / "model").mkdir()
    copy_beside_model(tmp_path, tmp_path / "model")
    assert read_calibration(tmp_path / "model") == found.calibration
    copy_beside_model(tmp_path / "none", tmp_path / "model")
    result = begin_result(JOB, "simulate")
    note_pooled(result, **_read(found))
    assert (result.calibration, result.pooled_test, result.paired_test) == (
        found.calibration,
        found.pooled,
        found.paired,
    )
    result.write(tmp_path)
    assert read_result(tmp_path) == result
    html = write_report(result, {}, tmp_path).read_text()
    assert html.count("<svg") == 1
    for said in ("All sites' test patients together", "temperature of 1.50", "By a margin of 0.2", "Reliability"):
        assert said in html
    note_pooled(result, pooled=None, paired=None, calibration=None)  # as read from a record without them
    assert (result.calibration, result.pooled_test, result.paired_test) == (None, None, None)


def test_the_report_names_no_temperature_where_none_is_known(training: InProcessTraining, tmp_path: Path) -> None:
    found = together({"east": _asked(training, "test", SumsAsked())}, None, "auroc", None, None)
    result = begin_result(JOB, "simulate")
    note_pooled(result, **_read(found))
    html = write_report(result, {}, tmp_path).read_text()
    assert "How sure it should be is not known" in html
    assert "The job names no margin" in html


def test_without_sums_there_are_no_figures() -> None:
    found = together({"east": {"evaluation": {}}}, None, "dice", None, None)
    assert found.recorded() == {"pooled": None, "paired": None, "calibration": None, "attention": None}
    assert calibration_of({"east": {"evaluation": {}}}) is None
    bins = [ReliabilityBin(patients=5, confidence=0.5, right=0.4)]
    known = Calibration(
        temperature=2,
        patients=9,
        sites=["east"],
        log_loss=(0.7, 0.6),
        before=Reliability(calibration_error=0.1, brier=0.5, log_loss=0.7, bins=bins),
    )
    assert together({"east": {"evaluation": {}}}, known, "dice", None, None).calibration == known


def test_sums_cover_only_large_groups() -> None:
    task = JOB.plan().build_task()
    few = [(f"p{n}", Classified(np.array([0.5, 0.5]), int(n < 3))) for n in range(12)]
    everybody, without = patients_of_sums(task, few), {f"p{n}" for n in range(3, 12)}
    assert {frozenset(group) for group in everybody} == {frozenset(p for p, _ in few), frozenset(without)}
    half = [(patient, Classified(one.probabilities, n % 2)) for n, (patient, one) in enumerate(few)]
    assert sorted(map(len, patients_of_sums(task, half))) == [6, 6, 12]


@pytest.mark.parametrize("asked", [None, SumsAsked(1.25), SumsAsked()])
def test_a_request_carries_the_requested_sums(asked: SumsAsked | None) -> None:
    request = EvaluateRequest(weights={"a": torch.zeros(2)}, round=1, split="test", sums=asked)
    read = wire.read_request(EvaluateRequest.task, wire.to_shareable(request))
    assert isinstance(read, EvaluateRequest)
    assert read.sums == asked
