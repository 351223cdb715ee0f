"""Objects that were drawn on slides are learned as boxes, and found again."""

from __future__ import annotations

import contextlib
import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from made import JOB
from oncofed.data.boxes import apart
from oncofed.data.case import Case
from oncofed.data.cases import Cases, Usable, usable_cases
from oncofed.data.label_mapping import Supervision
from oncofed.data.manifest import read_manifest
from oncofed.data.register import RegisterOptions, register
from oncofed.data.slide_boxes import SlideBoxPatches
from oncofed.data.slides import TileSpec
from oncofed.data.spec import DataSpec
from oncofed.errors import DataError, UnreadableError
from oncofed.job.spec import parse_job
from oncofed.models.weights import weights_of
from oncofed.prediction.model import load_model
from oncofed.prediction.run import predict
from oncofed.prediction.sources import gather
from oncofed.tasks import metrics_that_may_leave
from oncofed.tasks.detection.figures import sensitivities
from oncofed.tasks.detection.outcome import Matched
from oncofed.tasks.slide_detection import SlideDetection
from oncofed.tasks.whole_slide.settings import SlideDetectionSpec, SlideSegmentationSpec
from oncofed.tasks.whole_slide.store import StripStore
from oncofed.training import Trainer
from slide_files import slides_with_spots
from synthetic import write_job
from trained import make_run

pytest.importorskip("tifffile")
pytest.importorskip("shapely")

CPU = torch.device("cpu")
TEXT = JOB.format(
    data="channels: [r, g, b], patch: [32, 32], spacing: [0.002, 0.002]",
    task="{type: slide_detection, classes: {1: spot}, patches: 8, hit_overlap: 0.3}",
    model="{network: retinanet, channels: [16, 32], arguments: {features: 16, sides: [10, 16]}}",
).replace(
    "steps_per_round: 1, batch_size: 2, learning_rate: 0.01, warmup_steps: 0",
    "steps_per_round: 240, batch_size: 8, learning_rate: 0.002, warmup_steps: 10",
)
DATA = DataSpec(dataset="made", modality="microscopy", channels=("r", "g", "b"), patch=(32, 32), spacing=(0.002, 0.002))
# Radius of a spot in working pixels.
RADIUS = 7


def registered(folder: Path, count: int, points: bool = False) -> Path:
    slides_with_spots(folder / "in", count, points=points)
    register(RegisterOptions(folder / "in", "made", folder / "set", "slides", tiles=TileSpec(64, 1.0), workers=1))
    return folder / "set"


def cases_of(folder: Path) -> Cases:
    plan = parse_job(write_job(folder.parent / "job", TEXT)).plan()
    return usable_cases(folder, DATA, plan.supervision(), 1, "here").cases


@pytest.fixture(scope="module")
def outlined(tmp_path_factory: pytest.TempPathFactory) -> Cases:
    """Ten slides with outlines, each of a patient."""
    return cases_of(registered(tmp_path_factory.mktemp("outlines"), 10))


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Case, ...]:
    """The first of them, with points."""
    return tuple(cases_of(registered(tmp_path_factory.mktemp("points"), 3, points=True)))


@pytest.fixture(scope="module")
def looked_through(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three slides; on the first nothing was found."""
    folder = tmp_path_factory.mktemp("negatives")
    slides_with_spots(folder / "in", 3)
    for path in sorted((folder / "in").iterdir()):
        path.rename(path.with_name(path.name.replace("P", "tissue")))  # a name that tells no patient
    (folder / "in" / "tissue0.geojson").write_text('{"type": "FeatureCollection", "features": []}')
    register(RegisterOptions(folder / "in", "made", folder / "set", "slides", tiles=TileSpec(64, 1.0), workers=1))
    return folder / "set"


class Dark(nn.Module):
    """Finds a box of a spot's size around each pixel, the likelier the darker its surroundings."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the columns of one class, an anchor for each pixel."""
        dark = functional.avg_pool2d(-x.mean(1, keepdim=True), 2 * RADIUS - 1, 1, RADIUS - 1).flatten(2)
        places = torch.cartesian_prod(*[torch.arange(side) + 0.5 for side in x.shape[2:]])
        anchors = torch.cat([places - RADIUS, places + RADIUS], dim=1).T.expand(len(x), -1, -1)
        offsets = torch.zeros(len(x), 4, anchors.shape[2])
        return torch.cat([8 * (dark - 1), offsets, anchors, dark * 0], dim=1)


def _usable(folder: Path, wanted: Supervision) -> Usable:
    """Return the usable cases, dealt so that the one without objects is not the only one held out."""
    for seed in range(1, 50):
        with contextlib.suppress(DataError):
            return usable_cases(folder, DATA.model_copy(update={"max_bad_share": 1}), wanted, seed, "here")
    raise AssertionError("no seed deals them so")


def test_a_slide_without_objects_is_learned_from_and_scored(looked_through: Path) -> None:
    manifest = read_manifest(looked_through)
    assert not manifest.quarantine
    (remark,) = [text for text in manifest.remarks if "patient" in text]
    assert remark.startswith(
        "slides with regions whose patient nothing names, 3 of 3: tissue0, tissue1, tissue2. Each counts as a"
    )
    negative, *others = sorted(cases_of(looked_through), key=lambda case: case.name)
    assert (negative.name, len(others)) == ("tissue0", 2)
    patches = SlideBoxPatches(DATA, "none", 2, 8, None)
    prepared = patches.prepare(negative)
    assert prepared["of"].tolist() == [0] * 8
    generator = torch.Generator().manual_seed(1)
    both = [prepared, patches.prepare(others[0])]
    batch = patches.change(patches.together([patches.draw(one, generator) for one in both]), generator)
    assert not batch["classes"][0].any()
    spec = SlideDetectionSpec(classes={1: "spot"}, hit_overlap=0.3)
    task = SlideDetection(spec, DATA)
    loss = task.loss(Dark()(patches.together([patches.draw(prepared, generator)] * 2)["image"]), batch)
    assert torch.isfinite(loss)
    found = task.evaluate_case(Dark(), negative, CPU, False)["spot"]
    assert found.objects == 0
    assert not found.hits.any()
    # A job whose examples are drawn alone learns nothing of it.
    for undrawn, count in (("background", 3), ("unknown", 2)):
        settings = SlideSegmentationSpec(classes={1: "spot"}, undrawn=undrawn)
        wanted = Supervision(classes=settings.vocabulary, of_empty=settings.learns_of_empty)
        usable = _usable(looked_through, wanted)
        assert len(list(usable.cases)) == count
        assert [problem.what for problem in usable.set_aside] == ["its label is empty: no voxel of any class"] * (
            3 - count
        )


def test_a_slide_that_breaks_while_it_is_scored_is_set_aside(looked_through: Path, tmp_path: Path) -> None:
    plan = parse_job(write_job(tmp_path / "job", TEXT)).plan()
    dealt = cases_of(looked_through)
    whole = tuple(dealt)
    (tmp_path / "cut.tif").write_bytes(whole[1].image.read_bytes()[:3000])
    cases = (whole[0], replace(whole[1], image=tmp_path / "cut.tif"), whole[2])
    strict, data = Trainer(plan, dealt, "here"), plan.data.model_copy(update={"max_bad_share": 0.4})
    with pytest.raises(
        DataError, match=rf"(?s)1 of 3 cases turned out to be damaged.*max_bad_share.*{whole[1].name}: "
    ):
        strict.evaluate(cases)
    trainer, outcomes = Trainer(plan.model_copy(update={"data": data}), dealt, "here"), list[tuple[str, object]]()
    for _ in range(2):  # each round anew
        outcomes.clear()
        assert trainer.evaluate(cases, keep=outcomes).cases == 2
        assert [patient for patient, _ in outcomes] == [whole[0].patient, whole[2].patient]
        assert list(trainer.damaged) == [whole[1].name]
    gone = replace(whole[1], image=tmp_path / "gone.tif")
    with pytest.raises(UnreadableError, match="its file is gone"):
        trainer.evaluate((gone,))


def test_patches_lie_around_objects_and_away_from_them(outlined: Cases) -> None:
    patches = SlideBoxPatches(DATA, "none", 2, 8, None)
    case = next(iter(outlined))
    prepared = patches.prepare(case)
    assert torch.bincount(prepared["of"]).tolist() == [8, 5]
    centres = prepared["objects"][:, 0, 24, 24] > 0
    assert torch.equal(centres, prepared["of"] > 0)
    again = patches.prepare(case)
    assert all(torch.equal(prepared[name], again[name]) for name in prepared)
    generator = torch.Generator().manual_seed(1)
    batch = patches.change(patches.together([patches.draw(prepared, generator) for _ in range(40)]), generator)
    assert batch["boxes"].shape[::2] == (40, 4)
    assert 0.3 < float((batch["classes"] > 0).any(dim=1).float().mean()) < 0.9
    whole = 0
    for image, boxes, classes in zip(batch["image"], batch["boxes"], batch["classes"], strict=True):
        for x, y, right, lower in boxes[classes > 0].int().tolist():
            inside = image[:, x:right, y:lower].mean()
            assert inside < image.mean() - 0.2, "a box encloses what is dark"
            whole += min(right - x, lower - y) >= 2 * RADIUS - 1
    assert whole > 10


def test_points_are_boxes_of_the_size_that_the_job_says(outlined: Cases, marked: tuple[Case, ...]) -> None:
    with pytest.raises(DataError, match=r"marks 5 objects by points alone, .* task\.point_size"):
        SlideBoxPatches(DATA, "none", 2, 8, None).prepare(marked[0])
    points = SlideBoxPatches(DATA, "none", 2, 8, 4.0 * RADIUS).prepare(marked[0])
    (same,) = [case for case in outlined if case.name == marked[0].name]
    outlines = SlideBoxPatches(DATA, "none", 2, 8, None).prepare(same)
    around = [one["objects"][one["of"] == 1] for one in (points, outlines)]
    assert len(around[0]) == 5
    assert torch.equal(*around)


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.6])
def test_each_object_of_a_slide_is_found_once_wherever_windows_cut_it(outlined: Cases, overlap: float) -> None:
    task = SlideDetection(SlideDetectionSpec(classes={1: "spot"}, overlap=overlap, least_score=0.3), DATA)
    for case in tuple(outlined)[:3]:
        spots = task.evaluate_case(Dark().eval(), case, CPU, True)["spot"]
        assert spots.objects == spots.hits.sum() == 5
        best = task.summarise([("a", {"spot": spots})])
        assert best.mean is not None
        assert best.mean > 0.9
    case = next(iter(outlined))
    assert task.picture(Dark().eval(), case, CPU).prediction is not None


def test_false_positives_count_by_tissue_where_the_job_says_so(outlined: Cases) -> None:
    spec = SlideDetectionSpec(classes={1: "spot"}, false_positives="mm2")
    outcome = SlideDetection(spec, DATA).evaluate_case(Dark().eval(), next(iter(outlined)), CPU, True)["spot"]
    # Three quarters of each side are tissue: 240² µm.
    assert outcome.extent == pytest.approx(0.24**2, rel=0.1)
    assert "sensitivity at 1/8 false positives a mm² of tissue" in {m.title for m in metrics_that_may_leave(spec)}
    one = Matched(np.array([0.9, 0.8]), np.array([False, True]), 1, extent=0.5)
    assert sensitivities([one]).tolist() == [0, 0, 0, 0, 1, 1, 1], "one on half a mm² is two"  # type: ignore[union-attr]


def test_a_broken_prediction_goes_on_behind_its_rows(outlined: Cases, tmp_path: Path) -> None:
    task = SlideDetection(SlideDetectionSpec(classes={1: "spot"}), DATA)
    prepared = task.inference_preparation().prepare(next(iter(outlined)))
    whole = task.infer_slide(Dark().eval(), prepared, CPU)

    def stop(done: int, _: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        task.infer_slide(Dark().eval(), prepared, CPU, StripStore(tmp_path, stop))
    told: list[int] = []
    resumed = task.infer_slide(Dark().eval(), prepared, CPU, StripStore(tmp_path, lambda done, _: told.append(done)))
    assert told[0] == 4
    assert np.array_equal(resumed.corners, whole.corners)
    assert np.array_equal(resumed.scores, whole.scores)
    # What an older build kept in another form counts as not kept.
    rows = sorted(tmp_path.iterdir())
    np.savez(rows[0], corners=np.zeros((1, 2, 2)), scores=np.ones(1), classes=np.zeros(1, int))
    np.savez(rows[1], boxes=np.zeros((1, 4)))
    rows[2].write_bytes(rows[2].read_bytes()[:100])
    told.clear()
    again = task.infer_slide(Dark().eval(), prepared, CPU, StripStore(tmp_path, lambda done, _: told.append(done)))
    assert len(told) == 3
    assert np.array_equal(again.corners, whole.corners)


def test_of_boxes_that_overlap_the_likelier_one_of_its_class_stays() -> None:
    corners = np.array([[0.0, 0, 10, 10], [1, 0, 11, 10], [2, 0, 12, 10], [0, 0, 10, 10], [10, 10, 20, 20]])
    scores, labels = np.array([0.5, 0.9, 0.4, 0.3, 0.2]), np.array([1, 1, 1, 2, 1])
    assert apart(corners, scores, labels, 0.5).tolist() == [1, 3, 4]
    assert apart(corners[:3], np.array([0.9, 0.5, 0.4]), labels[:3], 0.7).tolist() == [0, 2], "1 is gone, not 2"
    assert apart(np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64), 0.5).tolist() == []


@pytest.mark.slow
def test_spots_are_learned_and_a_prediction_opens_in_qupath(outlined: Cases, tmp_path: Path) -> None:
    job = parse_job(write_job(tmp_path / "learned", TEXT))
    trainer = Trainer(job.plan(), outlined, "here")
    trainer.train(240)  # over four seeds 0.94 to 1; after half as many 0.69 to 0.97
    scores = trainer.evaluate(outlined.test, detailed=True)
    assert scores.mean is not None
    assert scores.mean > 0.8
    assert scores.extra_metrics["map"] > 0.8
    model = load_model(make_run(tmp_path / "run", TEXT, weights_of(trainer.network)))
    slides_with_spots(tmp_path / "new", 1)
    sources = gather([tmp_path / "new" / "P0.tif"], tmp_path / "out", model.job, tmp_path / "datasets", workers=1)
    found = predict(model, sources, tmp_path / "out", CPU)
    assert not found.set_aside
    (record,) = found.now
    (row,) = record["figures"]
    folder = tmp_path / "out" / "cases" / "P0"
    names = ["P0_boxes.geojson", "P0_boxes.csv", "P0_boxes.json", "P0_density.png"]
    assert record["files"] == {"boxes": names}
    features = json.loads((folder / names[0]).read_text())["features"]
    with (folder / names[1]).open(newline="") as file:
        table = list(csv.DictReader(file))
    assert len(features) == row["objects"] == sum(float(line["score"]) >= 0.5 for line in table)
    assert row["per_mm2"] == pytest.approx(row["objects"] / row["tissue_mm2"])
    for feature in features:
        assert feature["properties"]["objectType"] == "detection"
        assert feature["properties"]["classification"]["name"] == "spot"
        assert 0.5 <= feature["properties"]["measurements"]["Score"] <= 1
    drawn = json.loads((tmp_path / "new" / "P0.geojson").read_text())["features"]
    ends = ("low_x_px", "low_y_px", "high_x_px", "high_y_px")
    best = np.array([[float(line[end]) for end in ends] for line in table[:8]])
    middles = (best[:, :2] + best[:, 2:]) / 2
    for one in drawn:
        spot = np.mean(np.array(one["geometry"]["coordinates"][0])[:-1], axis=0)
        assert np.abs(middles - spot).max(axis=1).min() < 8, "in pixels of the finest level"
    assert float(table[0]["size_x_mm"]) == pytest.approx(0.028, abs=0.012)
