"""Regions that were drawn on slides are learned, and found again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from oncofed.data.augment import Batch
from oncofed.data.case import Case
from oncofed.data.cases import usable_cases
from oncofed.data.region_patches import Cutting, RegionPatches
from oncofed.data.register import RegisterOptions, register
from oncofed.data.slides import TileSpec
from oncofed.data.slides.canvas import SlideCanvas
from oncofed.data.slides.drawn import UNKNOWN, drawn_labels
from oncofed.data.spec import DataSpec
from oncofed.errors import DataError, SpecError
from oncofed.models import ModelSpec
from oncofed.tasks.slide_objects import SlideObjects
from oncofed.tasks.slide_regions import SlideSegmentation, SlideTiles
from oncofed.tasks.whole_slide.settings import SlideObjectsSpec, SlideSegmentationSpec, SlideTilesSpec
from oncofed.training import Plan, Trainer, TrainingSpec
from slide_files import drawn_slides

pytest.importorskip("tifffile")

CPU = torch.device("cpu")
CLASSES = {1: "tumour", 2: "stroma"}
DATA = DataSpec(
    dataset="slides", modality="microscopy", channels=("r", "g", "b"), patch=(32, 32), spacing=(0.002, 0.002)
)
UNET = ModelSpec(network="unet", channels=(8, 16), residual_units=1, norm="batch")


def spec_of(undrawn: str = "background", **more: object) -> SlideSegmentationSpec:
    return SlideSegmentationSpec(classes=CLASSES, undrawn=undrawn, patches=12, **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten registered slides, each of a patient."""
    folder = tmp_path_factory.mktemp("slides")
    drawn_slides(folder / "in", 10, side=384)
    register(RegisterOptions(folder / "in", "slides", folder / "set", "slides", tiles=TileSpec(64, 1.0), workers=1))
    return folder / "set"


def _plan(task: object, model: ModelSpec = UNET, steps: int = 60) -> Plan:
    training = TrainingSpec(
        steps_per_round=steps, batch_size=8, learning_rate=1e-2, warmup_steps=0, augmentation="none"
    )
    return Plan(data=DATA, task=task, model=model, training=training, rounds=1)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def cases(dataset: Path) -> tuple[Case, ...]:
    plan = _plan(spec_of())
    return tuple(usable_cases(dataset, DATA, plan.supervision(), 1, "here").cases)


def _truth(case: Case) -> np.ndarray:
    """What was drawn, (x, y) on the working grid; the dataset calls stroma 1."""
    with SlideCanvas(case.image, DATA, 32) as canvas:
        return drawn_labels(case, canvas).window(0, 0, *canvas.size).T


class Knowing(nn.Module):
    """Sees tumour, glass and the rest by colour; the depth of an object is one."""

    def __init__(self, depth: bool = False) -> None:
        super().__init__()
        self.depth = depth

    def forward(self, image: Tensor) -> Tensor:
        like = image[:, :1]
        maps = [torch.zeros_like(like), torch.full_like(like, 4.0), torch.full_like(like, -4.0)]
        return torch.cat([*maps, *([torch.ones_like(like)] if self.depth else [])], dim=1)


def test_patches_lie_in_and_around_regions_and_no_class_is_rarer(cases: tuple[Case, ...]) -> None:
    patches = RegionPatches(DATA, "none", Cutting(3, each=12, undrawn=0))
    prepared = patches.prepare(cases[0])
    assert prepared["patches"].shape == (36, 3, 48, 48)
    assert torch.bincount(prepared["of"]).tolist() == [12, 12, 12]
    centres = prepared["marks"][:, 0, 24, 24].long()
    # A patch's centre is that of a cell of four pixels, of which a border may cut the corner.
    assert (centres == prepared["of"]).float().mean() > 0.9
    generator = torch.Generator().manual_seed(3)
    drawn = [patches.draw(prepared, generator) for _ in range(150)]
    seen = torch.cat([one["label"].flatten() for one in drawn])
    assert set(seen.unique().tolist()) == {0, 1, 2}
    assert all(one["image"].shape == (3, 32, 32) for one in drawn)
    assert abs(float(torch.stack([one["image"] for one in drawn]).mean())) < 1
    again = patches.prepare(cases[0])
    assert all(torch.equal(prepared[name], again[name]) for name in prepared)


def test_a_patch_shows_what_its_label_says(cases: tuple[Case, ...]) -> None:
    patches = RegionPatches(DATA, "none", Cutting(3, each=30, undrawn=0))
    prepared = patches.prepare(cases[0])
    blue = prepared["patches"][:, 1].float()  # nuclei are darkest in green
    marks = prepared["marks"][:, 0]
    glass = blue[(marks == 0)].mean()
    assert blue[marks == 1].mean() < blue[marks == 2].mean() < glass  # tumour has larger nuclei


def test_what_nobody_drew_is_unknown_where_the_job_says_so(cases: tuple[Case, ...]) -> None:
    prepared = RegionPatches(DATA, "none", Cutting(3, each=12, undrawn=UNKNOWN)).prepare(cases[0])
    assert torch.bincount(prepared["of"], minlength=3).tolist() == [0, 12, 12]
    assert set(prepared["marks"].unique().tolist()) == {1, 2, UNKNOWN}
    output, label = torch.randn(2, 3, 32, 32), prepared["marks"][:2, :, :32, :32].clone()
    task = SlideSegmentation(spec_of("unknown"), DATA)
    changed = output.clone()
    changed[:, 0][label[:, 0] == UNKNOWN] += 5
    batch: Batch = {"label": label}
    assert torch.equal(task.loss(output, batch), task.loss(changed, batch))


def test_a_slide_without_drawn_regions_is_background_or_refused(cases: tuple[Case, ...], tmp_path: Path) -> None:
    empty = tmp_path / "P.geojson"
    empty.write_text('{"type": "FeatureCollection", "features": []}')
    case = replace(cases[0], label=empty)
    prepared = RegionPatches(DATA, "none", Cutting(3, each=12, undrawn=0)).prepare(case)
    assert set(prepared["of"].tolist()) == {0}
    with pytest.raises(DataError, match=r"has no region of the job's classes.*task\.undrawn"):
        RegionPatches(DATA, "none", Cutting(3, each=12, undrawn=UNKNOWN)).prepare(case)


def test_regions_smaller_than_a_cell_are_not_missed(cases: tuple[Case, ...], tmp_path: Path) -> None:
    small = {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [[[100, 100], [103, 100], [103, 103], [100, 103], [100, 100]]]},
        "properties": {"classification": "tumour"},
    }
    path = tmp_path / "P.geojson"
    path.write_text(json.dumps(small))
    prepared = RegionPatches(DATA, "none", Cutting(3, each=12, undrawn=0)).prepare(replace(cases[0], label=path))
    assert 1 in prepared["of"].tolist()


def test_a_network_learns_the_regions_and_is_scored_on_whole_slides(dataset: Path) -> None:
    plan = _plan(spec_of())
    trainer = Trainer(plan, usable_cases(dataset, DATA, plan.supervision(), 1, "here").cases, "here")
    before = trainer.evaluate(trainer.cases.test).mean
    trainer.train(40)
    found = trainer.evaluate(trainer.cases.test, detailed=True)
    assert found.mean is not None
    assert before is not None
    assert found.mean > max(0.7, before + 0.1)
    assert set(found.by_class) == {"tumour", "stroma"}
    assert set(found.extra_metrics) == {"iou", "accuracy"}


def test_scores_are_those_of_pixels(cases: tuple[Case, ...]) -> None:
    """All tissue is called tumour: Dice follows from what was drawn."""
    for undrawn in ("background", "unknown"):
        task = SlideSegmentation(spec_of(undrawn), DATA)
        figures = task.evaluate_case(Knowing().eval(), cases[0], CPU, True)
        truth = _truth(cases[0])
        with SlideCanvas(cases[0].image, DATA, 32) as canvas:
            seen = canvas.tissue_at(0, 0, *canvas.size).T
        value = {name: n for n, name in cases[0].label_names}["tumour"]
        counted = np.ones_like(seen) if undrawn == "background" else truth > 0
        one, other = seen & counted, (truth == value) & counted
        assert figures["dice.tumour"] == pytest.approx(2 * (one & other).sum() / (one.sum() + other.sum()), abs=0.01)
        assert figures["dice.stroma"] == 0


def test_tiles_of_slides_are_classified(dataset: Path) -> None:
    task = SlideTilesSpec(classes=CLASSES, undrawn="unknown", patches=24)
    network = ModelSpec(
        network="densenet121", arguments={"init_features": 16, "growth_rate": 8, "block_config": [2, 2]}
    )
    plan = _plan(task, network, steps=40)
    trainer = Trainer(plan, usable_cases(dataset, DATA, plan.supervision(), 1, "here").cases, "here")
    trainer.train(40)
    found = trainer.evaluate(trainer.cases.test, detailed=True)
    assert found.mean is not None
    assert found.mean > 0.7


def test_a_tile_of_which_most_is_unknown_teaches_nothing() -> None:
    task = SlideTiles(SlideTilesSpec(classes=CLASSES, undrawn="unknown"), DATA)
    label = torch.full((2, 1, 32, 32), UNKNOWN, dtype=torch.uint8)
    label[0, :, :20] = 2
    output = torch.randn(2, 3)
    expected = torch.nn.functional.cross_entropy(output[:1], torch.tensor([2]))
    assert torch.allclose(task.loss(output, {"label": label}), expected)
    assert task.loss(output, {"label": torch.full_like(label, UNKNOWN)}) == 0


def test_objects_are_learned_with_their_kinds_and_matched_once(dataset: Path) -> None:
    spec = SlideObjectsSpec(classes=CLASSES, undrawn="background", patches=12)
    plan = _plan(spec, steps=2)
    trainer = Trainer(plan, usable_cases(dataset, DATA, plan.supervision(), 1, "here").cases, "here")
    assert trainer.train(2) > 0
    batch = next(trainer.prepare())
    assert batch["distance"].shape == batch["label"].shape == (8, 1, 32, 32)
    assert not batch["distance"][batch["label"] == 0].any()
    task, case = trainer.task, trainer.cases.test[0]
    assert isinstance(task, SlideObjects)
    figures = task.evaluate_case(Knowing(depth=True).eval(), case, CPU, True)
    # All tissue is one object: half of it is tumour at most.
    assert figures["f1"] <= 2 / 3
    assert set(figures) == {"pq", "f1", "iou", "pq.tumour", "pq.stroma"}
    assert task.picture(trainer.network.eval(), case, CPU).prediction is not None


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"spacing": None}, "learned at one resolution"),
        ({"spacing": (0.001, 0.002)}, "learned at one resolution"),
        ({"patch": (32, 64)}, "windows of slides are square"),
        ({"channels": ("grey",)}, "red, green and blue, found 1"),
    ],
)
def test_jobs_that_cannot_look_at_slides_are_refused(change: dict[str, object], why: str) -> None:
    with pytest.raises(SpecError, match=why):
        SlideSegmentation(spec_of(), DATA.model_copy(update=change))


def test_settings_that_slides_do_not_know_are_refused() -> None:
    with pytest.raises(ValueError, match="keep_largest"):
        spec_of(keep_largest=(1,))
    with pytest.raises(ValueError, match="undrawn"):
        SlideSegmentationSpec(classes=CLASSES)  # type: ignore[call-arg]
