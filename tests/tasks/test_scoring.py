"""Scores equal those of resampling the whole output."""

from __future__ import annotations

import itertools
import pickle
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data.meta_tensor import MetaTensor
from monai.inferers import sliding_window_inference
from monai.transforms import SpatialResample
from torch import Tensor, nn

from oncofed.data.case import Case
from oncofed.data.inputs import Prepared
from oncofed.data.spec import DataSpec
from oncofed.tasks import Segmentation, SegmentationSpec, segmentation
from oncofed.tasks.entropy import mean_entropy
from oncofed.tasks.scores import Evaluation
from oncofed.tasks.segmentation import Segmented
from oncofed.tasks.windows import Windows

_CPU = torch.device("cpu")


class _Given(Segmentation):
    """Scores one prepared case, whatever it is asked for."""

    given: Prepared

    def prepared(self, case: Case) -> Prepared:
        return self.given


def _affines(rng: np.random.Generator, dimensions: int, spaced: bool, oblique: bool) -> tuple[np.ndarray, np.ndarray]:
    image, step = np.diag([*rng.uniform(0.5, 2, 3), 1.0]), np.zeros((4, 4))
    image[:3, 3], step[3, 3] = rng.normal(size=3) * 20, 1
    for n, axis in enumerate([*rng.permutation(dimensions), 2][:3]):
        step[n, axis] = rng.choice([-1, 1]) * (rng.uniform(0.6, 1.6) if spaced else 1)
    if oblique:
        angle = rng.uniform(0.1, 0.5)
        step[:, :2] = step[:, :2] @ [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return image, image @ step


def _straightforward(
    task: Segmentation, network: nn.Module, prepared: Prepared, overlap: float, mirror: bool
) -> Tensor:
    """Return class probabilities on the label's grid.

    (classes, x, y[, z]).
    """
    image = prepared["image"][None]
    axes = range(2, image.ndim)
    flips = [f for n in range(image.ndim - 1) for f in itertools.combinations(axes, n)] if mirror else [()]
    outputs = [
        sliding_window_inference(image.flip(f), task.data.patch, 4, network, overlap, mode="gaussian").flip(f)
        for f in flips
    ]
    likely = torch.stack(outputs).mean(0)[0].softmax(0)
    if task.data.dimensions == 2 and not task.data.spacing:
        return likely
    resample = SpatialResample(mode="bilinear", padding_mode="border", dtype=torch.float64)
    placed = MetaTensor(likely.double(), affine=prepared["image.affine"])
    return resample(placed, prepared["label.affine"], list(prepared["label"].shape)).as_tensor()


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    dimensions=st.sampled_from([2, 3]),
    classes=st.sampled_from([2, 3, 5]),
    kind=st.sampled_from(["turned", "spaced", "oblique"]),
    overlap=st.sampled_from([0, 0.25, 0.6]),
    mirror=st.booleans(),
)
@torch.no_grad()
def test_labels_and_scores_are_those_of_the_whole_output(
    seed: int, dimensions: int, classes: int, kind: str, overlap: float, mirror: bool
) -> None:
    rng = np.random.default_rng(seed)
    shape = rng.integers(8, 40, dimensions)
    image, label = _affines(rng, dimensions, kind != "turned", kind == "oblique")
    data = DataSpec(dataset="any", patch=(16,) * dimensions, spacing=None if kind == "turned" else (1.0,) * dimensions)
    names = {n: f"class {n}" for n in range(1, classes)}
    task = _Given(SegmentationSpec(classes=names, overlap=overlap, mirror=mirror), data)
    flat = dimensions == 2 and kind == "turned"
    if kind == "turned" and not flat:  # onto the same voxels
        order = np.abs(np.linalg.solve(image, label)[:dimensions, :dimensions]).argmax(0)
        file_shape = shape[order]
        label = label.copy()
        label[:, 3] = (image @ _corner(np.linalg.solve(image, label), shape))[:, 0]
    else:
        file_shape = shape if flat else rng.integers(8, 30, dimensions)
    task.given = {
        "image": torch.from_numpy(rng.normal(size=(1, *shape)).astype(np.float32)),
        "image.affine": torch.from_numpy(image),
        "label": torch.from_numpy(rng.integers(0, classes, tuple(file_shape)).astype(np.uint8)),
        "label.affine": torch.from_numpy(label),
    }
    torch.manual_seed(seed % 1000)
    network = (nn.Conv3d if dimensions == 3 else nn.Conv2d)(1, classes, 3, padding=1).eval()
    likely = _straightforward(task, network, task.given, overlap, mirror)
    found = task.predict(network, None, _CPU)  # type: ignore[arg-type]
    expected = likely.max(0).indices.numpy()
    top = likely.topk(2, 0).values
    # If two classes are equally likely within rounding, either is right.
    tied = (top[0] - top[1] < 1e-4).numpy()
    assert np.array_equal(found.prediction[~tied], expected[~tied])
    if np.array_equal(found.prediction, expected):
        scores = task.evaluate_case(network, Case("case", "patient", Path("image"), Path("label")), _CPU, False)
        for value, name in names.items():
            p, r = expected == value, found.reference == value
            size = int(p.sum()) + int(r.sum())
            dice = 2 * int((p & r).sum()) / size if size else np.nan
            assert scores[f"dice.{name}"] == pytest.approx(dice, abs=1e-6, nan_ok=True)


def _corner(step: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """Return the first voxel of a turned grid, (4, 1).

    In the grid that it was turned from.
    """
    start = np.zeros((4, 1))
    start[3] = 1
    for n, side in enumerate(shape):
        start[n] = side - 1 if step[n].sum() - step[n, 3] < 0 else 0
    return start


def _case(folder: Path, rng: np.random.Generator) -> Case:
    label = np.zeros((20, 24, 18), np.uint8)
    label[4:12, 5:15, 3:14], label[6:9, 7:12, 5:9] = 1, 2
    image = label * 100 + rng.normal(size=label.shape) * 5
    affine = np.diag([-0.8, -0.9, 2.0, 1.0])
    for name, values in (("image", image.astype(np.float32)), ("label", label)):
        nib.save(nib.Nifti1Image(values, affine), folder / f"{name}.nii.gz")
    return Case("a", "a", folder / "image.nii.gz", folder / "label.nii.gz")


class _Levels(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return torch.cat([-image, 0.4 - (image - 0.3).abs(), image - 1.5], 1)


@pytest.mark.parametrize("spacing", [None, (1.5, 1.5, 1.5)])
def test_held_cases_score_like_newly_read_ones(tmp_path: Path, spacing: tuple[float, ...] | None) -> None:
    case = _case(tmp_path, np.random.default_rng(0))
    spec = SegmentationSpec(classes={1: "shell", 2: "core"}, keep_largest=(1, 2))
    task = Segmentation(spec, DataSpec(dataset="any", patch=(16, 16, 16), spacing=spacing))
    evaluation = task.evaluate(_Levels(), [case], _CPU, detailed=True)
    alone = task.evaluate_case(_Levels(), case, _CPU, True)
    assert evaluation.by_class == {"shell": alone["dice.shell"], "core": alone["dice.core"]}
    assert evaluation.extra_metrics == {name: alone[name] for name in evaluation.extra_metrics}
    assert len(evaluation.extra_metrics) == 4
    found = task.predict(_Levels(), case, _CPU)
    assert task.score(found.prediction, found.reference) == evaluation.by_class


def test_unlabelled_voxels_are_ignored_and_subclasses_may_change_predictions(tmp_path: Path) -> None:
    class Emptied(Segmentation):
        def predict(self, network: nn.Module, case: Case, device: torch.device) -> Segmented:
            found = super().predict(network, case, device)
            return Segmented(np.where(found.prediction == 1, 0, found.prediction), found.reference, found.affine)

    case = _case(tmp_path, np.random.default_rng(0))
    data = DataSpec(dataset="any", patch=(16, 16, 16))
    figures = Emptied(SegmentationSpec(classes={1: "shell", 2: "core"}), data).evaluate_case(
        _Levels(), case, _CPU, True
    )
    assert figures["dice.shell"] == 0
    ignoring = Segmentation(SegmentationSpec(classes={1: "shell"}, ignore=2), data)
    network = nn.Sequential(_Levels(), nn.Conv3d(3, 2, 1, bias=False))
    with torch.no_grad():
        network[1].weight.copy_(torch.tensor([[1.0, 0, 0], [0, 1, 5]]).view(2, 3, 1, 1, 1))  # type: ignore[operator, union-attr]
    found = ignoring.predict(network, case, _CPU)
    counted = found.reference != 2
    expected = ignoring.score(found.prediction * counted, found.reference * counted)
    figures = ignoring.evaluate_case(network, case, _CPU, True)
    assert figures["dice.shell"] == expected["shell"]
    assert found.prediction[~counted].any()
    assert figures["surface_dice.shell"] > 0


def test_evaluation_continues_without_device_memory_for_a_slab(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    case = _case(tmp_path, np.random.default_rng(0))
    task = Segmentation(SegmentationSpec(classes={1: "shell", 2: "core"}), DataSpec(dataset="any", patch=(16, 16, 16)))
    expected = task.evaluate(_Levels(), [case], _CPU)
    whole = Windows.slabs

    def short(self: Windows, *args: object, spare: bool = False, **more: object) -> object:
        if not spare:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(self, *args, spare=spare, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Windows, "slabs", short)
    again = task.evaluate(_Levels(), [case, case], _CPU)
    assert (again.mean, again.by_class) == (expected.mean, expected.by_class)
    assert len([line for line in caplog.messages if "does not fit" in line]) == 1


def test_more_than_256_classes_are_separated() -> None:
    assert segmentation._type_of(256) == torch.uint8
    assert segmentation._type_of(257) == torch.int16


@pytest.mark.parametrize("kind", ["whole", "between"])
@pytest.mark.parametrize("classes", [2, 4])
@torch.no_grad()
def test_labels_are_the_same_with_entropy(kind: str, classes: int) -> None:
    rng = np.random.default_rng(classes)
    shape = (23, 30, 19)
    image, label = _affines(rng, 3, kind == "between", False) if kind == "between" else (np.eye(4), np.eye(4))
    data = DataSpec(dataset="any", patch=(16, 16, 16), spacing=(1.0, 1.0, 1.0) if kind == "between" else None)
    task = Segmentation(SegmentationSpec(classes={n: f"c{n}" for n in range(1, classes)}, mirror=classes == 4), data)
    prepared = {
        "image": torch.from_numpy(rng.normal(size=(1, *shape)).astype(np.float32)),
        "image.affine": torch.from_numpy(image),
        "label": torch.zeros(shape, dtype=torch.uint8),
        "label.affine": torch.from_numpy(label),
    }
    network = nn.Conv3d(1, classes, 3, padding=1).eval()
    found, plain = task.infer_with_entropy(network, prepared, _CPU), task.infer(network, prepared, _CPU)
    assert plain.entropy is None
    assert torch.equal(found.values, plain.values)
    assert found.entropy is not None
    likely = _straightforward(task, network, prepared, 0.25, classes == 4).clamp(0, 1)
    expected = torch.special.entr(likely).sum(0) / np.log(classes)
    assert found.entropy.shape == found.values.shape
    assert torch.allclose(found.entropy / 255, expected.float(), atol=0.5 / 255 + 1e-4)


def test_the_mean_entropy_covers_findings_and_their_neighbours() -> None:
    found = torch.zeros(5, 5, dtype=torch.uint8)
    entropy = torch.full((5, 5), 10, dtype=torch.uint8)
    assert mean_entropy(found, entropy) is None
    found[2, 2] = 3
    entropy[2, 2], entropy[1, 2], entropy[1, 1], entropy[0, 2] = 255, 105, 255, 255
    assert mean_entropy(found, entropy) == pytest.approx((255 + 105 + 3 * 10) / 5 / 255)
    found[:] = 1
    assert mean_entropy(found, torch.full((5, 5), 255, dtype=torch.uint8)) == 1


def test_an_evaluation_travels_between_processes() -> None:
    evaluation = Evaluation(0.5)
    assert pickle.loads(pickle.dumps(evaluation)) == evaluation
