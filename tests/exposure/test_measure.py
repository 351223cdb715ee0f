"""Attacks on a toy: what hides patients lowers the figures, and what is told stays modest."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from commands import Outcome
from oncofed.data.cases import read_cases
from oncofed.errors import SpecError
from oncofed.exposure.gradients import KnownModel, patches_of
from oncofed.exposure.measure import Attacked, Effort, measure, require_patches
from oncofed.exposure.recognition import recognition, scores, shared_directions
from oncofed.exposure.results import WORDS, Exposure
from oncofed.job.spec import parse_job, read_job
from synthetic import JOB, make_site, write_job

_PRIVACY = (
    "privacy: {differential_privacy: {noise_multiplier: 1, delta: 1.0e-3, sampling: 0.5, patches: 1, clip: 0.5}}\n"
)
_JOB = JOB.replace("learning_rate: 0.01", "learning_rate: 0.05, optimizer: sgd, momentum: 0, augmentation: none")


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Exposure:
    """Attacks on small balls, with fixed seeds."""
    folder = tmp_path_factory.mktemp("toy")
    plan = parse_job(write_job(folder / "job", _JOB + _PRIVACY)).plan()
    cases = tuple(read_cases(make_site(folder / "site", 65), plan.data.split, plan.seed))
    effort = Effort(patients=10, patches=1, targets=2, iterations=30)
    return measure(Attacked("balls", "Balls", plan), {"east": cases}, effort, 1, lambda *_: None)


def test_figures_fall_with_noise(toy: Exposure) -> None:
    """Over three seeds: 0.35 to 0.37 without noise, alone and in a sum; below 0.05 with noise and of nothing."""
    alone, summed, noisy, both, control = (view.reconstruction for view in toy.views)
    assert alone.correlation > 0.25
    assert alone.recognised >= 1
    assert summed.correlation < alone.correlation + 0.1
    assert max(noisy.correlation, both.correlation, control.correlation) < 0.15
    assert toy.audit is not None
    assert 0 < toy.audit.epsilon_at_least < toy.audit.epsilon_most


def test_it_marks_what_the_server_is_given(toy: Exposure) -> None:
    assert [view.as_configured for view in toy.views] == [False, False, True, False, False]
    assert [(view.sites, view.noise) for view in toy.views] == [
        (1, False),
        (4, False),
        (1, True),
        (4, True),
        (0, False),
    ]


@pytest.mark.parametrize("seed", range(5))
def test_recognition_falls_in_a_sum_and_with_noise(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    common = 5 * torch.randn(2000, generator=generator)
    reference, inside, outside, *others = (common + torch.randn(40, 2000, generator=generator) for _ in range(6))
    shared = shared_directions(reference[:20])
    alone = -inside.mean(dim=0)
    summed = torch.stack([alone, *(-other.mean(dim=0) for other in others)]).mean(dim=0)
    noisy = alone + 2 * torch.randn(2000, generator=generator)
    aucs = []
    for update in (alone, summed, noisy):
        found = recognition(scores(update, inside, shared), scores(update, outside, shared), seed)
        assert found.interval is not None
        assert found.interval[0] <= found.auc <= found.interval[1]
        aucs.append(found.auc)
    assert aucs[0] > 0.99
    assert aucs[0] >= aucs[1] > aucs[2]
    assert aucs[2] < 0.8


def test_a_gradient_can_be_differentiated_by_the_image(site: Path, job: Path) -> None:
    plan = parse_job(job).plan()
    model = KnownModel(plan, plan.initial_weights(), torch.device("cpu"))
    cases = read_cases(site, plan.data.split, plan.seed).train
    (batch,) = patches_of(plan, [cases[:1]], 2, 1, torch.device("cpu"))
    image = batch["image"].requires_grad_()
    model.gradient({**batch, "image": image}, differentiable=True).square().sum().backward()
    assert image.grad is not None
    assert float(image.grad.norm()) > 0


@pytest.mark.parametrize("name", ["chest_findings", "lung_nodule_detection", "brain_survival", "grade_tiles"])
def test_jobs_without_patches_are_refused_by_name(name: str) -> None:
    with pytest.raises(SpecError, match=f"{name}: its task .* Expected a job such as"):
        require_patches(name, read_job(name).plan())


def test_the_command_writes_figures_that_say_at_least(run: Callable[..., Outcome], tmp_path: Path) -> None:
    job, site, out = write_job(tmp_path / "job"), make_site(tmp_path / "site", 56), tmp_path / "out"
    quick = ("--quick", "--sites", "2", "--targets", "1", "--iterations", "8")
    done = run("job", "exposure", job, "--site", f"east={site}", *quick, "--out", out, "--workspace", tmp_path / "w")
    assert done.status == 0, done.text
    assert WORDS in done.text
    found = json.loads((out / "exposure.json").read_text())
    assert found["words"] == WORDS
    assert found["views"][0]["as_configured"]
    page = (out / "exposure.html").read_text()
    assert "at least" in page
    assert found["date"] in page
    assert WORDS in page
    for text in (page, (out / "exposure.json").read_text(), done.text):
        assert not {"safe", "secure", "anonymous"} & set(text.lower().replace(".", " ").split())
        assert "case_" not in text
    again = run("job", "exposure", job, "--site", f"east={site}", *quick, "--out", out)
    assert again.status == 2
    assert "is not empty" in again.text
