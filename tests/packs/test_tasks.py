"""Tests of tasks that a pack brings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from oncofed.algorithms.plan import FederationPlan
from oncofed.client.local_training import SiteContext
from oncofed.client.sandboxed import SandboxedTraining
from oncofed.data.cases import read_cases
from oncofed.errors import SpecError
from oncofed.job.flare import export_job
from oncofed.job.spec import JobSpec
from oncofed.messages.requests import EvaluateRequest, SumsAsked, TrainRequest
from oncofed.packs.load import load_pack
from oncofed.packs.pack import Pack, make_pack
from oncofed.privacy.outbound import check_numbers
from oncofed.sandbox import what_is_missing
from oncofed.training import Plan, Trainer
from synthetic import Voice, make_package

# Everything that is not background counts as one.
_TASK = """
from oncofed.tasks import Scores, Segmentation, SegmentationSpec, register_task
from oncofed.tasks.patient_statistics import mean_over_patients


@register_task("foreground")
class Foreground(Segmentation):
    metric = "foreground"
    metric_name = "Foreground share"

    def __init__(self, spec, data):
        super().__init__(SegmentationSpec(classes=spec.classes, overlap=spec.arguments["overlap"]), data)

    def evaluate_case(self, network, case, device, detailed):
        found = self.predict(network, case, device)
        return {"right": float(((found.prediction > 0) == (found.reference > 0)).mean())}

    def summarise(self, outcomes):
        return Scores(mean_over_patients(outcomes).get("right"))


@register_task("broken")
def broken(spec, data):
    raise ValueError("it lacks a setting")
"""


@pytest.fixture
def pack(tmp_path: Path) -> Pack:
    made = make_pack(make_package(tmp_path / "mine", _TASK), None)
    load_pack(made)
    return made


def _spec(spec: JobSpec, pack: Pack | None, **task: Any) -> JobSpec:
    values = spec.model_dump(by_alias=True)
    values["task"] = {"type": "pack", "name": "foreground", "classes": spec.task.classes} | task
    values["task"].setdefault("arguments", {"overlap": 0.1})
    values["model"] |= {"code": pack.digest if pack else None}
    return JobSpec.model_validate(values)


def test_it_trains_and_scores_with_a_network_of_oncofeds_own(spec: JobSpec, site: Path, pack: Pack) -> None:
    plan = _spec(spec, pack).plan()
    assert (plan.build_task().metric, plan.build_task().out_channels) == ("foreground", len(spec.task.classes) + 1)
    cases = read_cases(site, plan.data.split, plan.seed)
    trainer = Trainer(plan, cases, "here")
    trainer.train(2)
    evaluation = trainer.task.evaluate(trainer.network, cases.train, trainer.device)
    assert evaluation.mean is not None
    assert 0 < evaluation.mean < 1


def test_names_that_no_pack_registers_are_reported(spec: JobSpec, pack: Pack) -> None:
    with pytest.raises(ValueError, match="has no task 'background'; it has foreground, broken"):
        _spec(spec, pack, name="background")
    with pytest.raises(ValueError, match="the task broken cannot be made: ValueError: it lacks a setting"):
        _spec(spec, pack, name="broken")
    with pytest.raises(ValueError, match="'foreground' comes with a pack: no pack"):
        _spec(spec, None)


def test_processes_without_the_pack_use_the_jobs_declaration(spec: JobSpec, pack: Pack, tmp_path: Path) -> None:
    folder = export_job(_spec(spec, pack), tmp_path / "exported")
    client = json.loads((folder / "app" / "config" / "config_fed_client.json").read_text())
    plan = client["executors"][0]["executor"]["args"]["plan"]
    declared = plan["task"]["declared"]
    assert declared == {
        "metric": "foreground",
        "metric_name": "Foreground share",
        "label_kind": "mask",
        "network_kind": "dense",
    }
    # As a process sees it that has loaded no pack.
    plan["model"]["code"] = "0" * 64
    elsewhere = Plan.model_validate(plan)
    task = elsewhere.build_task()
    assert (task.metric, task.label_kind, task.network_kind) == ("foreground", "mask", "dense")
    with pytest.raises(SpecError, match="foreground comes with a pack, which is not loaded here"):
        task.loss(None, {})  # type: ignore[arg-type]
    assert (
        load_file(folder / "app" / "config" / "initial_model.safetensors").keys() == elsewhere.layout().weights.keys()
    )


@pytest.mark.slow
@pytest.mark.skipif(what_is_missing() is not None, reason=f"no process can be confined: {what_is_missing()}")
def test_a_site_runs_it_confined_and_its_figures_are_bounded(
    spec: JobSpec, pack: Pack, two_sites: dict[str, Path], tmp_path: Path
) -> None:
    plan = _spec(spec.changed({"data": {"split": {"validation": 0.1, "test": 0.65}}}), pack).plan()
    weights = plan.initial_weights()
    other = tmp_path / "other.safetensors"
    save_file({name: value.contiguous() for name, value in weights.items()}, other)
    context = SiteContext(site="east", data=two_sites["east"], state=tmp_path / "state", against=other)
    training = SandboxedTraining(
        plan=plan.declared(), federation=FederationPlan(), context=context, reporter=Voice(), pack=pack
    )
    assert training.prepare()["test"] == 5
    result = training.train(TrainRequest(weights=weights, round=1), lambda: False)
    request = EvaluateRequest(weights=weights, round=1, split="test", sums=SumsAsked())
    score = training.validate(request, lambda: False)
    training.close()
    numbers = score.numbers
    assert max(map(len, score.patient_groups)) == 5
    assert result.steps == spec.training.steps_per_round
    assert 0 < numbers["evaluation"]["mean"] <= 1
    check_numbers(numbers, list(spec.task.classes.values()), sums=True)
    # Its metric is summed over patients as any task's, and beside another model, which is the same here.
    patients, total, _ = numbers["pooled"]["figures"]["mean"]
    assert total / patients == pytest.approx(numbers["evaluation"]["mean"], abs=1e-4)
    assert numbers["paired"] == {"patients": 5, "difference": 0, "variance": 0}
