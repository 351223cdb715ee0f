"""Sites agree on a template of intensities, and all map their images to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from oncofed.client.in_memory import InProcessSite, train_in_memory
from oncofed.client.local_training import SiteContext
from oncofed.data.harmonization.landmarks import INTENSITY
from oncofed.data.transforms import image_landmarks
from oncofed.job.spec import JobSpec
from oncofed.rounds.events import BEST_MODEL, MODELS_FOLDER, Event, IntensitiesNotAgreed
from tabular import JOB, make_table_site, table_job


@pytest.fixture
def spec(tmp_path: Path) -> JobSpec:
    before, _, after = JOB.partition("  covariates:\n")
    text = before + "  harmonization: {intensity: landmarks}\n" + after[after.index("targets:") :]
    changes: dict[str, Any] = {"training": {"steps_per_round": 1, "batch_size": 4}, "rounds": {"number": 1}}
    return table_job(tmp_path / "job", text).changed(changes)


def _site(folder: Path, gamma: float, count: int) -> Path:
    """Write a site whose scanner has another contrast."""
    site = make_table_site(folder, count, seed=int(10 * gamma))
    for path in (site / "imagesTr").glob("*.png"):
        pixels = 255 * (np.asarray(Image.open(path)) / 255.0) ** gamma
        Image.fromarray(pixels.round().astype(np.uint8)).save(path)
    return site


def _run(spec: JobSpec, folder: Path, count: int) -> tuple[dict[str, torch.Tensor], dict[str, Any], list[Event]]:
    """Return the model, what each site's network saw, and the events."""
    running, events = {}, list[Event]()
    for name, gamma in (("plain", 1.0), ("dark", 3.0)):
        context = SiteContext(site=name, data=_site(folder / name, gamma, count), state=folder / f"state-{name}")
        running[name] = InProcessSite(spec.plan(), spec.federation(), context)
    seen: dict[str, Any] = {}

    def record(event: Event) -> None:
        events.append(event)
        if event.kind == "round":
            for name, site in running.items():
                trainer = site.training.trainer
                cases = trainer.cases.train
                images = torch.stack([trainer.input.prepare(case)["image"] for case in cases])
                own = [image_landmarks(case, trainer.plan.data) for case in cases]
                seen[name] = images, [list(row.values()) for row in own], trainer.plan.data.intensities

    train_in_memory(spec.plan(), spec.federation(), running, folder, record)
    return load_file(folder / MODELS_FOLDER / BEST_MODEL), seen, events


def test_the_template_is_the_mean_of_all_patients_and_all_images_have_it(spec: JobSpec, tmp_path: Path) -> None:
    weights, seen, events = _run(spec, tmp_path / "run", 16)
    template = weights[INTENSITY]
    every = np.array([row for _, rows, _ in seen.values() for row in rows])
    np.testing.assert_allclose(template.numpy(), every.mean(axis=0), rtol=0.01, atol=0.02)
    assert all(torch.equal(used, template) for _, _, used in seen.values())
    means = [np.array(rows).mean(axis=0) for _, rows, _ in seen.values()]
    apart = np.abs(means[0] - means[1]).max()
    images = [images for images, _, _ in seen.values()]
    left = abs(float(images[0].quantile(0.5)) - float(images[1].quantile(0.5)))
    assert left < 0.5 * apart
    assert not [event for event in events if isinstance(event, IntensitiesNotAgreed)]


def test_of_few_patients_there_is_no_template_and_that_is_said(spec: JobSpec, tmp_path: Path) -> None:
    weights, seen, events = _run(spec, tmp_path / "run", 6)
    assert not weights[INTENSITY].any()
    assert all(used is None for _, _, used in seen.values())
    (event,) = (event for event in events if isinstance(event, IntensitiesNotAgreed))
    assert str(event).startswith("no site told sums of intensities: there is no template")
