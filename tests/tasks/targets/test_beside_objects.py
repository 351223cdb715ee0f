"""Single objects beside other targets: one network with a shared encoder, each image with any of them."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from oncofed.client.in_memory import InProcessSite, train_in_memory
from oncofed.client.local_training import SiteContext
from oncofed.data.cases import Cases, usable_cases
from oncofed.data.contract import check_dataset
from oncofed.data.manifest import SALT_FILE
from oncofed.data.target_columns import parse_targets
from oncofed.errors import SpecError
from oncofed.job.spec import JobSpec, read_job
from oncofed.prediction.evaluation.evaluate import EvaluationRequest, evaluate
from oncofed.prediction.export.export import export
from oncofed.prediction.model import load_model
from oncofed.prediction.outputs.page import write_page
from oncofed.prediction.run import Options, predict
from oncofed.prediction.sources import gather
from oncofed.privacy.evaluations import evaluation_numbers, is_evaluation
from oncofed.private_files import write_private
from oncofed.rounds.events import BEST_MODEL, MODELS_FOLDER
from oncofed.tasks import metrics_that_may_leave, sums_that_may_leave
from oncofed.tasks.targets import MaskTargets, details_of
from oncofed.training import Trainer
from pictures import read
from synthetic import make_nuclei
from trained import make_run

_CPU = torch.device("cpu")
JOB = """\
schema: 1
name: nuclei_and_stain
title: Nuclei and how they were stained
data: {dataset: nuclei, modality: microscopy, channels: [red, green, blue], patch: [32, 32], minimum_cases: 2}
targets:
  - {name: nuclei, kind: objects, classes: {1: nucleus}, smallest: 5, weight: 2}
  - {name: stain, kind: class, classes: [plain, striped], weight: 0.5}
model: {network: unet, channels: [8, 16, 32], residual_units: 0}
training: {steps_per_round: 40, batch_size: 4, learning_rate: 0.01, warmup_steps: 0, augmentation: none}
rounds: {number: 2}
evaluation: {select: last}
seed: 3
"""


@pytest.fixture
def spec(tmp_path: Path) -> JobSpec:
    (tmp_path / "job.yaml").write_text(JOB)
    return read_job(tmp_path / "job.yaml")


def make_fields(folder: Path, count: int = 12) -> Path:
    """Register made nuclei, every other on broad stripes; every fourth has no mask, every third states no stain."""
    make_nuclei(folder / "in", count, 48)
    rows = ["image,stain"]
    for number in range(count):
        path = folder / "in" / "images" / f"f{number}.png"
        striped = number % 2
        if striped:
            pixels = np.asarray(Image.open(path)).astype(int)
            pixels[np.arange(48) % 12 < 6] += 40  # channels are scaled one by one: a tint alone would not be seen
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
        rows.append(f"f{number}.png,{('plain', 'striped')[striped] if number % 3 else ''}")
        if number % 4 == 0:
            (folder / "in" / "masks" / f"f{number}.png").unlink()
    (folder / "stains.csv").write_text("\n".join(rows))
    table = folder / "stains.csv"
    table.write_text("\n".join(rows))
    # Patients are dealt by their keys: with a salt of its own each run would train on others.
    (folder / "set").mkdir()
    write_private(folder / "set" / SALT_FILE, bytes(32))
    read(folder / "in", folder / "set", task="segmentation", table=table, targets=parse_targets(["stain=class:stain"]))
    return folder / "set"


def cases_of(spec: JobSpec, folder: Path) -> Cases:
    plan = spec.plan()
    return usable_cases(folder, plan.data, plan.supervision(), plan.seed, "here").cases


def without(folder: Path, key: str) -> Path:
    """Take masks (``label``) or ``targets`` from all cases of a dataset."""
    values = json.loads((folder / "dataset.json").read_text())
    for entry in values["training"]:
        entry.pop(key, None)
    (folder / "dataset.json").write_text(json.dumps(values))
    return folder


def test_a_field_may_have_nuclei_or_a_stain_or_both(spec: JobSpec, tmp_path: Path) -> None:
    folder = make_fields(tmp_path)
    plan = spec.plan()
    report = check_dataset(folder, plan.data, plan.supervision(), plan.seed)
    assert report.may_train, report.why_not
    rows = {row.aspect: row.found for row in report.rows}
    assert rows["masks"] == "9 of 12 cases have one"
    assert rows["stain"].startswith("8 of 12 patients have it")
    cases = {case.name: case for case in cases_of(spec, folder)}
    assert "f0" not in cases, "it has neither"
    source = plan.build_task().input("none")
    generator = torch.Generator().manual_seed(1)
    for name, held in (("f1", {0, 1}), ("f4", {255})):
        prepared = source.prepare(cases[name]) | source.beside_image(cases[name])
        drawn = source.draw(prepared, generator)
        assert set(drawn["label"].unique().tolist()) <= held
        assert drawn["distance"].shape == drawn["label"].shape == (1, 32, 32)
        assert drawn["whole"].shape == (3, 32, 32)
    batch = source.together([source.draw(source.prepare(cases["f1"]), generator) for _ in range(2)])
    assert source.change(batch, generator)["distance"].shape == (2, 1, 32, 32)


def test_what_a_field_lacks_is_zero_in_the_loss(spec: JobSpec) -> None:
    task = spec.plan().build_task()
    assert isinstance(task, MaskTargets)
    generator = torch.Generator().manual_seed(1)
    maps, values = torch.randn(2, 3, 32, 32, generator=generator), torch.randn(2, 2, generator=generator)
    output = torch.cat([maps.flatten(1), values], 1)
    unlabelled = {"label": torch.full((2, 1, 32, 32), 255, dtype=torch.uint8), "distance": torch.zeros(2, 1, 32, 32)}
    unknown = {"target.stain": torch.full((2, 1), math.nan)}
    assert task.loss(output, {**unlabelled, **unknown}).item() == pytest.approx(0, abs=1e-6)
    known = {"target.stain": torch.tensor([[0.0], [1.0]])}
    entropy = torch.nn.functional.cross_entropy(values, torch.tensor([0, 1])).item()
    assert task.loss(output, {**unlabelled, **known}).item() == pytest.approx(0.5 * entropy, rel=1e-4)
    label = torch.randint(0, 2, (2, 1, 32, 32), generator=generator, dtype=torch.uint8)
    drawn = {"label": label, "distance": label.float()}
    alone = task._mask.loss(maps, drawn).item()
    assert task.loss(output, {**drawn, **unknown}).item() == pytest.approx(2 * alone, rel=1e-5)


def test_one_network_finds_nuclei_and_tells_the_stain(spec: JobSpec, tmp_path: Path) -> None:
    cases = cases_of(spec, make_fields(tmp_path))
    trainer = Trainer(spec.plan(), cases, "here", _CPU)
    trainer.train(80)
    kept: list[tuple[str, Any]] = []
    found = trainer.evaluate(tuple(cases), detailed=True, keep=kept)
    task = trainer.task
    assert found.by_class["nuclei"] > 0.3
    assert found.by_class["stain"] > 0.8
    assert set(found.extra_metrics) >= {"f1.nuclei.nucleus", "iou.nuclei.nucleus", "dice.nuclei.nucleus"}
    assert len(found.behind["nuclei"]) == 9
    metrics, names = metrics_that_may_leave(spec.task), list(spec.task.classes.values())
    numbers = evaluation_numbers(found)
    assert is_evaluation(numbers, names, len(list(cases)), metrics, task.lowest_metric, task.parts)
    wrong = {**numbers["more"], "area.nuclei.nucleus": 0.5}
    assert not is_evaluation({**numbers, "more": wrong}, names, 12, metrics, task.lowest_metric, task.parts)
    # Two fields lack nuclei, too few for sums of the site to leave; these are of the head alone.
    known = [(patient, of) for patient, of in kept if not math.isnan(of.truths["nuclei"][0])]
    head, truths = sums_that_may_leave(spec.task)["nuclei"], np.ones((len(known), 1))
    sums = head.site_sums(np.stack([of.answers["nuclei"] for _, of in known]), truths, [name for name, _ in known])
    assert sums is not None
    assert head.is_site_sums(sums, 12)
    assert head.over_sites([sums]).figures["pq"].value == pytest.approx(found.by_class["nuclei"], abs=1e-3)
    assert details_of(spec.task)["nuclei"].asks == "each nucleus by itself"
    outcome = next(of for _, of in kept if not math.isnan(of.truths["nuclei"][0]))
    assert task.case_score(outcome) == pytest.approx(task.case_metrics(outcome)["nuclei.pq.nucleus"])
    masked = next(case for case in cases if isinstance(case.label, Path))
    picture = task.picture(trainer.network, masked, _CPU)
    assert picture.reference is not None
    assert picture.caption in ("stain, model: plain", "stain, model: striped")


def test_a_site_of_masks_and_one_of_stains_train_together(spec: JobSpec, tmp_path: Path) -> None:
    """What each site lacks it leaves to the other: the model of both finds nuclei and tells the stain."""
    outlined = without(make_fields(tmp_path / "outlined"), "targets")
    stained = without(make_fields(tmp_path / "stained"), "label")
    plan, federation = spec.plan(), spec.federation()
    sites = {
        name: InProcessSite(plan, federation, SiteContext(site=name, data=data, state=tmp_path / name))
        for name, data in (("outlined", outlined), ("stained", stained))
    }
    train_in_memory(plan, federation, sites, tmp_path / "server", record=lambda event: None)
    cases = cases_of(spec, make_fields(tmp_path / "all"))
    judge = Trainer(plan, cases, "judge", _CPU)
    judge.load_weights(load_file(tmp_path / "server" / MODELS_FOLDER / BEST_MODEL))
    found = judge.evaluate(tuple(cases))
    assert found.by_class["nuclei"] > 0.2
    assert found.by_class["stain"] > 0.8


def test_real_fields_of_two_stains(tmp_path: Path, real_data: Path) -> None:
    source, chosen = real_data / "nuclei", tmp_path / "in"
    with (source / "cases.csv").open() as table:
        rows = list(csv.DictReader(table))
    of_stain = [[row for row in rows if row["stain"] == stain][:6] for stain in ("he", "fluorescence")]
    few = [row for of in of_stain for row in of]
    for sub in ("images", "labels"):
        (chosen / sub).mkdir(parents=True)
        for row in few:
            (chosen / sub / row["image"]).symlink_to(source / sub / row["image"])
    (tmp_path / "stains.csv").write_text("\n".join(["image,stain", *(f"{row['image']},{row['stain']}" for row in few)]))
    targets = parse_targets(["stain=class:stain"])
    read(chosen, tmp_path / "set", task="segmentation", table=tmp_path / "stains.csv", targets=targets)
    (tmp_path / "job.yaml").write_text(
        JOB.replace("[plain, striped]", "[he, fluorescence]").replace("[32, 32]", "[64, 64]")
    )
    spec = read_job(tmp_path / "job.yaml")
    cases = cases_of(spec, tmp_path / "set")
    trainer = Trainer(spec.plan(), cases, "here", _CPU)
    before = trainer.train(5)
    assert trainer.train(20) < before
    found = trainer.evaluate(tuple(cases))
    assert found.by_class["stain"] > 0.9
    assert "nuclei" in found.by_class


def test_images_are_predicted_with_objects_and_answers(tmp_path: Path) -> None:
    folder = make_fields(tmp_path / "fields", 5)
    model = load_model(make_run(tmp_path / "run", JOB))
    out = tmp_path / "out"
    sources = gather([folder], out, model.job, tmp_path)
    found = predict(model, sources, out, _CPU, Options())
    write_page(found, sources, model, out, workers=1)
    assert len(found.made) == 5
    files = {path.name for path in (out / "cases" / "f3").iterdir()}
    assert {"f3_targets.json", "f3_objects.csv", "f3_objects.geojson", "f3_labels.tif"} <= files
    rows = {row["case"]: row for row in csv.DictReader((out / "targets.csv").open())}
    assert rows["f3"]["stain.answer"] in ("plain", "striped")
    measured = list(csv.DictReader((out / "measurements.csv").open()))
    assert {row["name"] for row in measured if row["case"] == "f3"} >= {"nucleus", "probability.striped"}
    evaluated = evaluate(EvaluationRequest(model, folder, split="all"), _CPU)
    assert {"nuclei", "stain"} <= set(evaluated.scores.by_class)
    assert "drawn beside other targets takes code" in export(model, "bundle", tmp_path / "bundle").agreement


def test_objects_beside_targets_are_of_one_kind(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(JOB.replace("{1: nucleus}", "{1: nucleus, 2: debris}"))
    with pytest.raises(SpecError, match=r"job\.yaml:6: targets\.0\.classes: .*at most 1"):
        read_job(tmp_path / "job.yaml")
