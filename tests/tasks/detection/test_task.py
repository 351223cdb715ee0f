"""Detection: the loss, boxes of whole images, and a job that finds bright balls in noise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data.box_utils import box_iou
from torch import Tensor, nn

from oncofed.data.cases import Cases, usable_cases
from oncofed.data.spec import DataSpec
from oncofed.errors import SpecError
from oncofed.job.spec import JobSpec, read_job
from oncofed.models import ModelSpec, NetworkRequest, build_network
from oncofed.privacy.evaluations import evaluation_numbers, is_evaluation
from oncofed.tasks import metrics_that_may_leave
from oncofed.tasks.detection import Detection, DetectionSpec, Matched
from oncofed.tasks.detection.finding import Finder
from oncofed.tasks.detection.loss import Columns, detection_loss, match
from oncofed.training import Trainer
from synthetic import make_lesions

JOB = """\
schema: 1
name: balls
title: Bright balls
data: {dataset: balls, patch: [16, 16, 16], spacing: [1.5, 1.5, 1.5], max_bad_share: 1}
task: {type: detection, classes: {1: lesion}}
model: {network: retinanet, channels: [8, 16], arguments: {features: 8, sides: [4, 6]}}
training: {steps_per_round: 100, batch_size: 4, learning_rate: 0.01, warmup_steps: 5}
rounds: {number: 1}
"""
FLAT = {"data": {"patch": [32, 32], "spacing": None, "modality": "xray"}, "model": {"arguments": {"sides": [6, 10]}}}


def job(folder: Path, text: str = JOB) -> JobSpec:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "job.yaml").write_text(text)
    return read_job(folder / "job.yaml")


def cases_of(spec: JobSpec, folder: Path) -> Cases:
    plan = spec.plan()
    return usable_cases(folder, plan.data, plan.supervision(), plan.seed, "here").cases


@pytest.mark.parametrize("axes", [2, 3])
def test_the_network_says_of_each_anchor_where_it_lies(axes: int) -> None:
    columns = Columns(2, axes)
    spec = ModelSpec(network="retinanet", channels=(8, 16, 32), arguments={"features": 8, "sides": [4, 6]})
    network = build_network(NetworkRequest(spec, 1, columns.number, axes, (16,) * axes), 1)
    output = network(torch.randn(2, 1, *(16,) * axes))
    assert output.shape == (2, columns.number, 2 * (8**axes + 4**axes))
    logits, offsets, anchors, levels = columns.split(output[1])
    assert (logits.shape[1], offsets.shape[1]) == (2, 2 * axes)
    sides = (anchors[:, axes:] - anchors[:, :axes])[:, 0]
    assert [set(sides[levels == n].tolist()) for n in (0, 1)] == [{4.0, 6.0}, {8.0, 12.0}]
    centres = (anchors[:, axes:] + anchors[:, :axes]) / 2
    assert centres[levels == 0].unique().tolist() == list(range(1, 17, 2))
    # A change of the image changes first what is said of the anchors around it.
    image = torch.zeros(1, 1, *(16,) * axes, requires_grad=True)
    corner = (levels == 0) & (centres == 1).all(dim=1)
    network(image)[0, 0, corner].sum().backward()
    assert image.grad is not None
    assert image.grad.abs()[0, 0].flatten().argmax() < 16 ** (axes - 1) * 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"finest": 4}, "finest is 4"), ({"sides": [1]}, "sides are"), ({"features": 12}, "multiple of 8")],
)
def test_arguments_that_do_not_fit_are_named(arguments: dict[str, object], message: str) -> None:
    spec = ModelSpec.model_validate({"network": "retinanet", "channels": [8, 16], "arguments": arguments})
    with pytest.raises(SpecError, match=message):
        build_network(NetworkRequest(spec, 1, 14, 3, (16, 16, 16)), 1)


def anchors_of_cubes(side: int = 4) -> tuple[Tensor, Tensor]:
    centres = torch.cartesian_prod(*[torch.arange(1, 16, 2.0)] * 3)
    anchors = torch.cat([torch.cat([centres - s / 2, centres + s / 2], dim=1) for s in (side, 2 * side)])
    return anchors, torch.arange(2).repeat_interleave(len(centres)).float()


def test_each_object_has_anchors_and_each_anchor_one_object() -> None:
    anchors, levels = anchors_of_cubes()
    boxes = torch.tensor([[2.0, 2, 2, 6, 6, 6], [8, 8, 8, 16, 16, 16], [5, 9, 1, 6, 10, 2]])
    found = match(boxes, anchors, levels, 8)
    assert set(found[found >= 0].tolist()) == {0, 1, 2}
    overlaps = box_iou(boxes, anchors)
    assert (found[overlaps.argmax(dim=1)] == torch.arange(3)).all()
    assert (overlaps[found[found >= 0], found >= 0] > 0).all(), "no anchor stands for an object that it does not touch"
    assert not (match(boxes[:0], anchors, levels, 8) >= 0).any()


def test_the_loss_is_least_for_the_right_answer() -> None:
    columns = Columns(2, 3)
    anchors, levels = anchors_of_cubes()
    boxes = torch.tensor([[[2.0, 2, 2, 6, 6, 7], [float("nan")] * 6], [[float("nan")] * 6] * 2])
    classes = torch.tensor([[2, 0], [0, 0]])
    chosen = match(boxes[0, :1], anchors, levels, 8)
    logits = torch.full((len(anchors), 2), -8.0)
    logits[chosen >= 0, 1] = 8.0
    offsets = torch.zeros(len(anchors), 6)
    offsets[chosen >= 0] = columns.coder.encode_single(
        boxes[0, [0]].expand((chosen >= 0).sum(), 6), anchors[chosen >= 0]
    )

    def output(logits: Tensor, offsets: Tensor) -> Tensor:
        none = torch.full((len(anchors), 2), -8.0)
        fixed = [anchors, levels[:, None]]
        rows = [torch.cat([one, offsets, *fixed], dim=1).T for one in (logits, none)]
        return torch.stack(rows).requires_grad_()

    def loss(logits: Tensor, offsets: Tensor) -> float:
        return float(detection_loss(output(logits, offsets), boxes, classes, columns, 8, 1.0).detach())

    assert loss(logits, offsets) < 0.001
    assert loss(logits.flip(1), offsets) > 1, "another class"
    assert loss(logits, offsets + 0.5) > 1, "other boxes"
    assert loss(-logits, offsets) > 1, "everything is an object"
    given = output(logits.flip(1), offsets + 0.5)
    detection_loss(given, boxes, classes, columns, 8, 1.0).backward()
    assert given.grad is not None
    assert not given.grad[:, 8:].any(), "anchors are not learned"
    given = given.detach()
    whole = detection_loss(given, boxes, classes, columns, 8, 1.0)
    halves = [detection_loss(given[n : n + 1], boxes[n : n + 1], classes[n : n + 1], columns, 8, 1.0) for n in (0, 1)]
    assert float(whole) == pytest.approx(float(sum(halves) / 2)), "a mean over samples"


class Bright(nn.Module):
    """Finds a box of eight voxels around each voxel of 1 in a patch, the likelier the brighter."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the columns of one class, an anchor for each voxel."""
        axes = x.ndim - 2
        places = torch.cartesian_prod(*[torch.arange(side) + 0.5 for side in x.shape[2:]])
        anchors = torch.cat([places - 4, places + 4], dim=1).T.expand(len(x), -1, -1)
        likely = torch.where(x.flatten(2) > 0.2, x.flatten(2), -9.0)
        return torch.cat([likely, torch.zeros(len(x), 2 * axes, anchors.shape[2]), anchors, likely * 0], dim=1)


@pytest.mark.parametrize("shape", [(40, 33, 21), (12, 20, 16), (50, 44)])
def test_windows_find_each_object_once_wherever_it_lies(shape: tuple[int, ...]) -> None:
    """Also in an image that is smaller than a window."""
    axes = len(shape)
    rng = np.random.default_rng(0)
    image = torch.zeros(1, *shape)
    centres: list[np.ndarray] = []
    while len(centres) < 4:
        place = np.array([rng.integers(1, side - 1) for side in shape])
        if all(np.abs(place - other).max() > 8 for other in centres):
            centres.append(place)
            image[(0, *place)] = 1 + len(centres)
    task = DetectionSpec(classes={1: "lesion"})
    find = Finder(DataSpec(dataset="any", patch=(16,) * axes), task, Columns(1, axes))
    boxes, scores, classes = find(Bright(), image, torch.device("cpu"))
    expected = [np.clip([*(place - 3.5), *(place + 4.5)], 0, [*shape, *shape]) for place in reversed(centres)]
    assert boxes.numpy() == pytest.approx(np.array(expected))
    assert scores.tolist() == sorted(scores.tolist(), reverse=True)
    assert not classes.any()
    empty, _, _ = find(Bright(), torch.zeros(1, *shape), torch.device("cpu"))
    assert empty.shape == (0, 2 * axes)


@pytest.mark.slow
def test_a_network_learns_to_find_balls(tmp_path: Path) -> None:
    """From boxes that are stated, in volumes of other voxels than the job's grid."""
    spec = job(tmp_path)
    cases = cases_of(spec, make_lesions(tmp_path / "set", 24))
    spec.plan().try_network()
    trainer = Trainer(spec.plan(), cases, "here")
    trainer.train(100)
    held_out = (*cases.validation, *cases.test)
    evaluation = trainer.evaluate(held_out, detailed=True)
    assert evaluation.mean is not None
    assert evaluation.mean > 0.8
    assert evaluation.extra_metrics["map"] > 0.7
    assert set(evaluation.by_class) == {"lesion"}
    with_balls = {case.patient for case in held_out if case.boxes}
    assert len(with_balls) < len(evaluation.patients)
    picture = trainer.task.picture(trainer.network, next(c for c in held_out if c.boxes), trainer.device)
    assert picture.reference is not None
    assert picture.prediction is not None
    overlap = (picture.reference > 0) & (picture.prediction > 0)
    assert overlap.sum() > 0.3 * (picture.reference > 0).sum()
    numbers = evaluation_numbers(replace(evaluation, may_leave=False))
    told = metrics_that_may_leave(spec.task)
    assert is_evaluation(numbers, ["lesion"], len(held_out), told)
    assert numbers["mean"] is None
    assert not numbers["more"]
    numbers = evaluation_numbers(replace(evaluation, may_leave=True))
    for share, is_right in ((0.9, True), (1.2, False)):
        behind = {**numbers["patients"], "more": {"map": 5}}
        sent = {**numbers, "more": {"map": share}, "patients": behind}
        assert is_evaluation(sent, ["lesion"], len(held_out), told) == is_right


def test_training_is_the_same_again(tmp_path: Path) -> None:
    spec = job(tmp_path).changed(FLAT)
    cases = cases_of(spec, make_lesions(tmp_path / "set", 8, axes=2))
    losses = [Trainer(spec.plan(), cases, "here").train(4) for _ in range(2)]
    assert losses[0] == losses[1]


def test_cases_without_objects_count_for_false_positives_alone() -> None:
    task = Detection(DetectionSpec(classes={1: "nodule", 2: "node"}), DataSpec(dataset="any", patch=(16, 16)))
    none = Matched(np.zeros(0), np.zeros(0, bool), 0)
    found = Matched(np.array([0.9, 0.8]), np.array([False, True]), 1)
    alone = [("a", {"nodule": found, "node": none})]
    empty = [(f"b{n}", {"nodule": none, "node": none}) for n in range(7)]
    assert task.summarise(alone).by_class == {"nodule": pytest.approx(4 / 7)}, "one false positive an image"
    assert task.summarise([*alone, *empty]).by_class == {"nodule": 1.0}, "one in eight images"
    assert task.summarise(empty).mean is None
    assert task.patients_behind([*alone, *empty])["nodule"] == set(), "one patient's stays"
    assert not task.may_leave([*alone, *empty])
    assert task.may_leave(empty)
    assert task.case_metrics(alone[0][1])["hits.nodule"] == 1
    # One patient's nodule stays; that nobody has a node tells of nobody.
    more = [(f"c{n}", outcome) for n, (_, outcome) in enumerate(empty)]
    assert set((task.pooled([*alone, *empty, *more]) or {})["targets"]) == {"node"}


def test_a_task_of_boxes_takes_a_network_of_boxes_alone(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="needs a network that gives boxes around objects; unet gives values"):
        job(
            tmp_path,
            JOB.replace("network: retinanet", "network: unet").replace(", arguments: {features: 8, sides: [4, 6]}", ""),
        )
    with pytest.raises(SpecError, match="each side must be a multiple of 2"):
        job(tmp_path, JOB.replace("[16, 16, 16]", "[17, 16, 16]"))


def test_a_target_of_boxes_is_a_detection(tmp_path: Path) -> None:
    target = "targets: [{name: lesions, kind: boxes, classes: {1: lesion}}]"
    spec = job(tmp_path, JOB.replace("task: {type: detection, classes: {1: lesion}}", target))
    assert isinstance(spec.task, DetectionSpec)
    assert replace(spec.plan().supervision(), classes={}).kind == "boxes"
