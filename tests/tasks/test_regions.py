"""Regions that overlap: learned each by itself, scored each by itself, and written as label values in an order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from oncofed.data.cases import usable_cases
from oncofed.data.contract import check_dataset
from oncofed.data.register import RegisterOptions, register
from oncofed.errors import DataError, SpecError
from oncofed.job.spec import JobSpec, read_job
from oncofed.tasks.decisions import in_order
from oncofed.tasks.losses import dice_bce
from oncofed.tasks.overlap import confusion, dice
from oncofed.training import Trainer
from synthetic import JOB, make_site

TASK = "task: {type: regions, classes: {1: shell, 2: core}, regions: {ball: [1, 2], core: [2]}}"
NNUNET = {"background": 0, "Ball": [1, 2], "core": [2]}
_CPU = torch.device("cpu")


def job(folder: Path, task: str = TASK) -> JobSpec:
    old = "task: {type: segmentation, classes: {1: shell, 2: core}}"
    assert old in JOB
    (folder / "job.yaml").write_text(JOB.replace(old, task))
    return read_job(folder / "job.yaml")


def named(folder: Path, labels: dict[str, Any]) -> Path:
    values = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**values, "labels": labels}))
    return folder


class _Says(nn.Module):
    """Says where the image is brighter than a half, and than one and a half."""

    def forward(self, image: Tensor) -> Tensor:
        return torch.cat([image - 0.5, image - 1.5], 1)


@pytest.mark.parametrize("ignored", [False, True])
def test_the_loss_is_dice_with_binary_cross_entropy_by_region(tmp_path: Path, ignored: bool) -> None:
    task = job(tmp_path, TASK.replace("regions,", "regions, ignore: 3,") if ignored else TASK).plan().build_task()
    generator = torch.Generator().manual_seed(1)
    label = torch.randint(0, 4 if ignored else 3, (2, 1, 4, 4, 4), generator=generator, dtype=torch.uint8)
    logits = torch.randn(2, 2, 4, 4, 4, generator=generator)
    expected = []
    for values, target in zip(logits, label[:, 0], strict=True):
        for found, wanted in zip(values.sigmoid(), (target > 0, target == 2), strict=True):
            p, t = found[target != 3], wanted[target != 3].float()
            entropy = -(t * p.log() + (1 - t) * (1 - p).log()).mean()
            expected.append(entropy + 1 - (2 * (p * t).sum() + 1e-5) / ((p**2).sum() + t.sum() + 1e-5))
    assert task.loss(logits, {"label": label}).item() == pytest.approx(float(torch.stack(expected).mean()), rel=1e-5)
    stacked = torch.stack([logits, logits], 1)
    assert task.loss(stacked, {"label": label}).item() == pytest.approx(float(torch.stack(expected).mean()), rel=1e-5)


def test_the_loss_of_what_is_right_is_nearly_zero() -> None:
    member = torch.rand(2, 3, 5, 5, generator=torch.Generator().manual_seed(1)) > 0.5
    assert dice_bce(40 * member.float() - 20, member).item() == pytest.approx(0, abs=1e-4)


def test_a_later_region_is_written_over_an_earlier_one() -> None:
    decision = in_order((3, 1))
    logits = torch.tensor([[-1.0, 2.0, 2.0, -1.0], [-1.0, -1.0, 1.0, 1.0]])
    assert decision.labels(logits, True).tolist() == [[0, 3, 1, 1]]
    assert decision.labels(logits.sigmoid(), False).tolist() == [[0, 3, 1, 1]]
    both = decision.of(True, True)(torch.tensor([[0.0], [9.0]]))
    assert both.tolist() == [[1], [255]], "of the region that is least sure"


def test_regions_are_scored_each_by_itself(tmp_path: Path) -> None:
    spec, folder = job(tmp_path), make_site(tmp_path / "set")
    plan = spec.plan()
    task = plan.build_task()
    case = usable_cases(folder, plan.data, plan.supervision(), plan.seed, "here").cases.train[0]
    figures = task.evaluate_case(_Says(), case, _CPU, detailed=True)
    found, truth = task.predict(_Says(), case, _CPU).prediction, case.read_label().values[..., 0]  # type: ignore[attr-defined]
    for name, values in {"ball": (1, 2), "core": (2,)}.items():
        p, r = np.isin(found, values), np.isin(truth, values)
        assert figures[f"dice.{name}"] == pytest.approx(2 * (p & r).sum() / (p.sum() + r.sum()))
        assert f"surface_dice.{name}" in figures
    assert {key.partition(".")[2] for key in figures} == {"ball", "core"}
    assert task.figure_names == ["ball", "core"]
    assert task.summarise([("a", figures)]).by_class.keys() == {"ball", "core"}
    counts = confusion(torch.from_numpy(found), torch.from_numpy(truth.astype(np.uint8)), 3)
    assert dice(counts, (1, 2)) == pytest.approx(figures["dice.ball"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("core: [2]}}", "core: [3]}}"), r"region core has the values \[3\], expected some of \[1, 2\]"),
        (("ball: [1, 2], core: [2]", "core: [2], ball: [1, 2]"), None),
        (("ball: [1, 2], core: [2]", "ball: [1, 2], same: [1, 2]"), "region ball has 0 label values that no later"),
        (("ball: [1, 2], core: [2]", "core: [2]"), r"no region has the label values \[1\]"),
        (("core: [2]}}", "core: [2]}, regions_class_order: [1, 1]}"), r"regions_class_order is \[1, 1\]"),
        (
            ("regions: {ball: [1, 2], core: [2]}", "partial: true, regions: {core: [1, 2], ball: [2]}"),
            "core is a region and a class that is less",
        ),
    ],
)
def test_regions_that_cannot_be_told_apart_are_refused(
    tmp_path: Path, change: tuple[str, str], message: str | None
) -> None:
    task = TASK.replace(*change)
    assert task != TASK
    with pytest.raises(SpecError, match=message or "has 0 label values that no later region has"):
        job(tmp_path, task)


def test_a_target_of_kind_mask_may_have_regions(tmp_path: Path) -> None:
    targets = TASK.replace("task: {type: regions,", "targets: [{name: ball, kind: mask,") + "]"
    assert job(tmp_path, targets).task == job(tmp_path).task


def test_nnunets_regions_name_the_values_of_a_dataset(tmp_path: Path) -> None:
    spec, folder = job(tmp_path), named(make_site(tmp_path / "set"), NNUNET)
    plan = spec.plan()
    assert check_dataset(folder, plan.data, plan.supervision(), plan.seed).may_train
    other = job(tmp_path, TASK.replace("core", "heart"))
    with pytest.raises(DataError, match=r"regions that overlap: 2 is of Ball and core.*task\.type: regions"):
        usable_cases(folder, other.data, other.plan().supervision(), 1, "here")


def test_old_numbers_of_the_same_regions_become_the_jobs(tmp_path: Path) -> None:
    folder = named(make_site(tmp_path / "set"), {"background": 0, "ball": [1, 4], "core": [4]})
    for path in (folder / "labelsTr").iterdir():
        mask = nib.load(path)
        values = np.asarray(mask.dataobj).copy()
        values[values == 2] = 4
        nib.save(nib.Nifti1Image(values, mask.affine), path)
    plan = job(tmp_path).plan()
    case = usable_cases(folder, plan.data, plan.supervision(), plan.seed, "here").cases.train[0]
    assert set(np.unique(case.read_label().values)) == {0, 1, 2}


def test_a_registered_folder_trains_and_its_bundle_answers_with_monai_alone(tmp_path: Path) -> None:
    register(RegisterOptions(named(make_site(tmp_path / "in", 8), NNUNET), "balls", tmp_path / "set"))
    plan = job(tmp_path).changed({"training": {"steps_per_round": 60}}).plan()
    cases = usable_cases(tmp_path / "set", plan.data, plan.supervision(), plan.seed, "here").cases
    trainer = Trainer(plan, cases, "here", _CPU)
    trainer.train(60)
    evaluation = trainer.evaluate(cases.test, detailed=True)
    assert evaluation.by_class["ball"] > 0.7
    bundle = plan.write_bundle(tmp_path, "Balls", trainer.weights())
    images = tmp_path / "images"
    images.mkdir()
    case = cases.test[0]
    (images / "case.nii.gz").write_bytes(case.image.read_bytes())
    monai.bundle.run(
        config_file=str(bundle / "configs" / "inference.json"),
        bundle_root=str(bundle),
        dataset_dir=str(images),
        output_dir=str(tmp_path / "out"),
    )
    answer = np.asarray(nib.load(tmp_path / "out" / "case_seg.nii.gz").dataobj)
    mine = trainer.task.predict(trainer.network, case, _CPU).prediction  # type: ignore[attr-defined]
    assert (answer == mine).mean() > 0.999
    assert mine.any()
