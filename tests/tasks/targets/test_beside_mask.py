"""A mask beside other targets: one network with a shared encoder, each case with any of them."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from discs import JOB, cases_of, job, make_discs
from oncofed.data.cases import Cases
from oncofed.data.contract import check_dataset
from oncofed.errors import SpecError
from oncofed.job.spec import JobSpec, read_job
from oncofed.models.shared_encoder import SharedEncoder
from oncofed.prediction.evaluation.evaluate import EvaluationRequest, evaluate
from oncofed.prediction.export.export import export
from oncofed.prediction.model import load_model
from oncofed.prediction.outputs.page import write_page
from oncofed.prediction.run import Options, predict
from oncofed.prediction.sources import gather
from oncofed.privacy.evaluations import evaluation_numbers, is_evaluation
from oncofed.tasks import metrics_that_may_leave, sums_that_may_leave
from oncofed.tasks.losses import dice_ce
from oncofed.tasks.over_sites import pooled_test
from oncofed.tasks.targets import MaskTargets, details_of
from oncofed.training import Trainer
from trained import make_run

_CPU = torch.device("cpu")


@pytest.fixture
def spec(tmp_path: Path) -> JobSpec:
    return job(tmp_path)


# --- network and loss


@pytest.mark.parametrize(
    "model",
    [
        "network: unet, channels: [4, 8, 16]",
        "network: segresnet, channels: [8, 16]",
        "network: dynunet, channels: [4, 8, 16, 16], deep_supervision: 1",
    ],
)
@pytest.mark.parametrize("patch", ["32, 32", "16, 16, 16"])
def test_the_head_learns_from_the_encoder_alone(tmp_path: Path, model: str, patch: str) -> None:
    (tmp_path / "job.yaml").write_text(
        JOB.replace("network: unet, channels: [8, 16, 32], residual_units: 1", model).replace("32, 32]}", f"{patch}]}}")
    )
    plan = read_job(tmp_path / "job.yaml").plan()
    network = plan.try_network()
    assert isinstance(network, SharedEncoder)
    task = plan.build_task()
    image, whole = (torch.randn(2, 1, *plan.data.patch) for _ in range(2))
    output = network.train()(image, whole)
    maps = task.maps(output)
    assert maps.shape == (2, *([2] if "dynunet" in model else []), 3, *plan.data.patch)
    assert torch.equal(maps, network(image))
    assert torch.equal(output[:, -3:], network.values(whole))
    network.zero_grad()
    network.values(whole).sum().backward()
    reached = {name for name, value in network.named_parameters() if value.grad is not None and value.grad.any()}
    assert reached & {"head.weight"}
    assert any(name.startswith("network.") for name in reached)
    assert not any("up_layers" in name or "upsamples" in name or "output_block" in name for name in reached)


def test_the_loss_is_the_weighted_sum_and_what_a_case_lacks_is_zero(spec: JobSpec) -> None:
    task = spec.plan().build_task()
    assert isinstance(task, MaskTargets)
    generator = torch.Generator().manual_seed(1)
    label = torch.randint(0, 3, (2, 1, 32, 32), generator=generator, dtype=torch.uint8)
    maps = torch.randn(2, 3, 32, 32, generator=generator)
    values = torch.tensor([[0.5, 0.0, 1.0], [0.2, 1.0, 0.0]])
    output = torch.cat([maps.flatten(1), values], 1)
    known = {"target.radius": torch.tensor([[9.0], [12.5]]), "target.striped": torch.tensor([[1.0], [0.0]])}
    nothing = {name: torch.full_like(value, math.nan) for name, value in known.items()}
    drawn = task.loss(output, {"label": label, **nothing})
    assert drawn.item() == pytest.approx(2 * dice_ce(maps, label).item(), rel=1e-5)
    unlabelled = {"label": torch.full_like(label, 255)}
    assert task.loss(output, {**unlabelled, **nothing}).item() == pytest.approx(0, abs=1e-6)
    radius = ((0.5 - 0) ** 2 + (0.2 - 0.5) ** 2) / 2
    entropy = torch.nn.functional.cross_entropy(values[:, 1:], torch.tensor([1, 0])).item()
    assert task.loss(output, {**unlabelled, **known}).item() == pytest.approx(radius + 0.5 * entropy, rel=1e-4)
    both = task.loss(output, {"label": label, **known}).item()
    assert both == pytest.approx(drawn.item() + radius + 0.5 * entropy, rel=1e-4)


# --- data


def test_a_case_may_have_any_of_them(spec: JobSpec, tmp_path: Path) -> None:
    folder = make_discs(tmp_path / "set")
    plan = spec.plan()
    found = {case.name: case for case in cases_of(spec, folder)}
    assert len(found) == 24
    assert "nothing" not in found
    assert isinstance(found["01"].label, Path)
    assert found["04"].label == 0, "it has no mask"
    assert np.isnan(found["05"].targets["radius"]).all()
    report = check_dataset(folder, plan.data, plan.supervision(), plan.seed)
    assert report.may_train, report.why_not
    rows = {row.aspect: row.found for row in report.rows}
    assert rows["masks"] == "18 of 25 cases have one"
    assert rows["labels"] == "1 rim, 2 heart"
    assert rows["radius"].startswith("19 of 25 patients have it")
    values = json.loads((folder / "dataset.json").read_text())
    for entry in values["training"]:
        entry.pop("targets", None)
    (folder / "dataset.json").write_text(json.dumps(values))
    masks_alone = list(cases_of(spec, folder))
    assert len(masks_alone) == 18, "a site with masks alone takes part"
    assert check_dataset(folder, plan.data, plan.supervision(), plan.seed).may_train
    (folder / "dataset.json").write_text(json.dumps({**values, "labels": {"1": "rim", "2": "liver"}}))
    assert not check_dataset(folder, plan.data, plan.supervision(), plan.seed).may_train


def test_a_patch_of_a_case_without_a_mask_is_unlabelled(spec: JobSpec, tmp_path: Path) -> None:
    cases = {case.name: case for case in cases_of(spec, make_discs(tmp_path / "set"))}
    source = spec.plan().build_task().input("none")
    generator = torch.Generator().manual_seed(1)
    for name, held in (("01", {0, 1, 2}), ("04", {255})):
        prepared = source.prepare(cases[name]) | source.beside_image(cases[name])
        drawn = source.draw(prepared, generator)
        assert set(drawn["label"].unique().tolist()) <= held
        assert drawn["image"].shape == drawn["whole"].shape == (1, 32, 32)
        assert not any(key.startswith("centres") for key in drawn)
    assert source.settings_of(cases["01"]) != source.settings_of(cases["04"])


def test_a_mask_beside_targets_may_be_partial_and_of_regions(tmp_path: Path) -> None:
    regions = "classes: {1: rim, 2: heart}, partial: true, regions: {whole: [1, 2], heart: [2]}, distillation: 0.5"
    spec = job(tmp_path, "classes: {1: rim, 2: heart}", regions)
    folder = make_discs(tmp_path / "set")
    values = json.loads((folder / "dataset.json").read_text())
    values["training"][1]["looked_for"], values["training"][2]["looked_for"] = ["whole"], []
    (folder / "dataset.json").write_text(json.dumps(values))
    cases = {case.name: case for case in cases_of(spec, folder)}
    assert cases["01"].alike == (0, 1, 1)
    assert cases["02"].label == 0, "nobody looked for anything in its mask, and its targets are used"
    trainer = Trainer(spec.plan(), Cases((cases["01"], cases["04"], cases["05"]), (), ()), "here", _CPU)
    trainer.hold_as_teacher()
    assert math.isfinite(trainer.train(2))
    found = trainer.evaluate((cases["01"], cases["03"]))
    assert set(found.by_class) >= {"disc", "disc.whole", "disc.heart"}
    assert len(found.behind["disc.heart"]) == 1


# --- training, scores and what leaves


def test_one_network_draws_and_answers_and_only_declared_figures_leave(spec: JobSpec, tmp_path: Path) -> None:
    cases = cases_of(spec, make_discs(tmp_path / "set"))
    trainer = Trainer(spec.plan(), cases, "here", _CPU)
    trainer.train(120)
    kept: list[tuple[str, Any]] = []
    found = trainer.evaluate(tuple(cases), detailed=True, keep=kept)
    task = trainer.task
    assert found.by_class["disc.heart"] > 0.7
    assert found.by_class["radius"] > 0.6
    assert found.by_class["striped"] > 0.9
    assert found.mean == pytest.approx(np.mean([found.by_class[name] for name in ("disc", "radius", "striped")]))
    assert len(found.behind["disc"]) == 18
    assert len(found.behind["striped"]) == 12, "of a comparison, the smaller group"
    assert "hd95_mm.disc.heart" in found.extra_metrics
    metrics, names = metrics_that_may_leave(spec.task), list(spec.task.classes.values())
    numbers = evaluation_numbers(found)
    assert numbers["by_class"]["disc"] == pytest.approx(found.by_class["disc"], abs=1e-4)
    assert is_evaluation(numbers, names, 24, metrics, task.lowest_metric, task.parts)
    assert not is_evaluation(
        {**numbers, "more": {**numbers["more"], "hd95_mm.disc.x": 1.0}}, names, 24, metrics, -1, task.parts
    )
    assert trainer.task.case_score(kept[0][1]) is not None or math.isnan(kept[0][1].truths["disc"][0])
    masked = next(case for case in cases if isinstance(case.label, Path))
    picture = task.picture(trainer.network, masked, _CPU)
    assert picture.reference is not None
    assert "radius, model: " in picture.caption
    bare = next(case for case in cases if case.label == 0)
    assert task.picture(trainer.network, bare, _CPU).reference is None
    # Sums over the patients of all sites: in their form alone, and of five patients or more.
    sums = task.pooled(kept)
    assert sums is not None
    declared = sums_that_may_leave(spec.task)
    told = sums["targets"]["disc"]
    assert declared["disc"].is_site_sums(told, 24)
    pooled = pooled_test({"here": sums}, ["here"], declared)
    assert pooled is not None
    assert pooled.targets["disc"].figures["dice"].value == pytest.approx(found.by_class["disc"], abs=1e-3)
    assert pooled.targets["disc"].figures["dice.heart"].patients == 18
    for wrong in (
        {**told, "names": ["a"]},
        {**told, "figures": {**told["figures"], "liver": [18, 9.0, 8.0]}},
        {**told, "figures": {**told["figures"], "rim": [4, 2.0, 2.0]}},
        {**told, "figures": {**told["figures"], "rim": [15, 2.0, 2.0]}},
        {**told, "figures": {**told["figures"], "rim": [18, 19.0, 2.0]}},
        {**told, "figures": {**told["figures"], "rim": [18, 2.123456, 2.0]}},
    ):
        assert not declared["disc"].is_site_sums(wrong, 24)
    assert declared["disc"].withhold(told, 19) is None
    details = details_of(spec.task)
    assert details["disc"].asks == "contours of rim, heart"
    assert [details[name].drawn for name in ("disc", "radius")] == [["rim", "heart"], []]


def test_real_volumes_are_drawn_and_measured(tmp_path: Path, real_data: Path) -> None:
    """The value is how many millilitres the drawn structure has, which the volume's image tells."""
    source = real_data / "hippocampus"
    entries = []
    for entry in json.loads((source / "dataset.json").read_text())["training"][:8]:
        image, label = (str(source / entry[name]) for name in ("image", "label"))
        volume = nib.load(label)
        millilitres = float((np.asarray(volume.dataobj) > 0).sum() * np.prod(volume.header.get_zooms()[:3]) / 1000)
        entries.append({"image": image, "label": label, "targets": {"volume": millilitres}})
    folder = tmp_path / "set"
    folder.mkdir()
    for sub in ("imagesTr", "labelsTr"):
        (folder / sub).symlink_to(source / sub)
    for entry in entries:
        entry |= {name: str(Path(entry[name]).relative_to(source)) for name in ("image", "label")}
    labels = {"1": "anterior", "2": "posterior"}
    declared = {"volume": {"kind": "value", "unit": "ml"}}
    (folder / "dataset.json").write_text(json.dumps({"labels": labels, "targets": declared, "training": entries}))
    text = JOB.replace("channels: [grey], patch: [32, 32]", "patch: [32, 48, 32], spacing: [1, 1, 1]")
    text = text.replace("modality: microscopy", "modality: mri").replace(
        "{1: rim, 2: heart}", "{1: anterior, 2: posterior}"
    )
    text = text.replace(
        "{name: radius, kind: value, unit: px, range: [2, 16]}",
        "{name: volume, kind: value, unit: ml, range: [0.5, 8]}",
    )
    text = text.replace('  - {name: striped, kind: class, classes: ["no", "yes"], weight: 0.5}\n', "").replace(
        "batch_size: 8", "batch_size: 2"
    )
    (tmp_path / "job.yaml").write_text(text)
    spec = read_job(tmp_path / "job.yaml")
    cases = cases_of(spec, folder)
    trainer = Trainer(spec.plan(), cases, "here", _CPU)
    before = trainer.train(2)
    assert trainer.train(8) < before
    found = trainer.evaluate(cases.train)
    assert set(found.by_class) == {"disc", "disc.anterior", "disc.posterior", "volume"}


# --- use


def test_images_are_drawn_with_their_answers_in_a_table(tmp_path: Path) -> None:
    folder = make_discs(tmp_path / "set", 12)
    model = load_model(make_run(tmp_path / "run", JOB))
    out = tmp_path / "out"
    sources = gather([folder], out, model.job, tmp_path)
    found = predict(model, sources, out, _CPU, Options())
    write_page(found, sources, model, out, workers=1)
    assert len(found.made) == 13
    rows = {row["case"]: row for row in csv.DictReader((out / "targets.csv").open())}
    assert float(rows["03"]["radius.value_px"]) >= 2
    assert rows["05"].get("radius.stated", "") == ""
    assert rows["03"]["striped.answer"] in ("no", "yes")
    files = {path.name for path in (out / "cases" / "03").iterdir()}
    assert "03_targets.json" in files
    assert any(name.startswith("03") and name.endswith(".png") for name in files)
    measured = list(csv.DictReader((out / "measurements.csv").open()))
    assert {row["name"] for row in measured if row["case"] == "03"} >= {"rim", "heart", "value_px"}
    evaluated = evaluate(EvaluationRequest(model, folder, split="all"), _CPU)
    assert {"disc", "disc.rim", "radius", "striped"} <= set(evaluated.scores.by_class)
    assert "drawn beside other targets takes code of oncofed" in export(model, "bundle", tmp_path / "bundle").agreement
    with pytest.raises(SpecError, match="an ONNX file would hold one of them alone"):
        export(model, "onnx", tmp_path / "onnx")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("kind: mask, classes: {1: rim, 2: heart}", "kind: boxes, classes: {1: rim}"),
            r"job\.yaml:6: targets\.0: boxes are learned alone, .*RetinaNet.* Make it another job; .* objects or mask",
        ),
        (("network: unet, channels: [8, 16, 32], residual_units: 1", "network: densenet121"), "needs a network"),
        (("{1: rim, 2: heart}", "{2: rim}"), r"job\.yaml:6: targets\.0\.classes: label values are"),
        (
            ("{name: radius, kind: value, unit: px, range: [2, 16]}", "{name: rest, kind: mask, classes: {1: a}}"),
            "2 targets",
        ),
        (
            ("model: {network: unet,", "task: {type: slide_segmentation}\nmodel: {network: unet,"),
            "task.type: found 'slide_segmentation'.* not on whole slides: leave type out, or make it another job",
        ),
    ],
)
def test_what_cannot_be_learned_together_is_refused(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        job(tmp_path, *change)


def test_a_network_of_an_unknown_encoder_is_refused(tmp_path: Path) -> None:
    spec = job(tmp_path, "network: unet, channels: [8, 16, 32], residual_units: 1", "network: swinunetr")
    with pytest.raises(SpecError, match="swinunetr shares its encoder with no other target; expected one of unet"):
        spec.plan().build_network()


def test_the_job_says_the_same_after_it_was_written_and_read(spec: JobSpec) -> None:
    written = spec.plan().model_dump(mode="json")
    assert type(spec.plan()).model_validate(written) == spec.plan()
