"""Slides are normalised before a frozen encoder sees them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from oncofed.data.case import Case
from oncofed.data.manifest import Entry
from oncofed.data.slides.levels import TileSpec
from oncofed.data.slides.measuring import measure
from oncofed.data.spec import DataSpec
from oncofed.data.stain.columns import BUFFER, Template
from oncofed.job.spec import JobSpec
from oncofed.tasks.bags import Bags
from oncofed.tasks.slides import SlideClassificationSpec
from slide_files import tiled
from stained_made import OTHER, USUAL, Stain, amounts, painted


def _data(stain: dict[str, Any]) -> DataSpec:
    colours = {"modality": "microscopy", "channels": ["red", "green", "blue"]}
    return DataSpec.model_validate({"dataset": "slides", **colours, "patch": [64, 64], "stain": stain})


def _slide(folder: Path, stain: Stain) -> Case:
    """Return a slide of the same tissue in a stain, as registering finds it."""
    path = tiled(folder / "slide.tif", painted(amounts(3, 256), stain), mpp=1.0, tile=(64, 64))
    facts, grid = measure(path, TileSpec(64, 1.0, 0.25), None, {})
    np.savez(folder / "tiles.npz", **grid)
    entry = Entry(image="slide.tif", name=folder.name, tiles="tiles.npz", **facts)
    return Case(folder.name, folder.name, path, 0, entry=entry, tiles=folder / "tiles.npz")


def _features(data: DataSpec, case: Case) -> torch.Tensor:
    return _bags(data).prepare(case)["bags"].float()


def _bags(data: DataSpec) -> Bags:
    settings = SlideClassificationSpec(classes={0: "a", 1: "b"}, most_tiles=100)
    return Bags(data, settings, torch.device("cpu"))


@pytest.mark.parametrize("how", ["macenko", "vahadane", "reinhard"])
def test_features_of_one_tissue_in_two_stains_are_alike(how: str, tmp_path: Path) -> None:
    first, second = _slide(tmp_path / "a", USUAL), _slide(tmp_path / "b", OTHER)
    plain, normalised = _data({}), _data({"normalise": how})
    before, after = (
        (_features(data, first).mean(0) - _features(data, second).mean(0)).abs().mean() for data in (plain, normalised)
    )
    assert after < before * (0.6 if how == "reinhard" else 0.5)


def test_a_slide_without_an_estimate_stays_as_it_is(tmp_path: Path) -> None:
    case = _slide(tmp_path / "a", USUAL)
    assert case.entry
    bare = replace(case, entry=case.entry.model_copy(update={"colours": "AAAA"}))
    assert torch.equal(_features(_data({"normalise": "macenko"}), bare), _features(_data({}), bare))


def test_the_template_is_a_part_of_what_is_cached(tmp_path: Path) -> None:
    data, case = _data({"normalise": "macenko"}), _slide(tmp_path / "a", USUAL)
    seen = {_bags(data).settings_of(case), _bags(_data({})).settings_of(case)}
    for amount in (1.5, 2.0):
        template = Template.of(data.stain.columns, {"stain eosin amount": (amount, 0.1)})
        data.take_agreed({BUFFER: template.moments})
        seen.add(_bags(data).settings_of(case))
    assert len(seen) == 4


def test_slides_are_not_changed_at_random() -> None:
    values = {
        "name": "slides",
        "title": "Slides",
        "data": _data({"augment": "hed"}).model_dump(),
        "task": {"type": "slide_classification", "classes": {0: "a", 1: "b"}},
        "model": {"network": "attention_mil"},
    }
    with pytest.raises(ValueError, match=r"computed once"):
        JobSpec.model_validate(values)


def test_stains_are_of_colour_images_of_microscopy() -> None:
    with pytest.raises(ValueError, match="is for microscopy"):
        DataSpec.model_validate({"dataset": "scans", "modality": "ct", "stain": {"normalise": "macenko"}})


@pytest.mark.parametrize("how", ["hed", "randstainna"])
def test_inverted_images_have_no_stain_to_change(how: str) -> None:
    colours = {"modality": "microscopy", "channels": ["red", "green", "blue"], "patch": [64, 64]}
    values = {"dataset": "slides", **colours, "background": "dark"}
    with pytest.raises(ValueError, match=rf"found {how} with data\.background: dark.*Leave one"):
        DataSpec.model_validate({**values, "stain": {"augment": how}})
    DataSpec.model_validate({**values, "stain": {"normalise": "macenko"}})  # normalised before it is inverted
