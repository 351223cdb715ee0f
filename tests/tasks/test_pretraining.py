"""Pretraining: what is hidden, learned, scored, and what a job takes from it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor, nn

from oncofed.data.case import Case
from oncofed.data.cases import Cases, usable_cases
from oncofed.data.contract import check_dataset
from oncofed.data.spec import DataSpec
from oncofed.data.unlabelled_patches import HiddenPatches, hidden_cubes
from oncofed.errors import SpecError
from oncofed.flare.folders import INITIAL_MODEL
from oncofed.job.flare import export_job
from oncofed.job.spec import JobSpec
from oncofed.models.weights import norm_names
from oncofed.tasks.pretraining import Pretraining, PretrainingSpec
from oncofed.training import Trainer
from synthetic import make_site

DATA = DataSpec(dataset="balls", patch=(16, 16, 16))


def _without_labels(folder: Path, cases: int = 8) -> Path:
    """Return a site whose images nobody labelled."""
    make_site(folder, cases)
    listed = json.loads((folder / "dataset.json").read_text())
    listed["training"] = [{"image": entry["image"]} for entry in listed["training"]]
    (folder / "dataset.json").write_text(json.dumps(listed))
    for path in (folder / "labelsTr").iterdir():
        path.unlink()
    return folder


def _pretraining(spec: JobSpec, **training: float) -> JobSpec:
    values = spec.model_dump(by_alias=True)
    values["task"] = {"type": "pretraining", "cube": 4}
    return JobSpec.model_validate(values).changed({"training": training})


def _cases(spec: JobSpec, folder: Path) -> Cases:
    plan = spec.plan()
    return usable_cases(folder, plan.data, plan.supervision(), plan.seed, "east").cases


@given(
    shape=st.lists(st.integers(8, 21), min_size=2, max_size=3).map(tuple),
    ratio=st.floats(0.05, 0.95),
    side=st.integers(2, 7),
    seed=st.integers(0, 9),
)
def test_whole_cubes_are_hidden(shape: tuple[int, ...], ratio: float, side: int, seed: int) -> None:
    hidden = hidden_cubes(shape, ratio, side, Generator().manual_seed(seed))
    assert hidden.shape == (1, *shape)
    assert hidden.any()
    assert not hidden.all()
    cells = [math.ceil(length / side) for length in shape]
    corners = hidden[(0, *(slice(None, None, side) for _ in shape))]
    assert list(corners.shape) == cells
    assert int(corners.sum()) == min(max(round(ratio * math.prod(cells)), 1), math.prod(cells) - 1)
    whole = corners
    for axis, length in enumerate(shape):
        whole = whole.repeat_interleave(side, axis).narrow(axis, 0, length)
    assert torch.equal(whole, hidden[0])
    assert torch.equal(hidden, hidden_cubes(shape, ratio, side, Generator().manual_seed(seed)))


def test_the_network_sees_nothing_hidden_and_learns_nothing_else() -> None:
    task = Pretraining(PretrainingSpec(cube=4), DATA)
    source = HiddenPatches(DATA, "none", 0.6, 4)
    image = torch.randn(1, 20, 18, 16)
    generator = Generator().manual_seed(0)
    parts = [source.draw({"image": image}, generator) for _ in range(3)]
    batch = source.change(source.together(parts), generator)
    assert batch["image"].shape == (3, 1, 16, 16, 16)
    hidden = batch["hidden"].expand_as(batch["image"])
    seen: list[Tensor] = []
    output = task.forward(lambda x: seen.append(x) or torch.zeros_like(x), batch)  # type: ignore[func-returns-value]
    assert not seen[0][hidden].any()
    assert torch.equal(seen[0][~hidden], batch["image"][~hidden])
    expected = torch.stack([one[where].square().mean() for one, where in zip(batch["image"], hidden, strict=True)])
    torch.testing.assert_close(task.loss(output, batch), expected.mean())
    other = torch.where(hidden, output, torch.randn_like(output))
    torch.testing.assert_close(task.loss(other, batch), task.loss(output, batch))


class _Constant(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        return torch.full_like(x, self.value)


def test_the_score_is_the_share_of_variance_explained(tmp_path: Path) -> None:
    # Nothing but noise is in this image: no constant explains any of it.
    noise = np.random.default_rng(0).normal(5, 2, (24, 24, 24)).astype(np.float32)
    nib.save(nib.Nifti1Image(noise, np.eye(4)), tmp_path / "noise.nii.gz")
    case = Case("noise", "noise", tmp_path / "noise.nii.gz", 0)
    task, cpu = Pretraining(PretrainingSpec(cube=4), DATA), torch.device("cpu")
    found = task.evaluate(_Constant(0.0), [case], cpu)
    assert found.mean == pytest.approx(0, abs=0.01)
    assert found.extra_metrics["hidden_error"] == pytest.approx(1, abs=0.05), "images are standardised"
    assert task.evaluate(_Constant(3.0), [case], cpu).mean == 0, "worse than the mean is no less than nothing"
    assert found == task.evaluate(_Constant(0.0), [case], cpu), "the same voxels are hidden each time"


def test_images_without_labels_train_a_model_from_which_a_job_starts(spec: JobSpec, tmp_path: Path) -> None:
    wanted = _pretraining(spec, steps_per_round=60)
    cases = _cases(wanted, _without_labels(tmp_path / "site"))
    assert len(list(cases)) == 8
    trainer = Trainer(wanted.plan(), cases, "east")
    before = trainer.evaluate(cases.test)
    trainer.train(60)
    after = trainer.evaluate(cases.test)
    assert before.mean is not None
    assert after.mean is not None
    assert after.mean > before.mean + 0.2
    assert after.extra_metrics["hidden_error"] < before.extra_metrics["hidden_error"]
    assert trainer.task.picture(trainer.network, cases.test[0], trainer.device).caption.endswith("explained")
    weights = trainer.weights()
    trainer.close()

    save_file(weights, tmp_path / "pretrained.safetensors")
    exported = export_job(spec, tmp_path / "exported", model=tmp_path / "pretrained.safetensors")
    start = load_file(exported / "app" / "config" / INITIAL_MODEL)
    own = spec.plan().initial_weights()
    assert start.keys() == own.keys()
    taken = {name for name, value in start.items() if name in weights and torch.equal(value, weights[name])}
    anew = own.keys() - taken
    assert all(torch.equal(start[name], own[name]) for name in anew)
    # All but the last layer: three classes are others than one channel.
    last = {name for name, value in own.items() if weights[name].shape != value.shape}
    assert anew == last
    assert 0 < len(last) <= 4
    assert not last & norm_names(spec.plan().build_network())


def test_labels_are_not_looked_at(spec: JobSpec, tmp_path: Path) -> None:
    folder = make_site(tmp_path / "site")
    for path in (folder / "labelsTr").iterdir():
        path.write_bytes(b"broken")
    wanted = _pretraining(spec)
    assert len(list(_cases(wanted, folder))) == 6
    plan = wanted.plan()
    assert check_dataset(_without_labels(tmp_path / "other"), plan.data, plan.supervision(), 1).may_train


def test_it_gives_no_answers_and_says_so(spec: JobSpec) -> None:
    wanted = _pretraining(spec)
    with pytest.raises(SpecError, match="a job starts from its weights"):
        wanted.plan().build_task().inference_preparation()
    assert "starts from its weights" in wanted.plan().bundle_lacks
    with pytest.raises(SpecError, match="Take a smaller cube"):
        wanted.changed({"task": {"cube": 16}}).plan().build_task()
    with pytest.raises(SpecError, match="classes"):
        wanted.changed({"task": {"classes": {1: "ball"}}})
