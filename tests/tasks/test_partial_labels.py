"""Masks that lack classes: what nobody looked for is unknown, in the loss, in scores and in pictures."""

from __future__ import annotations

import json
import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from oncofed.data.case import Case
from oncofed.data.cases import Cases, usable_cases
from oncofed.data.contract import check_dataset
from oncofed.data.manifest import read_manifest
from oncofed.data.register import RegisterOptions, register
from oncofed.errors import DataError
from oncofed.job.spec import JobSpec, read_job
from oncofed.privacy.evaluations import evaluation_numbers, is_evaluation
from oncofed.tasks.losses import conditional_divergence, dice_ce
from oncofed.training import Trainer
from synthetic import JOB, make_site

KNOWN = {
    "all": [[1, 1, 1, 1], [1, 1, 1, 1]],
    "one each": [[1, 1, 0, 1], [1, 0, 1, 0]],
    "one sample": [[1, 1, 1, 1], [1, 0, 0, 1]],
}
_CPU = torch.device("cpu")


def partial(folder: Path, looked_for: dict[str, list[str]] | None = None, names: dict[str, str] | None = None) -> Path:
    """Write what a dataset names, and what was looked for in some of its cases."""
    values = json.loads((folder / "dataset.json").read_text())
    values["labels"] = names or {"0": "background", "1": "shell", "2": "core"}
    for number, entry in enumerate(values["training"]):
        if (looked_for or {}).get(str(number)) is not None:
            entry["looked_for"] = looked_for[str(number)]  # type: ignore[index] # just looked up
    (folder / "dataset.json").write_text(json.dumps(values))
    return folder


@pytest.fixture
def spec(tmp_path: Path) -> JobSpec:
    (tmp_path / "job.yaml").write_text(JOB.replace("classes: {1", "partial: true, classes: {1"))
    return read_job(tmp_path / "job.yaml")


def cases_of(spec: JobSpec, folder: Path) -> Cases:
    plan = spec.plan()
    return usable_cases(folder, plan.data, plan.supervision(), plan.seed, "here").cases


# --- loss


def drawn(known: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits, a label without classes that are not known, and which are."""
    generator = torch.Generator().manual_seed(1)
    there = torch.tensor(KNOWN[known], dtype=torch.bool)
    label = torch.randint(0, 4, (2, 1, 5, 4, 3), generator=generator)
    for sample in range(2):
        label[sample][~there[sample][label[sample]]] = 0
    return 2 * torch.randn(2, 4, 5, 4, 3, generator=generator, dtype=torch.float64), label, there


def as_written(logits: Tensor, label: Tensor, known: Tensor) -> Tensor:
    """Return the marginal loss, sample by sample and class by class."""
    losses = []
    for values, target, there in zip(logits, label[:, 0], known, strict=True):
        likely = values.softmax(0)
        background = likely[0] + sum(likely[c] for c in range(1, 4) if not there[c])
        wanted = [c for c in range(1, 4) if there[c]]
        each = torch.where(target == 0, background, 1.0)
        for c in wanted:
            each = torch.where(target == c, likely[c], each)
        dices = [
            1 - (2 * likely[c][target == c].sum() + 1e-5) / (likely[c].square().sum() + (target == c).sum() + 1e-5)
            for c in wanted
        ]
        losses.append(-each.log().mean() + torch.stack(dices).mean())
    return torch.stack(losses).mean()


@pytest.mark.parametrize("known", KNOWN)
def test_value_and_gradient_are_those_of_the_marginal_loss(known: str) -> None:
    logits, label, there = drawn(known)
    one, other = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss, expected = dice_ce(one, label, None, there), as_written(other, label, there)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-9)
    found, wanted = torch.autograd.grad(loss, one)[0], torch.autograd.grad(expected, other)[0]
    torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-10)


def test_where_all_is_known_it_is_the_usual_loss_to_the_bit() -> None:
    logits, label, there = drawn("all")
    one, other = logits.float().requires_grad_(), logits.float().requires_grad_()
    loss, usual = dice_ce(one, label, None, there), dice_ce(other, label)
    assert torch.equal(loss, usual)
    assert torch.equal(torch.autograd.grad(loss, one)[0], torch.autograd.grad(usual, other)[0])


def test_background_does_not_tell_it_from_what_is_unknown() -> None:
    """However likely the two are among themselves, background's voxels are as good."""
    logits, label, there = torch.zeros(1, 3, 2, 2), torch.zeros(1, 1, 2, 2), torch.tensor([[True, True, False]])
    logits[:, 1] = -9
    swapped = logits.clone()
    logits[:, 0], swapped[:, 2] = 5, 5
    assert dice_ce(logits, label, None, there).item() == pytest.approx(dice_ce(swapped, label, None, there).item())
    assert dice_ce(swapped, label).item() > 4


def test_what_the_teacher_says_of_the_unknown_is_a_conditional_divergence() -> None:
    logits, label, there = drawn("one sample")
    teacher = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    values = logits.clone().requires_grad_()
    found = conditional_divergence(values, teacher, label, there)
    (gradient,) = torch.autograd.grad(found, values)
    places = label[1, 0] == 0
    wanted, said = (one[1, [0, 1, 2]][:, places].softmax(0) for one in (teacher, logits))
    expected = functional.kl_div(said.log(), wanted, reduction="sum") / places.sum() / 2
    assert found.item() == pytest.approx(expected.item())
    assert gradient[0].eq(0).all(), "of that sample all is known"
    assert gradient[1, 3].eq(0).all(), "that class was looked for"
    assert gradient[1, :, ~places].eq(0).all()
    assert conditional_divergence(logits, logits, label, there).item() == pytest.approx(0, abs=1e-12)


# --- data


def test_a_site_may_name_some_classes_alone(spec: JobSpec, tmp_path: Path) -> None:
    folder = partial(make_site(tmp_path / "set"), names={"0": "background", "1": "Core"})
    for path in (folder / "labelsTr").iterdir():
        mask = nib.load(path)
        nib.save(nib.Nifti1Image((np.asarray(mask.dataobj) == 2).astype(np.uint8), mask.affine), path)
    case = cases_of(spec, folder).train[0]
    assert case.looked_for == {2}
    assert set(np.unique(case.read_label().values)) == {0, 2}
    plan = spec.plan()
    report = check_dataset(folder, plan.data, plan.supervision(), plan.seed)
    assert report.may_train
    rows = {row.aspect: row for row in report.rows}
    assert rows["core (2)"].found == "looked for in 6 of 6 patients"
    assert rows["shell (1)"].found == "looked for in 0 of 6 patients"
    assert "unknown" in rows["shell (1)"].how


def test_a_job_that_does_not_say_so_refuses_a_silent_lack(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(JOB)
    spec = read_job(tmp_path / "job.yaml")
    with pytest.raises(DataError, match="no label of the dataset stands for core"):
        cases_of(spec, partial(make_site(tmp_path / "set"), names={"1": "shell"}))
    with pytest.raises(DataError, match=r"nobody looked for core in its mask.*task\.partial: true"):
        cases_of(spec, partial(make_site(tmp_path / "other"), {str(n): ["shell"] for n in range(6)}))


def test_labels_without_names_tell_not_what_was_looked_for(spec: JobSpec, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="its labels have no names"):
        cases_of(spec, make_site(tmp_path / "set"))


def test_cases_of_one_site_differ_in_what_was_looked_for(spec: JobSpec, tmp_path: Path) -> None:
    folder = partial(make_site(tmp_path / "set"), {"0": ["SHELL"], "1": [], "2": ["shell", "core"], "3": ["liver"]})
    with pytest.raises(DataError, match="looked_for names liver, which no label of the dataset is called"):
        cases_of(spec, folder)
    folder = partial(folder, {"3": ["core"]})
    found = {case.name: case for case in cases_of(spec, folder)}
    assert "case_1" not in found, "nobody looked for anything there"
    assert [found[f"case_{n}"].looked_for for n in (0, 2, 3, 4)] == [{1}, None, {2}, None]
    assert set(np.unique(found["case_0"].read_label().values)) == {0, 1}, "a class drawn without looking is unknown"


def test_a_patch_says_what_is_known_and_has_no_centre_of_the_unknown(spec: JobSpec, tmp_path: Path) -> None:
    cases = cases_of(spec, partial(make_site(tmp_path / "set"), {"0": ["shell"]}))
    trainer = Trainer(spec.plan(), Cases(tuple(c for c in cases if c.name == "case_0"), (), ()), "here", _CPU)
    batch = next(trainer.prepare())
    assert batch["alike"].tolist() == [[0, 1, 0]] * 2
    assert batch["label"].max() == 1
    assert math.isfinite(trainer.train(2))


# --- scores


class _Says(nn.Module):
    """Says the core wherever the image is bright."""

    def forward(self, image: Tensor) -> Tensor:
        return torch.cat([0.5 - image, torch.full_like(image, -9), image - 0.5], 1)


def scored(spec: JobSpec, folder: Path) -> tuple[dict[str, dict[str, float]], Trainer, list[Case]]:
    cases = list(cases_of(spec, folder))
    task = spec.plan().build_task()
    return {c.name: task.evaluate_case(_Says(), c, _CPU, detailed=True) for c in cases}, task, cases  # type: ignore[return-value]


def test_what_was_not_looked_for_has_no_score_and_is_not_wrong(spec: JobSpec, tmp_path: Path) -> None:
    folder = partial(make_site(tmp_path / "set", 12), {"0": ["shell"], "1": ["core"]})
    by_case, _, cases = scored(spec, folder)
    assert math.isnan(by_case["case_0"]["dice.core"])
    assert math.isnan(by_case["case_1"]["dice.shell"])
    assert not {"surface_dice.core", "hd95_mm.core"} & set(by_case["case_0"])
    assert by_case["case_1"]["dice.core"] > 0.2
    evaluation = spec.plan().build_task().evaluate(_Says(), cases, _CPU, detailed=True)
    assert {name: len(behind) for name, behind in evaluation.behind.items()}["core"] == 11
    known = [v for figures in by_case.values() for v in [figures["dice.core"]] if not math.isnan(v)]
    assert evaluation.by_class["core"] == pytest.approx(np.mean(known))
    case = next(c for c in cases if c.name == "case_0")
    assert not spec.plan().build_task().picture(_Says(), case, _CPU).prediction.any(), "of it nobody knows"  # type: ignore[union-attr]


@pytest.mark.parametrize(("with_core", "told"), [(4, False), (5, True), (7, True), (8, False), (12, True)])
def test_a_class_leaves_a_site_only_where_five_patients_have_it_and_none_is_told_by_the_rest(
    spec: JobSpec, tmp_path: Path, with_core: int, told: bool
) -> None:
    looked_for = {str(n): ["shell"] for n in range(with_core, 12)}
    _, _, cases = scored(spec, partial(make_site(tmp_path / "set", 12), looked_for))
    evaluation = spec.plan().build_task().evaluate(_Says(), cases, _CPU, detailed=True)
    numbers = evaluation_numbers(evaluation)
    assert ("core" in numbers["by_class"]) == told
    assert is_evaluation(numbers, ["shell", "core"], 12)
    sums = spec.plan().build_task().pooled([(c.patient, scored_one(spec, c)) for c in cases])
    assert sums is not None
    assert all(count >= 5 for count, *_ in sums["figures"].values())
    assert ("core" in sums["figures"]) == told


def scored_one(spec: JobSpec, case: Case) -> dict[str, float]:
    return spec.plan().build_task().evaluate_case(_Says(), case, _CPU, detailed=False)  # type: ignore[no-any-return]


# --- teacher


def test_the_teacher_stays_the_model_that_the_round_began_with(spec: JobSpec, tmp_path: Path) -> None:
    cases = cases_of(spec, partial(make_site(tmp_path / "set"), {str(n): ["shell"] for n in range(6)}))
    losses = {}
    for weight in (0.0, 5.0):
        trainer = Trainer(spec.changed({"task": {"distillation": weight}}).plan(), cases, "here", _CPU)
        begun = trainer.weights()
        trainer.hold_as_teacher()
        losses[weight] = trainer.train(3)
        teacher = trainer._gradients.teacher
        assert (teacher is None) == (weight == 0)
        if teacher is not None:
            assert all(torch.equal(value, begun[name]) for name, value in teacher.state_dict().items())
            assert not any(torch.equal(value, begun[name]) for name, value in trainer.weights().items())
    assert losses[5.0] > losses[0.0]


# --- from a folder to a model


def test_a_registered_folder_of_one_class_trains_beside_one_of_the_other(spec: JobSpec, tmp_path: Path) -> None:
    for name, value in (("shell", 1), ("core", 2)):
        source = make_site(tmp_path / f"{name}-in", 6, value)
        for path in (source / "labelsTr").iterdir():
            mask = nib.load(path)
            nib.save(nib.Nifti1Image((np.asarray(mask.dataobj) == value).astype(np.uint8), mask.affine), path)
        register(RegisterOptions(source, name, tmp_path / name, "segmentation", {1: name}))
        assert read_manifest(tmp_path / name).labels["1"] == name
        plan = spec.plan()
        assert check_dataset(tmp_path / name, plan.data, plan.supervision(), plan.seed).may_train
    sites = [cases_of(spec, tmp_path / name) for name in ("shell", "core")]
    plan = spec.changed({"training": {"steps_per_round": 40}, "task": {"distillation": 0.5}}).plan()
    trainers = [Trainer(plan, cases, f"site-{n}", _CPU) for n, cases in enumerate(sites)]
    weights = plan.initial_weights()
    for _ in range(2):
        trained = []
        for trainer in trainers:
            trainer.load_weights(weights)
            trainer.hold_as_teacher()
            trainer.train(40)
            trained.append(trainer.weights())
        weights = {name: (trained[0][name] + trained[1][name]) / 2 for name in weights}
    trainers[0].load_weights(weights)
    for trainer, name in zip(trainers, ("shell", "core"), strict=True):
        trainer.load_weights(weights)
        assert trainer.evaluate(trainer.cases.test).by_class[name] > 0.5
