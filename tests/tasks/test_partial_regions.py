"""Regions that overlap, of which some were not looked for: in names, loss, scores and pictures."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from oncofed.data.case import Case
from oncofed.data.cases import Cases, usable_cases
from oncofed.data.contract import check_dataset
from oncofed.data.label_mapping import Supervision, match
from oncofed.data.looked_for import alike_by, tells
from oncofed.data.manifest import read_manifest
from oncofed.errors import DataError
from oncofed.job.spec import JobSpec, read_job
from oncofed.tasks.losses import conditional_divergence, dice_bce
from oncofed.tasks.region_losses import PartialLabel, marginal_dice_bce, regional_divergence
from oncofed.training import Trainer
from synthetic import JOB, make_site

_CPU = torch.device("cpu")
# As BraTS has them: oedema, necrosis, enhancing.
REGIONS = {"whole": (1, 2, 3), "core": (2, 3), "enhancing": (3,)}
MEMBERS = torch.tensor([[value in values for values in REGIONS.values()] for value in range(4)])
TASK = "task: {type: regions, partial: true, classes: {1: rim, 2: heart}, regions: {ball: [1, 2], core: [2]}}"


@pytest.mark.parametrize(
    ("sought", "alike", "told"),
    [
        (REGIONS.values(), None, {"whole", "core", "enhancing"}),
        ([(1, 2, 3)], (0, 1, 1, 1), {"whole"}),
        ([(3,)], (0, 0, 0, 3), {"enhancing"}),
        ([(2, 3), (3,)], (0, 0, 2, 3), {"core", "enhancing"}),
        ([(1,)], (0, 1, 0, 0), set()),
        ([], (0, 0, 0, 0), set()),
    ],
)
def test_what_was_looked_for_tells_label_values_apart(
    sought: Any, alike: tuple[int, ...] | None, told: set[str]
) -> None:
    assert alike_by(sought, 4) == alike
    assert {name for name, values in REGIONS.items() if tells(alike, values)} == told


# --- loss


def drawn(alike: list[tuple[int, ...]]) -> tuple[Tensor, PartialLabel]:
    """Return logits of three regions, and masks in which some label values are not told apart."""
    generator = torch.Generator().manual_seed(1)
    label = torch.randint(0, 4, (len(alike), 1, 5, 4), generator=generator)
    rows = torch.tensor(alike)
    label = rows.gather(1, label.flatten(1)).reshape(label.shape)
    logits = 2 * torch.randn(len(alike), 3, 5, 4, generator=generator, dtype=torch.float64)
    return logits, PartialLabel(label, rows, MEMBERS)


def as_written(logits: Tensor, partial: PartialLabel) -> Tensor:
    """Return the marginal loss voxel by voxel, of all label values that each may have."""
    losses = []
    for values, label, alike in zip(logits, partial.label[:, 0], partial.alike.tolist(), strict=True):
        p, entropy, dices = values.sigmoid(), [], []
        for at in itertools.product(*map(range, label.shape)):
            likely = torch.zeros((), dtype=p.dtype)
            for value, least in enumerate(alike):
                if least == alike[int(label[at])]:
                    terms = [
                        q if member else 1 - q for q, member in zip(p[(slice(None), *at)], MEMBERS[value], strict=True)
                    ]
                    likely = likely + torch.stack(terms).prod()
            entropy.append(-likely.log() / 3)
        for number, of in enumerate(REGIONS.values()):
            if tells(alike, of):
                wanted = torch.isin(label, torch.tensor(of)).to(p.dtype)
                sizes = p[number].square().sum() + wanted.sum()
                dices.append(1 - (2 * (p[number] * wanted).sum() + 1e-5) / (sizes + 1e-5))
        losses.append(torch.stack(entropy).mean() + (torch.stack(dices).mean() if dices else 0))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("alike", [[(0, 1, 1, 1), (0, 0, 2, 3)], [(0, 1, 2, 3), (0, 1, 0, 0)]])
def test_value_and_gradient_are_those_of_the_marginal_loss(alike: list[tuple[int, ...]]) -> None:
    logits, partial = drawn(alike)
    one, other = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss, expected = marginal_dice_bce(one, partial), as_written(other, partial)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-9)
    torch.testing.assert_close(torch.autograd.grad(loss, one)[0], torch.autograd.grad(expected, other)[0])


def test_where_all_is_known_it_is_the_usual_loss() -> None:
    logits, partial = drawn([(0, 1, 2, 3)] * 2)
    member = MEMBERS[partial.label[:, 0]].movedim(-1, 1)
    assert marginal_dice_bce(logits, partial).item() == pytest.approx(dice_bce(logits, member).item(), rel=1e-9)
    ignored = PartialLabel(partial.label.where(partial.label != 1, torch.tensor(4)), partial.alike, MEMBERS, 4)
    usual = dice_bce(logits, member, partial.label != 1)
    assert marginal_dice_bce(logits, ignored).item() == pytest.approx(usual.item(), rel=1e-9)


def test_where_the_whole_alone_was_drawn_nothing_is_said_of_its_parts() -> None:
    logits, partial = drawn([(0, 1, 1, 1)])
    values = logits.requires_grad_()
    (gradient,) = torch.autograd.grad(marginal_dice_bce(values, partial), values)
    inside = partial.label[0, 0] > 0
    assert gradient[0, 0].ne(0).all()
    # Of what is outside all regions are known: each is a part of the whole.
    assert gradient[0, 1:][:, ~inside].ne(0).all()
    # Inside, the three values are as likely as they may be: only that core without enhancing's lack is none of them.
    alone = logits.detach().clone()
    alone[0, 0], alone[0, 1], alone[0, 2] = 20, -20, -20
    whole_of_oedema = marginal_dice_bce(torch.where(inside, alone, -20.0), partial)
    alone[0, 1:] = 20
    whole_of_enhancing = marginal_dice_bce(torch.where(inside, alone, -20.0), partial)
    assert whole_of_oedema.item() == pytest.approx(0, abs=1e-4)
    assert whole_of_enhancing.item() == pytest.approx(0, abs=1e-4)


def test_two_values_of_the_same_regions_count_once() -> None:
    members = torch.tensor([[False], [True], [True]])
    label = torch.randint(0, 2, (1, 1, 6, 6), generator=torch.Generator().manual_seed(1))
    logits = torch.randn(1, 1, 6, 6, generator=torch.Generator().manual_seed(2))
    merged = PartialLabel(label, torch.tensor([[0, 1, 1]]), members)
    assert marginal_dice_bce(logits, merged).item() == pytest.approx(dice_bce(logits, label > 0).item(), rel=1e-5)


def test_the_teacher_says_which_of_the_values_that_nobody_told_apart() -> None:
    logits, partial = drawn([(0, 1, 1, 1), (0, 1, 2, 3)])
    teacher = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    values = logits.requires_grad_()
    found = regional_divergence(values, teacher, partial)
    (gradient,) = torch.autograd.grad(found, values)
    assert found > 0
    assert gradient[1].eq(0).all(), "of that sample all is known"
    assert gradient[0, :, partial.label[0, 0] == 0].eq(0).all(), "what is outside is known"
    assert regional_divergence(logits, logits, partial).item() == pytest.approx(0, abs=1e-12)
    # Of label values with logits of their own it is the divergence of classes.
    one, other = (partial.log_probabilities(values).reshape(2, 4, 5, 4) for values in (logits, teacher))
    classes = PartialLabel(partial.label * 0, torch.tensor([[0, 0, 2, 0]] * 2), MEMBERS)
    known = torch.tensor([[True, False, True, False]] * 2)
    expected = conditional_divergence(one, other, classes.label, known)
    assert regional_divergence(logits, teacher, classes).item() == pytest.approx(expected.item())


# --- data


@pytest.fixture
def spec(tmp_path: Path) -> JobSpec:
    (tmp_path / "job.yaml").write_text(JOB.replace("task: {type: segmentation, classes: {1: shell, 2: core}}", TASK))
    return read_job(tmp_path / "job.yaml")


def site(folder: Path, labels: dict[str, str], looked_for: dict[int, list[str]] | None = None, only: int = 0) -> Path:
    """Write a site: names of its labels, what was looked for in some cases, and a mask of one value alone."""
    make_site(folder)
    values = json.loads((folder / "dataset.json").read_text())
    values["labels"] = {"0": "background", **labels}
    for number, names in (looked_for or {}).items():
        values["training"][number]["looked_for"] = names
    (folder / "dataset.json").write_text(json.dumps(values))
    for path in (folder / "labelsTr").iterdir() if only else ():
        mask = nib.load(path)
        drawn = (np.asarray(mask.dataobj) >= only).astype(np.uint8)
        nib.save(nib.Nifti1Image(drawn, mask.affine), path)
    return folder


def cases_of(spec: JobSpec, folder: Path) -> Cases:
    plan = spec.plan()
    return usable_cases(folder, plan.data, plan.supervision(), plan.seed, "here").cases


@pytest.mark.parametrize(
    ("labels", "only", "alike", "held", "rows"),
    [
        ({"1": "Ball"}, 1, (0, 1, 1), {0, 1}, ("6 of 6", "0 of 6")),
        ({"1": "core"}, 2, (0, 0, 2), {0, 2}, ("0 of 6", "6 of 6")),
        ({"1": "ball", "2": "ball + core"}, 0, None, {0, 1, 2}, ("6 of 6", "6 of 6")),
        ({"1": "rim", "2": "heart"}, 0, None, {0, 1, 2}, ("6 of 6", "6 of 6")),
        ({"1": "rim"}, 0, (0, 1, 0), {0, 1}, ("0 of 6", "0 of 6")),
    ],
)
def test_a_site_may_name_some_regions_alone(
    spec: JobSpec,
    tmp_path: Path,
    labels: dict[str, str],
    only: int,
    alike: tuple[int, ...] | None,
    held: set[int],
    rows: tuple[str, str],
) -> None:
    folder = site(tmp_path / "set", labels, only=only)
    if labels == {"1": "rim"}:
        for path in (folder / "labelsTr").iterdir():
            mask = nib.load(path)
            nib.save(nib.Nifti1Image((np.asarray(mask.dataobj) == 1).astype(np.uint8), mask.affine), path)
    case = cases_of(spec, folder).train[0]
    assert case.alike == alike
    assert set(np.unique(case.read_label().values)) == held
    plan = spec.plan()
    report = check_dataset(folder, plan.data, plan.supervision(), plan.seed)
    assert report.may_train
    found = {row.aspect: row.found for row in report.rows}
    assert found["ball (1, 2)"] == f"looked for in {rows[0]} patients"
    assert found["core (2)"] == f"looked for in {rows[1]} patients"


def test_cases_of_one_site_differ_in_the_regions_that_were_looked_for(spec: JobSpec, tmp_path: Path) -> None:
    labels = {"1": "ball", "2": "ball + core"}
    folder = site(tmp_path / "set", labels, {0: ["ball"], 1: [], 2: ["ball", "core"], 3: ["Core"], 4: ["ball + core"]})
    found = {case.name: case for case in cases_of(spec, folder)}
    assert "case_1" not in found, "nobody looked for anything there"
    assert [found[f"case_{n}"].alike for n in (0, 2, 3, 4, 5)] == [(0, 1, 1), None, (0, 0, 2), None, None]
    assert set(np.unique(found["case_0"].read_label().values)) == {0, 1}, "its core is not told from the rest"
    # A site whose labels are classes may say of a case that a region was looked for.
    classes = site(tmp_path / "classes", {"1": "rim", "2": "heart"}, {0: ["ball"], 1: ["heart"], 2: ["rim"]})
    found = {case.name: case for case in cases_of(spec, classes)}
    assert [found[f"case_{n}"].alike for n in (0, 1, 2, 3)] == [(0, 1, 1), (0, 0, 2), (0, 1, 0), None]
    with pytest.raises(DataError, match="looked_for names liver, which no label of the dataset is called: known are"):
        cases_of(spec, site(tmp_path / "strange", labels, {0: ["liver"]}))


def test_a_job_that_does_not_say_so_refuses_a_lack(tmp_path: Path) -> None:
    text = TASK.replace("partial: true, ", "")
    (tmp_path / "job.yaml").write_text(JOB.replace("task: {type: segmentation, classes: {1: shell, 2: core}}", text))
    spec = read_job(tmp_path / "job.yaml")
    labels = {"1": "ball", "2": "ball + core"}
    with pytest.raises(DataError, match=r"nobody looked for core in its mask.*task\.partial: true"):
        cases_of(spec, site(tmp_path / "set", labels, {n: ["ball"] for n in range(6)}))
    assert len(list(cases_of(spec, site(tmp_path / "full", labels, {n: ["ball", "core"] for n in range(6)})))) == 6


@pytest.mark.parametrize(
    ("labels", "partial", "how", "problem"),
    [
        ({"whole": 1}, True, "whole (1): edema, necrosis or active, not told apart", ""),
        ({"edema": 1, "core": 2}, True, "core (2): necrosis or active, not told apart", ""),
        ({"whole": [1, 2, 4], "core": [2, 4], "enhancing": [4]}, True, "whole + core (2) becomes necrosis (2)", ""),
        ({"whole": 1}, False, "", "Say in the job that masks may lack regions: task.partial: true"),
        ({"whole": [1, 2], "core": [2]}, False, "", "which do not tell active from the others"),
        ({"edema": 1}, False, "", "no label of the dataset stands for necrosis, active"),
    ],
)
def test_what_regions_do_not_tell_apart_is_said(
    labels: dict[str, int | list[int]], partial: bool, how: str, problem: str, tmp_path: Path
) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"background": 0, **labels}, "training": []}))
    classes = {1: "edema", 2: "necrosis", 3: "active"}
    found = match(read_manifest(tmp_path), Supervision(classes=classes, regions=REGIONS, partial=partial))
    assert not how or how in found.how
    assert problem in "; ".join(found.problems)
    assert bool(found.problems) == bool(problem)


# --- scores


class _Says(nn.Module):
    """Says where the image is brighter than a half, and than one and a half."""

    def forward(self, image: Tensor) -> Tensor:
        return torch.cat([image - 0.5, image - 1.5], 1)


def test_a_region_that_was_not_looked_for_has_no_score_and_is_not_wrong(spec: JobSpec, tmp_path: Path) -> None:
    labels = {"1": "ball", "2": "ball + core"}
    task = spec.plan().build_task()
    cases = {case.name: case for case in cases_of(spec, site(tmp_path / "set", labels, {0: ["ball"], 1: ["core"]}))}
    whole: Case = cases["case_0"]
    figures: Any = {name: task.evaluate_case(_Says(), case, _CPU, detailed=True) for name, case in cases.items()}
    assert math.isnan(figures["case_0"]["dice.core"])
    assert "surface_dice.core" not in figures["case_0"]
    full = {case.name: case for case in cases_of(spec, site(tmp_path / "full", labels))}
    known: Any = {name: task.evaluate_case(_Says(), full[name], _CPU, detailed=True) for name in ("case_0", "case_1")}
    assert figures["case_0"]["dice.ball"] == known["case_0"]["dice.ball"] > 0, "a core is a part of the ball"
    assert math.isnan(figures["case_1"]["dice.ball"])
    assert figures["case_1"]["dice.core"] == known["case_1"]["dice.core"] > 0
    evaluation = task.evaluate(_Says(), list(cases.values()), _CPU)
    assert {name: len(behind) for name, behind in evaluation.behind.items()}["core"] == 5
    assert set(np.unique(task.picture(_Says(), whole, _CPU).prediction)) == {0, 1}  # type: ignore[union-attr]


def test_sites_that_draw_one_region_each_teach_both(spec: JobSpec, tmp_path: Path) -> None:
    plan = spec.changed({"training": {"steps_per_round": 40}, "task": {"distillation": 0.2}}).plan()
    folders = [site(tmp_path / "ball", {"1": "ball"}, only=1), site(tmp_path / "core", {"1": "core"}, only=2)]
    trainers = [Trainer(plan, cases_of(spec, folder), f"site-{n}", _CPU) for n, folder in enumerate(folders)]
    batch = next(trainers[1].prepare())
    assert batch["alike"].tolist() == [[0, 0, 2]] * 2
    weights = plan.initial_weights()
    for _ in range(2):
        trained = []
        for trainer in trainers:
            trainer.load_weights(weights)
            trainer.hold_as_teacher()
            trainer.train(40)
            trained.append(trainer.weights())
        weights = {name: (trained[0][name] + trained[1][name]) / 2 for name in weights}
    both = cases_of(spec, site(tmp_path / "both", {"1": "rim", "2": "heart"}))
    trainers[0].load_weights(weights)
    found = trainers[0].evaluate(tuple(both)).by_class
    assert found["ball"] > 0.7
    assert found["core"] > 0.5
