"""Named targets: one network, a head each; what is not known counts in no loss and no score."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from oncofed.data.case import Case
from oncofed.data.cases import Cases, usable_cases
from oncofed.errors import DataError, SpecError
from oncofed.job.spec import JobSpec, read_job
from oncofed.tasks.inferred import TargetScores
from oncofed.tasks.scores import Scores
from oncofed.tasks.targets.outcome import TargetOutcome
from oncofed.training import Trainer
from target_heads import settings_of

JOB = """\
schema: 1
name: two_targets
title: Two targets of one image
data: {dataset: flat, modality: xray, channels: [grey], patch: [32, 32], max_bad_share: 1}
targets:
  - {name: lump, kind: class, classes: [absent, present]}
  - {name: striped, kind: class, classes: ["no", "yes"], weight: 0.5}
model: {network: densenet121, arguments: {init_features: 16, growth_rate: 16, block_config: [2, 2]}}
training: {steps_per_round: 60, batch_size: 8, learning_rate: 0.003, warmup_steps: 0}
rounds: {number: 1}
"""


def make_site(folder: Path, count: int = 32, unknown: int = 3) -> Path:
    """Write images with or without a lump, and striped or not; each ``unknown``th does not state its stripes."""
    rng = np.random.default_rng(1)
    (folder / "imagesTr").mkdir(parents=True)
    entries = []
    for number in range(count):
        lump, striped = number % 2, (number // 2) % 2
        pixels = rng.normal(80, 10, (32, 32))
        pixels[8:24, 8:24] += 80 * lump
        pixels[:, ::4] += 40 * striped
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / "imagesTr" / f"{number:02}.png")
        targets = {"lump": ["absent", "present"][lump]}
        if number % unknown:
            targets["striped"] = ["No", "Yes"][striped]
        entries.append({"image": f"imagesTr/{number:02}.png", "name": f"{number:02}", "targets": targets})
    declared = {name: {"kind": "class"} for name in ("lump", "striped")}
    (folder / "dataset.json").write_text(json.dumps({"targets": declared, "training": entries}))
    return folder


@pytest.fixture
def spec(tmp_path: Path) -> JobSpec:
    (tmp_path / "job.yaml").write_text(JOB)
    return read_job(tmp_path / "job.yaml")


def cases_of(spec: JobSpec, folder: Path) -> Cases:
    plan = spec.plan()
    return usable_cases(folder, plan.data, plan.supervision(), plan.seed, "here").cases


def test_one_network_learns_two_targets(spec: JobSpec, tmp_path: Path) -> None:
    cases = cases_of(spec, make_site(tmp_path / "set"))
    trainer = Trainer(spec.plan(), cases, "here")
    trainer.train(60)
    evaluation = trainer.evaluate(tuple(cases), detailed=True)
    assert set(evaluation.by_class) == {"lump", "striped"}
    assert min(evaluation.by_class.values()) > 0.9
    assert evaluation.mean == pytest.approx(np.mean(list(evaluation.by_class.values())))
    assert len(evaluation.behind["striped"]) < len(evaluation.behind["lump"]), "some do not state their stripes"
    assert trainer.task.picture(trainer.network, next(iter(cases)), trainer.device).caption.startswith("lump, model: ")


def test_what_is_not_known_counts_in_no_loss(spec: JobSpec) -> None:
    task = spec.plan().build_task()
    known, unknown = torch.tensor([[1.0]]), torch.tensor([[float("nan")]])
    output = torch.randn(1, 4, requires_grad=True)
    task.loss(output, {"target.lump": unknown, "target.striped": known}).backward()
    assert output.grad is not None
    assert output.grad[0, :2].tolist() == [0, 0]
    assert output.grad[0, 2:].abs().min() > 0


def test_a_job_with_targets_is_read_back_the_same(spec: JobSpec, tmp_path: Path) -> None:
    (tmp_path / "again.yaml").write_text(spec.to_yaml())
    assert read_job(tmp_path / "again.yaml") == spec
    assert spec.task.classes == {0: "lump", 1: "striped"}


def test_a_value_outside_the_classes_sets_the_case_aside(spec: JobSpec, tmp_path: Path) -> None:
    folder = make_site(tmp_path / "set")
    values = json.loads((folder / "dataset.json").read_text())
    values["training"][4]["targets"]["lump"] = "grey"
    (folder / "dataset.json").write_text(json.dumps(values))
    plan = spec.plan()
    (problem,) = usable_cases(folder, plan.data, plan.supervision(), plan.seed, "here").set_aside
    assert str(problem) == "04: target lump: found 'grey', expected one of absent, present"


def test_another_kind_under_the_same_name_is_refused(spec: JobSpec, tmp_path: Path) -> None:
    folder = make_site(tmp_path / "set")
    values = json.loads((folder / "dataset.json").read_text())
    values["targets"]["lump"] = {"kind": "value", "unit": "mm"}
    (folder / "dataset.json").write_text(json.dumps(values))
    with pytest.raises(DataError, match="lump is of kind value in the dataset, expected class"):
        cases_of(spec, folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("name: striped", "name: lump"), "two targets are called lump"),
        (("kind: class", "kind: colour"), "colour"),
        ((JOB[JOB.index("targets:") : JOB.index("model:")], "targets: []\n"), "name at least one target"),
        (("weight: 0.5", "weight: -1"), r"job.yaml:7: targets.1.weight"),
    ],
)
def test_mistakes_in_targets_are_named(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    (tmp_path / "job.yaml").write_text(JOB.replace(*change))
    with pytest.raises(SpecError, match=message):
        read_job(tmp_path / "job.yaml")


KINDS = {
    "class": ("kind: class, classes: [a, b]", lambda n: (float(n % 2),)),
    "labels": ("kind: labels, findings: [a, b]", lambda n: (float(n % 2), float(n % 3 == 0))),
    "grade": ("kind: grade, grades: [a, b, c]", lambda n: (float(n % 3),)),
    "value": ("kind: value, unit: mm, range: [0, 40]", lambda n: (float(n),)),
    "survival": ("kind: survival, unit: months, horizon: 24, intervals: 6", lambda n: (float(n), float(n % 2))),
    "cox": ("kind: survival, unit: months, horizon: 24, model: cox", lambda n: (float(n), float(n % 2))),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_that_diverged_has_no_figures_and_no_sums(tmp_path: Path, kind: str) -> None:
    section, truth = KINDS[kind]
    text = JOB.replace('name: striped, kind: class, classes: ["no", "yes"]', f"name: other, {section}")
    (tmp_path / "job.yaml").write_text(text)
    task = read_job(tmp_path / "job.yaml").plan().build_task()
    rng, outputs = np.random.default_rng(0), task.heads["other"].outputs

    def outcomes(diverged: int) -> list[tuple[str, TargetOutcome]]:
        found = []
        for number in range(36):
            scores = {"lump": rng.normal(size=2), "other": rng.normal(size=outputs)}
            if number == diverged:
                scores["other"][-1] = np.nan
            case = Case("", f"p{number}", tmp_path, 0, targets={"lump": (float(number % 2),), "other": truth(number)})
            found.append((case.patient, task.outcome(TargetScores(scores), case)))
        return found

    sound, broken = outcomes(-1), outcomes(7)
    assert task.summarise(sound).mean is not None
    assert set(task.pooled(sound)["targets"]) == {"lump", "other"}
    assert task.summarise(broken) == Scores(None)
    assert task.pooled(broken) is None
    assert task.paired(broken, sound) is None
    everybody = [[outcome] for _, outcome in broken]
    assert task.drawing(everybody)(np.arange(36)) is None


@pytest.mark.parametrize(("kind", "names"), [("grade", "grades"), ("class", "classes"), ("labels", "findings")])
def test_names_may_be_whole_numbers_and_else_need_quotes(kind: str, names: str) -> None:
    assert getattr(settings_of(kind, **{names: [1, "2", 3]}), names) == ("1", "2", "3")
    for strange in (True, 1.1, None, date(2026, 1, 1)):
        with pytest.raises(ValidationError, match="Write each in quotes") as caught:
            settings_of(kind, **{names: ["no", strange, strange]})
        assert caught.value.error_count() == 1
