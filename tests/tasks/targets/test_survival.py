"""Targets of kind survival: what a dataset states, what a job learns from it, and how that is scored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from oncofed.data.case import Case
from oncofed.data.cases import usable_cases
from oncofed.data.targets import DatasetTarget, FollowUp, TargetValue
from oncofed.errors import DataError, SpecError, TrainingError
from oncofed.job.spec import JobSpec, read_job
from oncofed.tasks.inferred import TargetScores
from oncofed.tasks.targets.base import TargetFigures
from oncofed.tasks.targets.outcome import TargetOutcome
from oncofed.tasks.targets.survival import SurvivalHead, SurvivalTarget
from oncofed.training import Trainer

JOB = """\
schema: 1
name: lives
title: How long until the event
data: {dataset: flat, modality: xray, channels: [grey], patch: [32, 32], max_bad_share: 1}
targets:
  - {name: os, kind: survival, unit: months, horizon: 24, intervals: 4, model: MODEL}
model: {network: densenet121, arguments: {init_features: 16, growth_rate: 16, block_config: [2, 2]}}
training: {steps_per_round: 80, batch_size: 16, learning_rate: 0.003, warmup_steps: 0}
rounds: {number: 1}
"""
DAYS = DatasetTarget(kind="survival", unit="days")


def job(folder: Path, *changes: tuple[str, str], model: str = "discrete") -> JobSpec:
    text = JOB.replace("MODEL", model)
    for change in changes:
        text = text.replace(*change)
    (folder / "job.yaml").write_text(text)
    return read_job(folder / "job.yaml")


def make_site(folder: Path, count: int = 60) -> Path:
    """Write images whose brightness is the log risk; times are exponential, in days, some censored, some unknown."""
    rng = np.random.default_rng(3)
    (folder / "imagesTr").mkdir(parents=True)
    entries: list[dict[str, Any]] = []
    for number in range(count):
        log_risk = rng.normal()
        pixels = rng.normal(100 + 40 * log_risk, 10, (32, 32))
        pixels[0, :2] = 0, 255  # of every image the same range
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / "imagesTr" / f"{number:02}.png")
        time, end = rng.exponential(400 * np.exp(-2 * log_risk)), rng.uniform(200, 1500)
        targets = {"os": {"time": round(min(time, end), 1), "event": bool(time <= end)}} if number % 10 else {}
        entries.append({"image": f"imagesTr/{number:02}.png", "name": f"{number:02}", "targets": targets})
    declared = {"os": {"kind": "survival", "unit": "days"}}
    (folder / "dataset.json").write_text(json.dumps({"targets": declared, "training": entries}))
    return folder


@pytest.mark.parametrize("model", ["discrete", "cox"])
def test_a_model_learns_who_has_the_event_first(tmp_path: Path, model: str) -> None:
    plan = job(tmp_path, model=model).plan()
    cases = usable_cases(make_site(tmp_path / "set"), plan.data, plan.supervision(), plan.seed, "here").cases
    trainer = Trainer(plan, cases, "here")
    trainer.train(80)
    found = trainer.evaluate(tuple(cases), detailed=True)
    assert found.mean is not None
    assert found.mean > 0.7
    assert found.by_class == {"os": found.mean}
    absolute = {"integrated_brier.os", "calibration_at_horizon.os"}
    assert set(found.extra_metrics) == {
        "concordance_uno.os",
        "auc_at_horizon.os",
        *(absolute if model != "cox" else ()),
    }
    assert found.interval
    assert found.interval[0] < found.mean < found.interval[1]


VOLUMES = (
    "data: {dataset: flat, modality: xray, channels: [grey], patch: [32, 32],",
    "data: {dataset: v, patch: [32, 32, 32],",
)
SLIDES = (
    (
        "modality: xray, channels: [grey], patch: [32, 32]",
        "modality: microscopy, channels: [r, g, b], patch: [256, 256]",
    ),
    (
        "network: densenet121, arguments: {init_features: 16, growth_rate: 16, block_config: [2, 2]}",
        "network: attention_mil",
    ),
    ("model: {", "task: {encoder: {network: colour}}\nmodel: {"),
)


@pytest.mark.parametrize(
    ("changes", "kind", "shape"),
    [((), "targets", (1, 32, 32)), ((VOLUMES,), "targets", (1, 32, 32, 32)), (SLIDES, "slide_targets", ())],
    ids=["images", "volumes", "slides"],
)
@pytest.mark.parametrize("model", ["discrete", "cox"])
def test_images_volumes_and_slides_are_learned_alike(
    tmp_path: Path, changes: tuple[tuple[str, str], ...], kind: str, shape: tuple[int, ...], model: str
) -> None:
    plan = job(tmp_path, *changes, model=model).plan()
    assert plan.task.type == kind
    task, network = plan.build_task(), plan.build_network()
    truth = torch.tensor([[12.0, 1.0], [20.0, 0.0], [float("nan")] * 2])
    batch = (
        {"image": torch.rand(3, *shape)}
        if shape
        else {
            "bags": torch.rand(3, 8, task.in_channels),
            "there": torch.ones(3, 8, dtype=torch.bool),
        }
    )
    output = task.forward(network, batch)
    assert output.shape == (3, 1 if model == "cox" else 4)
    loss = task.loss(output, {"target.os": truth})
    loss.backward()
    assert loss.isfinite()
    assert loss > 0


def head(**settings: Any) -> SurvivalHead:
    return SurvivalHead(SurvivalTarget(**{"name": "os", "unit": "months", "horizon": 24, "intervals": 4, **settings}))


def test_times_become_the_jobs_unit() -> None:
    target = head().settings
    assert target.encode(FollowUp(time=365.25, event=True), DAYS) == (pytest.approx(12), 1)
    assert target.encode(FollowUp(time=2, event=False), DatasetTarget(kind="survival", unit="Years")) == (24, 0)
    assert target.encode(FollowUp(time=0, event=True), DAYS) == (0, 1)


@pytest.mark.parametrize(
    ("stated", "unit", "message"),
    [
        ({"event": True}, "days", "target os: found an event without its time"),
        (7.0, "days", 'target os: found 7.0, expected a time and whether the event came then: {"time": 12.5'),
        (FollowUp(time=-3, event=True), "days", "target os: found the time -3, expected days from the start"),
        (FollowUp(time=float("nan"), event=True), "days", "target os: found the time nan"),
        (FollowUp(time=float("inf"), event=False), "days", "target os: found the time inf"),
        (FollowUp(time=800, event=False), "years", "target os: found 800 years, longer than anybody lives"),
        (FollowUp(time=8, event=False), "fortnights", "unit of time is 'fortnights', expected one of days, weeks"),
    ],
)
def test_follow_ups_that_cannot_be_are_named(stated: TargetValue, unit: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        head().settings.encode(stated, DatasetTarget(kind="survival", unit=unit))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"intervals": (6.0, 12.0)}, "intervals: found 6, 12, expected ascending times above zero of which the last"),
        ({"intervals": (12.0, 6.0, 24.0)}, "ascending"),
        ({"intervals": 0}, "expected their number, 1 to 100, or as many times at which they end"),
        ({"intervals": "ten"}, "expected their number"),
        ({"intervals": ()}, "expected their number"),
        ({"intervals": (12.0, "end")}, "expected their number"),
        ({"horizon": 0}, "greater than 0"),
        ({"unit": "hours"}, "days"),
    ],
)
def test_settings_that_cannot_be_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        head(**settings)


def test_intervals_are_a_number_or_their_ends() -> None:
    assert head().settings.ends == (6, 12, 18, 24)
    assert head(intervals=(3, 24)).settings.ends == (3, 24)
    assert SurvivalTarget.model_validate(head(intervals=(3, 24)).settings.model_dump()).ends == (3, 24)


def test_survival_falls_from_interval_to_interval() -> None:
    outputs = np.random.default_rng(0).normal(size=(5, 4))
    survival = head().answer(outputs)
    assert (np.diff(survival, axis=1) < 0).all()
    hazards = 1 / (1 + np.exp(-outputs))
    assert head().described(survival[0])["risk"] == pytest.approx(1 - np.prod(1 - hazards[0]))
    assert head(model="cox").answer(outputs[:, :1]) is not None
    assert head().described_truth((12.0, 1.0)) == "event at 12 months"
    assert head().described_truth((12.0, 0.0)) == "no event by 12 months"
    assert head().described_truth((float("nan"), float("nan"))) == ""


def figures_of(truths: list[tuple[float, float]], **settings: Any) -> TargetFigures:
    one = head(**settings)
    outputs = np.random.default_rng(0).normal(size=(len(truths), one.outputs))
    return one.figures(one.answer(outputs), np.array(truths).reshape(-1, 2), [f"p{n}" for n in range(len(truths))])


@pytest.mark.parametrize("model", ["discrete", "cox"])
@pytest.mark.parametrize("truths", [[], [(3.0, 1.0)], [(30.0, 1.0)] * 3, [(5.0, 0.0)] * 9, [(5.0, 1.0)] * 9])
def test_too_few_or_all_alike_have_no_concordance(truths: list[tuple[float, float]], model: str) -> None:
    found = figures_of(truths, model=model)
    assert found.primary is None
    assert "auc_at_horizon" not in found.extra


def test_draws_of_patients_are_scored_as_their_cases_are(tmp_path: Path) -> None:
    task = job(tmp_path).plan().build_task()
    rng = np.random.default_rng(2)
    patients = [
        [
            TargetOutcome({"os": rng.uniform(size=4)}, {"os": (float(rng.uniform(1, 40)), float(rng.integers(2)))})
            for _ in range(1 + number % 2)
        ]
        for number in range(30)
    ]
    drawn = rng.integers(0, 30, 30)
    outcomes = [(f"{n}", outcome) for n, number in enumerate(drawn) for outcome in patients[number]]
    assert task.drawing(patients)(drawn) == task.summarise(outcomes).mean


def test_behind_a_figure_are_the_patients_it_compares() -> None:
    found = figures_of([(3.0, 1.0)] * 4 + [(30.0, 1.0)] * 3 + [(9.0, 0.0)] * 2)
    assert found.behind[""] == found.behind["concordance_uno"] == {"p0", "p1", "p2", "p3"}
    assert found.behind["auc_at_horizon"] == {"p4", "p5", "p6"}
    assert len(found.behind["integrated_brier"]) == 9


def test_coxs_model_needs_two_samples_at_once(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"compares at least 2 samples, found 1 at once: make batch_size.*micro_batch"):
        job(tmp_path, ("batch_size: 16", "batch_size: 16, micro_batch: 1"), model="cox")
    with pytest.raises(SpecError, match=r"found 1 in the last part of a batch of 16 in parts of 5: choose"):
        job(tmp_path, ("batch_size: 16", "batch_size: 16, micro_batch: 5"), model="cox")
    job(tmp_path, ("batch_size: 16", "batch_size: 16, micro_batch: 5"))
    job(tmp_path, ("batch_size: 16", "batch_size: 16, micro_batch: 6"), model="cox")
    job(tmp_path, ("batch_size: 16", "batch_size: 16, micro_batch: 1"))
    job(tmp_path, ("batch_size: 16", "batch_size: 16, micro_batch: 8"), model="cox")


@pytest.mark.parametrize(("batch", "sizes"), [(18, [18, 9, 5, 3, 2]), (17, [17, 9, 5, 3]), (3, [3])])
def test_where_memory_is_short_every_part_of_coxs_batch_has_two(tmp_path: Path, batch: int, sizes: list[int]) -> None:
    plan = job(tmp_path, ("batch_size: 16", f"batch_size: {batch}"), model="cox").plan()
    cases = usable_cases(make_site(tmp_path / "set", 10), plan.data, plan.supervision(), plan.seed, "here").cases
    gradients = Trainer(plan, cases, "here")._gradients
    for size in sizes[1:]:
        gradients._halve()
        assert gradients.micro_batch == size
    with pytest.raises(TrainingError, match=f"{sizes[-1]} samples, which the loss compares, do not fit"):
        gradients._halve()


@pytest.mark.parametrize("model", ["discrete", "cox"])
def test_one_case_has_a_score_where_its_loss_compares_no_others(tmp_path: Path, model: str) -> None:
    task = job(tmp_path, model=model).plan().build_task()
    scored = TargetScores({"os": np.zeros(4 if model == "discrete" else 1)})
    case = Case("one", "p1", tmp_path / "one.png", 0, targets={"os": (9.0, 1.0)})
    score = task.case_score(task.outcome(scored, case))
    assert (score is None) == (model == "cox")


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"event": True}, "target os: found an event without its time"),
        ({"time": -4, "event": True}, "target os: found the time -4"),
    ],
)
def test_a_case_with_a_bad_follow_up_is_set_aside_by_name(tmp_path: Path, stated: object, message: str) -> None:
    folder = make_site(tmp_path / "set", 12)
    values = json.loads((folder / "dataset.json").read_text())
    values["training"][4]["targets"]["os"] = stated
    (folder / "dataset.json").write_text(json.dumps(values))
    plan = job(tmp_path).plan()
    (problem,) = usable_cases(folder, plan.data, plan.supervision(), plan.seed, "here").set_aside
    assert str(problem).startswith("04: ")
    assert message in str(problem)


@pytest.mark.parametrize(
    "stated",
    [{"time": 4}, {"time": None, "event": True}, {"time": "2024-01-03", "event": True}, {"time": 4, "event": 2}],
)
def test_a_follow_up_in_another_form_is_named_by_entry_and_target(tmp_path: Path, stated: object) -> None:
    folder = make_site(tmp_path / "set", 12)
    values = json.loads((folder / "dataset.json").read_text())
    values["training"][4]["targets"]["os"] = stated
    (folder / "dataset.json").write_text(json.dumps(values))
    plan = job(tmp_path).plan()
    with pytest.raises(DataError) as caught:
        usable_cases(folder, plan.data, plan.supervision(), plan.seed, "here")
    assert 'entry 4 of "training" states {"time": ' in str(caught.value)
    assert 'of target os, expected a name, a number, {"finding": true}, or {"time": 12.5, "event": true}' in str(
        caught.value
    )


def test_losses_of_the_two_models_are_of_each_sample() -> None:
    truth = torch.tensor([[3.0, 1.0], [8.0, 0.0], [float("nan")] * 2])
    for one in (head(), head(model="cox")):
        found = one.loss(torch.randn(3, one.outputs), truth)
        assert found.shape == (3,)
        assert found[0] > 0
        assert found[2] == 0


def test_a_caption_tells_no_follow_up(tmp_path: Path) -> None:
    task = job(tmp_path).plan().build_task()
    answer = {"os": task.heads["os"].answer(np.zeros((1, task.out_channels)))[0]}
    caption = task.caption(TargetOutcome(answer, {"os": (1234.0, 1.0)}))
    assert caption.startswith("os, model: ")
    assert "1234" not in caption
    assert "event at" not in caption
    assert caption == task.caption(TargetOutcome(answer, {"os": (7.0, 0.0)}))
