"""A site counts by the thresholds that it was given first."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from oncofed.client.in_memory import Unreported
from oncofed.client.in_process import InProcessTraining
from oncofed.client.local_training import SiteContext
from oncofed.flare.security.outbound_policy import OutboundPolicy
from oncofed.job.spec import parse_job
from oncofed.messages.requests import EvaluateRequest, SumsAsked
from oncofed.messages.results import EvaluateResult
from oncofed.privacy.policy import Policy
from oncofed.tasks import metrics_that_may_leave
from oncofed.tasks.targets.labels import LabelsHead, LabelsTarget
from targets_made import JOB, make_dataset


@pytest.mark.attack(
    "a patient's probability of a finding, by F1 of one model at ever closer thresholds",
    by="the site: it counts by the first thresholds of a job alone",
    logged="nowhere: figures by the first ones leave",
)
def test_further_thresholds_change_nothing(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(JOB)
    spec = parse_job(tmp_path / "job.yaml")
    context = SiteContext(site="here", data=make_dataset(tmp_path / "set"), state=tmp_path / "state")
    site = InProcessTraining(plan=spec.plan(), federation=spec.federation(), context=context, reporter=Unreported())
    try:
        site.prepare()
        heads = site.trainer.task.heads  # type: ignore[attr-defined]
        found = []
        for asked in (None, SumsAsked(), 0.7, 0.71, None, 0.72):
            sums = SumsAsked(thresholds={"findings": {"striped": asked}}) if isinstance(asked, float) else asked
            request = EvaluateRequest(weights=site.trainer.weights(), round=1, split="validation", sums=sums)
            site.validate(request, bool)
            found.append(dict(heads["findings"].known_thresholds))
    finally:
        site.close()
    first = {"striped": 0.7}
    assert found == [{}, {}, first, first, {}, first]


def test_what_shifted_biases_would_tell() -> None:
    head = LabelsHead(LabelsTarget(name="it", findings=("lump",)))
    rng = np.random.default_rng(7)
    logits, truths = rng.normal(size=(12, 1)), np.array([[0.0], [1.0]] * 6)
    patients = [f"p{number}" for number in range(12)]
    shifts = np.arange(-3, 3, 0.01)
    f1 = [head.figures(head.answer(logits + shift), truths, patients).extra["f1"] for shift in shifts]
    moved = -shifts[1:][np.diff(f1) != 0]
    nearest = np.abs(moved[:, None] - logits[:, 0]).min(axis=0)
    assert (nearest < 0.011).sum() >= 10, "nearly each patient's answer is where F1 jumps"


@pytest.mark.attack(
    "patients' probabilities of a finding, by F1 of models whose biases are shifted a little each",
    by="the site: F1 leaves of the first tested model alone; the outbound filter counts",
    logged="nowhere: the other figures leave",
)
def test_shifted_biases_tell_nothing(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(JOB)
    spec = parse_job(tmp_path / "job.yaml")
    context = SiteContext(site="here", data=make_dataset(tmp_path / "set", 40), state=tmp_path / "state")
    site = InProcessTraining(plan=spec.plan(), federation=spec.federation(), context=context, reporter=Unreported())
    policy = OutboundPolicy(plan=spec.plan(), federation=spec.federation(), policy=Policy())
    metrics = metrics_that_may_leave(spec.plan().task)
    thresholds = SumsAsked(thresholds={"findings": {"striped": 0.5, "bright": 0.5}})
    try:
        site.prepare()
        weights = site.trainer.weights()
        bias = next(name for name in weights if len(weights[name]) == site.trainer.task.out_channels)
        bias = bias.replace("weight", "bias")
        told = []
        for step in range(2):
            shifted = {**weights, bias: weights[bias] + 0.05 * step}
            asked = EvaluateRequest(weights=shifted, round=1, split="test", sums=thresholds)
            told.append(site.validate(asked, bool).numbers["evaluation"])
        before = EvaluateRequest(weights=weights, round=1, split="validation", sums=SumsAsked())
        validated = site.validate(before, bool).numbers["evaluation"]
    finally:
        site.close()
    thresholded = {metric.name for metric in metrics if metric.thresholded}
    assert {"f1.findings.striped", "f1.findings", "accuracy.grade", "balanced_accuracy.lump"} <= thresholded
    assert thresholded & set(told[0]["more"]), "of the tested model they are told"
    for other in (*told[1:], validated):
        assert not thresholded & (set(other["more"]) | set(other["patients"]["more"]))
        assert other["by_class"], "the figures that no shift changes are told"
    sent = [policy.check(EvaluateResult({"evaluation": told[0], "validate_s": 1.0}), 100).result for _ in range(9)]
    kept = [bool(thresholded & set(result.numbers["evaluation"]["more"])) for result in sent]
    assert kept == [True] * 6 + [False] * 3, "a server that comes back asks again, and no more"
