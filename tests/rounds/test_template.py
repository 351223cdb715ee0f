"""Sites agree on a template of stains before the first round, and it stays what it was."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from oncofed.client.in_memory import InProcessSite, train_in_memory
from oncofed.client.local_training import SiteContext
from oncofed.data.cases import usable_cases
from oncofed.data.moments import own_moments
from oncofed.data.register import RegisterOptions, register
from oncofed.data.stain.columns import BUFFER
from oncofed.job.spec import JobSpec
from oncofed.messages.requests import Request, TrainRequest
from oncofed.messages.results import Result
from oncofed.rounds.events import BEST_MODEL, EVENTS_FILE, MODELS_FOLDER, EventLog, Standardised, TemplateNotAgreed
from stained_made import OTHER, USUAL, Stain, amounts, painted
from tiny_federation import Recorder


class _Site(InProcessSite):
    """A site that notes the template of each training."""

    def __init__(self, spec: JobSpec, name: str, data: Path, folder: Path) -> None:
        super().__init__(spec.plan(), spec.federation(), SiteContext(site=name, data=data, state=folder / name))
        self.used: list[str] = []

    def __call__(self, request: Request) -> Result:
        result = super().__call__(request)
        if isinstance(request, TrainRequest):
            template = self.training.trainer.input.spec.template
            assert template
            self.used.append(template.key)
        return result


def _site(folder: Path, stain: Stain, patients: int = 12) -> Path:
    """Write a site's fields, two of each patient, and register them."""
    source = folder / "source"
    source.mkdir(parents=True)
    rows = ["image,label,patient"]
    for number in range(2 * patients):
        many = number // 2 % 2
        made = amounts(number, 96, nuclei=30 if many else 4)
        Image.fromarray(painted(made, stain, number)).save(source / f"{number}.png")
        rows.append(f"{number}.png,{('few', 'many')[many]},p{number // 2}")
    (source / "table.csv").write_text("\n".join(rows))
    register(RegisterOptions(source, "tiles", folder / "data", workers=1, table=source / "table.csv"))
    return folder / "data"


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sites")
    return {"east": _site(folder / "east", USUAL), "west": _site(folder / "west", OTHER)}


def _job(stain: Mapping[str, Any], change: Mapping[str, Any] | None = None) -> JobSpec:
    values = {
        "name": "tiles",
        "title": "Few or many nuclei",
        "data": {
            "dataset": "tiles",
            "modality": "microscopy",
            "channels": ["red", "green", "blue"],
            "patch": [64, 64],
            "stain": stain,
        },
        "task": {"type": "classification", "classes": {0: "few", 1: "many"}},
        "model": {"network": "resnet18"},
        "training": {"steps_per_round": 1, "batch_size": 4, "augmentation": "none"},
        "rounds": {"number": 2},
    }
    return JobSpec.model_validate({**values, **(change or {})})


def _run(spec: JobSpec, sites: Mapping[str, Path], folder: Path) -> tuple[Recorder, dict[str, torch.Tensor], list[str]]:
    """Run server and sites in memory; return events, the model's weights, and the templates that sites used."""
    log = EventLog(folder / EVENTS_FILE)
    running = {name: _Site(spec, name, data, folder) for name, data in sites.items()}
    recorder = Recorder(log, None)
    try:
        train_in_memory(spec.plan(), spec.federation(), running, folder, recorder)
    finally:
        log.close()
    used = [key for site in running.values() for key in site.used]
    return recorder, load_file(folder / MODELS_FOLDER / BEST_MODEL), used


@pytest.mark.parametrize(
    ("stain", "change"),
    [
        ({"normalise": "macenko"}, {}),
        ({"normalise": "vahadane", "augment": "randstainna"}, {"strategy": {"name": "median"}}),
        ({"normalise": "reinhard"}, {"strategy": {"name": "fedadam"}, "exchange": {"update": "int8"}}),
        ({"augment": "randstainna"}, {"exchange": {"update": "bfloat16"}}),
    ],
)
def test_all_sites_use_the_mean_of_all_patients(
    stain: dict[str, Any], change: dict[str, Any], sites: dict[str, Path], tmp_path: Path
) -> None:
    spec = _job(stain, change)
    recorder, weights, used = _run(spec, sites, tmp_path)
    plan = spec.plan()
    train = [
        case
        for name, folder in sites.items()
        for case in usable_cases(folder, plan.data, plan.supervision(), plan.seed, name).cases.train
    ]
    # Patients of two sites may have one key: each counts for itself.
    assert len({case.patient for case in train}) >= 10
    expected = own_moments(train, plan.data.agreed_columns)
    names = [column.name for column in plan.data.stain.columns]
    assert weights[BUFFER].shape == (2, len(names))
    for place, name in enumerate(names):
        assert weights[BUFFER][0, place].item() == pytest.approx(expected[name][0], rel=0.02, abs=0.02)
    assert len(set(used)) == 1, "every site and round used the same template"
    assert len(used) == 4
    told = [event for event in recorder.events if isinstance(event, Standardised)]
    assert list(told[0].columns) == names


def test_too_few_patients_tell_nothing_and_the_published_template_stands_in(
    sites: dict[str, Path], tmp_path: Path
) -> None:
    few = {name: _site(tmp_path / f"few-{name}", stain, 5) for name, stain in (("east", USUAL), ("west", OTHER))}
    spec = _job({"normalise": "macenko"})
    recorder, weights, _ = _run(spec, few, tmp_path)
    assert any(isinstance(event, TemplateNotAgreed) for event in recorder.events)
    published = [column.usual[0] for column in spec.data.stain.columns]
    assert weights[BUFFER][0].tolist() == pytest.approx(published, abs=0.01)


def test_normalised_images_of_two_sites_look_alike(sites: dict[str, Path]) -> None:
    """Their mean colours, by which a network could tell the sites apart."""

    def apart(stain: dict[str, Any]) -> float:
        plan = _job(stain).plan()
        source = plan.build_task().input("none")
        means = []
        for name, folder in sites.items():
            cases = usable_cases(folder, plan.data, plan.supervision(), plan.seed, name).cases.train
            means.append(np.mean([source.prepare(case)["image"].mean((1, 2)).numpy() for case in cases], axis=0))
        return float(np.abs(means[0] - means[1]).max())

    # With a stain that only changes at random, colours are kept as they are.
    none = apart({"augment": "hed"})
    found = {how: apart({"normalise": how}) / none for how in ("macenko", "vahadane", "reinhard")}
    assert max(found.values()) < 0.5, found
