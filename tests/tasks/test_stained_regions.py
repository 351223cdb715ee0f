"""Slides are normalised, or changed at random, before a network sees their regions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from oncofed.data.case import Case
from oncofed.data.manifest import Entry
from oncofed.data.region_patches import Cutting, OnSlide, RegionPatches, open_slide_of
from oncofed.data.slides.canvas import SlideCanvas, as_input
from oncofed.data.slides.levels import TileSpec
from oncofed.data.slides.measuring import measure
from oncofed.data.spec import DataSpec
from oncofed.data.stain.columns import BUFFER, Template
from slide_files import tiled
from stained_made import OTHER, USUAL, Stain, amounts, painted

pytest.importorskip("tifffile")

CUTTING = Cutting(2, each=8, undrawn=0)


def _data(**stain: Any) -> DataSpec:
    colours = {"modality": "microscopy", "channels": ["red", "green", "blue"], "spacing": [0.001, 0.001]}
    return DataSpec.model_validate({"dataset": "slides", **colours, "patch": [64, 64], "stain": stain})


def _slide(folder: Path, stain: Stain) -> Case:
    """Return a registered slide of the same tissue in a stain, with a region that somebody drew."""
    path = tiled(folder / "slide.tif", painted(amounts(3, 256), stain), mpp=1.0, tile=(64, 64))
    facts, _ = measure(path, TileSpec(64, 1.0, 0.25), None, {})
    ring = [[60, 60], [190, 60], [190, 190], [60, 190], [60, 60]]
    region = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}}
    regions = folder / "slide.geojson"
    regions.write_text(json.dumps({**region, "properties": {"classification": "tumour"}}))
    same_places = {**facts, "checksum": "1" * 64}  # patches are drawn by it
    entry = Entry(image="slide.tif", name=folder.name, **same_places)
    return Case(folder.name, "P", path, regions, entry=entry, label_names=((1, "tumour"),), label_values=((1, 1),))


@pytest.fixture
def slides(tmp_path: Path) -> tuple[Case, Case]:
    return _slide(tmp_path / "a", USUAL), _slide(tmp_path / "b", OTHER)


@pytest.mark.parametrize("how", ["macenko", "vahadane", "reinhard"])
def test_patches_of_one_tissue_in_two_stains_are_alike(how: str, slides: tuple[Case, Case]) -> None:
    def apart(data: DataSpec) -> float:
        one, other = (RegionPatches(data, "none", CUTTING).prepare(case)["patches"].float() for case in slides)
        return float((one - other).abs().mean())

    assert apart(_data(normalise=how)) < 0.6 * apart(_data())


def test_slides_are_scored_and_predicted_as_they_are_learned(slides: tuple[Case, Case]) -> None:
    """By what registering found, which what is predicted carries with it."""
    data, case = _data(normalise="macenko"), slides[1]
    assert case.entry
    with SlideCanvas.of(case, data, 64) as scored, open_slide_of(OnSlide(data).prepare(case), data) as predicted:
        normalised = scored.read(64, 64)
        assert np.array_equal(normalised, predicted.read(64, 64))
    other = replace(case, entry=case.entry.model_copy(update={"colours": "AAAA"}))  # too few to tell a stain by
    with SlideCanvas.of(other, data, 64) as plain, open_slide_of(OnSlide(data).prepare(other), data) as predicted:
        assert np.array_equal(plain.read(64, 64), predicted.read(64, 64))
        assert not np.array_equal(plain.read(64, 64), normalised)


def test_a_slide_that_nobody_registered_tells_its_stain_itself(slides: tuple[Case, Case]) -> None:
    data, case = _data(normalise="macenko"), slides[1]
    with (
        SlideCanvas.of(case, data, 64) as known,
        SlideCanvas(case.image, data, 64) as alone,
        SlideCanvas(case.image, _data(), 64) as plain,
    ):
        windows = [canvas.read(64, 64).astype(int) for canvas in (known, alone, plain)]
    assert np.abs(windows[0] - windows[1]).mean() < 0.3 * np.abs(windows[0] - windows[2]).mean()


def test_the_agreed_template_is_what_slides_look_like(slides: tuple[Case, Case]) -> None:
    seen = []
    for amount in (0.7, 2.0):
        data = _data(normalise="macenko")
        template = Template.of(data.stain.columns, {"stain eosin amount": (amount, 0.1)})
        data.take_agreed({BUFFER: template.moments})
        with SlideCanvas.of(slides[0], data, 64) as canvas:
            seen.append(canvas.read(64, 64).mean())
    assert seen[0] > seen[1] + 5  # more eosin is darker


@pytest.mark.parametrize("stain", [{"augment": "hed"}, {"augment": "randstainna"}, {"normalise": "macenko"}])
def test_colours_are_kept_and_changed_as_colours(stain: dict[str, Any], slides: tuple[Case, Case]) -> None:
    """Scaled to -1 to 1: a slide standardised by its own mean has none that a stain could be told by."""
    data = _data(**stain, probability=1)
    source = RegionPatches(data, "none", CUTTING)
    prepared = source.prepare(slides[0])
    drawn = [source.draw(prepared, torch.Generator().manual_seed(seed)) for seed in range(4)]
    batch = source.together(drawn)
    pixels = (batch["image"] + 1) * 127.5
    assert torch.allclose(pixels, pixels.round(), atol=1e-3)
    assert pixels.min() >= 0
    assert pixels.max() <= 255
    before = batch["image"].clone()
    after = source.change(batch, torch.Generator().manual_seed(1))["image"]
    assert after.isfinite().all()
    assert after.abs().max() <= 1
    assert ((after - before).abs().mean() > 0.02) == ("augment" in stain)
    with SlideCanvas.of(slides[0], data, 64) as canvas:
        seen = as_input(canvas.read(64, 64), canvas.scale)
    assert seen.abs().max() <= 1
