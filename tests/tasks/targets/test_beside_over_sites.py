"""Sites that label different things beside each other's targets train one model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from discs import JOB, cases_of, make_discs
from oncofed.client.in_memory import InProcessSite, train_in_memory
from oncofed.client.local_training import SiteContext
from oncofed.data.case import Case
from oncofed.data.contract import check_dataset
from oncofed.data.register import RegisterOptions, register
from oncofed.data.slides import TileSpec
from oncofed.job.spec import read_job
from oncofed.rounds.events import BEST_MODEL, MODELS_FOLDER
from oncofed.training import Trainer
from slide_files import drawn_slides

_REGIONS = "classes: {1: rim, 2: heart}, partial: true, regions: {whole: [1, 2], heart: [2]}"


def _changed(folder: Path, change: Callable[[int, dict[str, Any]], None]) -> Path:
    """Write discs whose entries are changed, by number."""
    make_discs(folder)
    values = json.loads((folder / "dataset.json").read_text())
    for number, entry in enumerate(values["training"]):
        change(number, entry)
    (folder / "dataset.json").write_text(json.dumps(values))
    return folder


def _drawn_alone(_: int, entry: dict[str, Any]) -> None:
    """Nobody looked for hearts, and no target is stated."""
    entry.pop("targets", None)
    entry["looked_for"] = ["whole"]


def _in_part(number: int, entry: dict[str, Any]) -> None:
    """Half of the masks are missing, some of the targets, and in some masks the whole was not looked for."""
    if number % 2:
        entry.pop("label", None)
    elif number % 3:
        entry["looked_for"] = ["heart"]
    if number % 6 == 2:
        entry["targets"].pop("striped", None)


def test_regions_and_targets_that_sites_have_in_part(tmp_path: Path) -> None:
    text = JOB.replace("classes: {1: rim, 2: heart}", _REGIONS).replace("steps_per_round: 120", "steps_per_round: 50")
    text = text.replace("number: 1", "number: 2").replace("{dataset: discs,", "{dataset: discs, max_bad_share: 0.1,")
    (tmp_path / "job.yaml").write_text(text + "evaluation: {select: last}\n")
    spec = read_job(tmp_path / "job.yaml")
    data = {"drawn": _changed(tmp_path / "a", _drawn_alone), "partly": _changed(tmp_path / "b", _in_part)}
    cases = {site: {case.name: case for case in cases_of(spec, folder)} for site, folder in data.items()}
    assert cases["drawn"]["01"].alike == (0, 1, 1)
    assert cases["partly"]["02"].alike == (0, 0, 2)
    assert not cases["drawn"]["01"].has_targets
    assert not _has_mask(cases["partly"]["03"])
    plan, federation = spec.plan(), spec.federation()
    sites = {
        name: InProcessSite(plan, federation, SiteContext(site=name, data=folder, state=tmp_path / name))
        for name, folder in data.items()
    }
    train_in_memory(plan, federation, sites, tmp_path / "server", record=lambda event: None)
    whole = cases_of(spec, make_discs(tmp_path / "all"))
    judge = Trainer(plan, whole, "judge", torch.device("cpu"))
    judge.load_weights(load_file(tmp_path / "server" / MODELS_FOLDER / BEST_MODEL))
    found = judge.evaluate(tuple(whole))
    assert found.by_class["disc.whole"] > 0.7
    assert found.by_class["disc.heart"] > 0.5
    assert found.by_class["striped"] > 0.8
    assert found.by_class["radius"] > 0.3


def _has_mask(case: Case) -> bool:
    return isinstance(case.label, Path)


def test_a_whole_slide_is_set_aside_by_name(tmp_path: Path) -> None:
    pytest.importorskip("openslide")
    drawn_slides(tmp_path / "in", 3, side=384)
    names = {1: "tumour", 2: "stroma"}
    register(
        RegisterOptions(tmp_path / "in", "discs", tmp_path / "set", "slides", names, tiles=TileSpec(64, 1.0, 0.25))
    )
    values = json.loads((tmp_path / "set" / "dataset.json").read_text())
    for entry in values["training"]:
        entry["targets"] = {"radius": 5.0}
    values["targets"] = {"radius": {"kind": "value", "unit": "px"}}
    (tmp_path / "set" / "dataset.json").write_text(json.dumps(values))
    (tmp_path / "job.yaml").write_text(
        JOB.replace("[grey]", "[red, green, blue]").replace("{1: rim, 2: heart}", "{1: tumour, 2: stroma}")
    )
    plan = read_job(tmp_path / "job.yaml").plan()
    report = check_dataset(tmp_path / "set", plan.data, plan.supervision(), plan.seed)
    assert not report.may_train
    assert len(report.set_aside) == 3
    assert "it is a whole slide, and what is drawn beside other targets" in report.set_aside[0].what
    assert "slide_segmentation or slide_objects" in report.set_aside[0].what
