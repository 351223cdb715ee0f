"""Instance segmentation of many small objects, such as nuclei.

The network predicts each pixel's class and its depth inside its object; the innermost places are the seeds from which
objects grow (after Naylor et al., IEEE TMI 2019).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, field_validator
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional

from oncofed.data.augment import Augmentation, Batch
from oncofed.data.case import Case
from oncofed.data.inputs import BatchSource, Patches, Preparation, Prepared
from oncofed.data.references import Referenced, affine_of
from oncofed.data.region_patches import open_slide_of
from oncofed.data.slides.drawn import UNKNOWN
from oncofed.data.spec import DataSpec
from oncofed.tasks.dense import DenseTask
from oncofed.tasks.entropy import entropy_bytes
from oncofed.tasks.inferred import ObjectMap, target_grid
from oncofed.tasks.losses import dice_ce
from oncofed.tasks.metrics import Metric
from oncofed.tasks.patient_statistics import mean_over_patients
from oncofed.tasks.pictures import Picture, flat
from oncofed.tasks.registry import register_task_type
from oncofed.tasks.scores import Scores
from oncofed.tasks.segmentation import deep_supervision, file_grid
from oncofed.tasks.settings import TaskSettings
from oncofed.tasks.slide_strips import SlideObjectMap
from oncofed.tasks.whole_slide.numbering import numbered
from oncofed.tasks.whole_slide.stitching import Stitching
from oncofed.tasks.whole_slide.store import NOTHING_KEPT, StripStore
from oncofed.tasks.windows import Windows

Numbers = NDArray[np.int32]

_SAME_OBJECT = 0.5
_SMOOTHING = 1.0  # pixels


class ObjectsSpec(TaskSettings):
    """Settings of instance segmentation."""

    type: Literal["objects"] = "objects"
    classes: dict[int, str] = Field({1: "object"}, min_length=1, max_length=1, description="1 -> name of the objects")
    overlap: float = Field(0.25, ge=0, lt=0.95, description="share by which inference windows overlap")
    mirror: bool = Field(False, description="inference is the mean over all mirrorings; takes 4 or 8 times as long")
    seed_depth: float = Field(0.4, gt=0, lt=1, description="how deep inside an object its seed begins; 1 is innermost")
    smallest: int = Field(10, ge=0, description="objects of fewer pixels are dropped")
    distance_weight: float = Field(2.0, gt=0, le=100, description="of the depth's loss, relative to the classes'")

    @field_validator("classes")
    @classmethod
    def _is_one(cls, classes: dict[int, str]) -> dict[int, str]:
        if list(classes) != [1]:
            raise ValueError(f"label values are {sorted(classes)}, expected 1 alone: objects are of one kind")
        return classes

    @property
    def vocabulary(self) -> dict[int, str]:
        """Label values of a mask without background."""
        return self.classes


@register_task_type("objects")
class Objects(DenseTask[dict[str, float], ObjectMap]):
    """Instance segmentation, scored by panoptic quality.

    Kirillov et al., CVPR 2019.
    """

    Settings: ClassVar[type[TaskSettings]] = ObjectsSpec
    metric = "pq"
    metric_name = "panoptic quality"
    extra_metrics: ClassVar[tuple[Metric, ...]] = (Metric("pq"), Metric("f1"), Metric("iou"), Metric("dice", "Dice"))
    loss_name = "Dice with cross-entropy, and the depth inside objects"
    averages = True
    _ignored: int | None = None  # label value of pixels that nobody looked at

    def __init__(self, spec: ObjectsSpec, data: DataSpec) -> None:
        super().__init__(data, spec.classes)
        self.spec = spec
        self._windows = Windows(data, spec.overlap, spec.mirror, self.out_channels)

    @property
    def out_channels(self) -> int:
        """Background, each kind of objects, and depth inside an object."""
        return len(self.classes) + 2

    def input(self, augmentation: Augmentation) -> BatchSource:
        """Return patches with the depth inside each object."""
        return Patches(self.data, augmentation, 2, objects=True)

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Return Dice with cross-entropy, plus the error of the depth."""

        def one(values: Tensor) -> Tensor:
            # Depth is defined only inside objects.
            label, depths = batch["label"], values[:, -1:]
            inside = ((label > 0) & (label != UNKNOWN)).to(values.dtype)
            wrong = functional.smooth_l1_loss(depths, batch["distance"], reduction="none", beta=0.1) * inside
            places = list(range(1, wrong.ndim))
            depth = (wrong.sum(places) / inside.sum(places).clamp_min(1)).mean()
            return dice_ce(values[:, :-1], label, self._ignored) + self.spec.distance_weight * depth

        return deep_supervision(one, output, batch["label"])

    def scoring_preparation(self) -> Preparation:
        """Return how image and reference are read."""
        return Referenced(self.data, numbered=True)

    def predict(self, network: nn.Module, case: Case, device: torch.device) -> Numbers:
        """Return the objects of one case, (x, y[, z]).

        Each has a number; background is zero. The grid is that of the label.
        """
        return self._find(network, self.prepared(case), device)

    def evaluate_case(self, network: nn.Module, case: Case, device: torch.device, detailed: bool) -> dict[str, float]:
        """Return the case's figures by name; see ``object_scores``."""
        prepared = self.prepared(case)
        if type(self).predict is Objects.predict:
            return self.evaluate_prepared(network, prepared, case, device, detailed)
        return object_scores(self.predict(network, case, device), prepared["label"].cpu().numpy())

    def evaluate_prepared(
        self, network: nn.Module, prepared: Prepared, case: Case, device: torch.device, detailed: bool
    ) -> dict[str, float]:
        """Return the figures of a case that was prepared by ``scoring_preparation``."""
        del case, detailed
        return object_scores(self._find(network, prepared, device), prepared["label"].cpu().numpy())

    @torch.no_grad()
    def _infer(self, network: nn.Module, prepared: Prepared, device: torch.device, entropy: bool) -> ObjectMap:
        image, target = prepared["image"], target_grid(prepared)
        shape = target.shape
        grid = file_grid(self.data, image, (affine_of(prepared, "image"), target.affine), shape, self._windows)

        def infer(spare: bool) -> Tensor:
            planes = self._windows.slabs(network, image, device, spare=spare)
            maps = torch.empty(2, *shape, device=torch.device("cpu") if spare else device)
            grid.fill(((first, _maps(values)) for first, values in planes), maps, lambda values: values)
            return maps

        maps = self._windows.within_memory(infer, image[0].numel()).cpu().numpy()
        numbers = separate(maps[0] > 0.5, maps[1], self.spec.seed_depth, self.spec.smallest)
        return ObjectMap(numbers, target.affine, entropy_bytes(torch.from_numpy(maps[:1]))[0] if entropy else None)

    def infer_slide(
        self, network: nn.Module, prepared: Prepared, device: torch.device, store: StripStore = NOTHING_KEPT
    ) -> SlideObjectMap:
        """Return the single objects of a whole slide."""
        with open_slide_of(prepared, self.data) as canvas:
            return numbered(self._stitching(), self._separate, network, canvas, device, store)

    def _stitching(self) -> Stitching:
        """Return how a slide's windows become probabilities, and depth."""

        def maps(output: Tensor) -> Tensor:
            return torch.cat([output[:, :-1].softmax(1), output[:, -1:]], dim=1)

        return Stitching(self.data.patch[0], self.spec.overlap, self.spec.mirror, maps)

    def _separate(self, inside: NDArray[np.bool_], depth: NDArray[np.float32]) -> Numbers:
        return separate(inside, depth, self.spec.seed_depth, self.spec.smallest)

    def _find(self, network: nn.Module, prepared: Prepared, device: torch.device) -> Numbers:
        found = self.infer(network, prepared, device)
        assert isinstance(found, ObjectMap)
        return found.numbers

    def summarise(self, outcomes: Sequence[tuple[str, dict[str, float]]]) -> Scores:
        """Return means over patients."""
        means = mean_over_patients(outcomes)
        quality = means.pop(self.metric, None)
        by_class = {} if quality is None else {self.classes[1]: quality}
        return Scores(quality, by_class, means)

    def case_metrics(self, outcome: dict[str, float]) -> dict[str, float | str]:
        """Return the case's figures."""
        return dict(outcome)

    def picture(self, network: nn.Module, case: Case, device: torch.device) -> Picture:
        """Return the image with the outlines of every object."""
        found = self.predict(network, case, device)
        reference = case.read_label(numbered=True).values[..., 0].astype(np.int32)
        image = case.read_image().values
        if found.ndim == 3:
            index = int(np.argmax((reference > 0).sum(axis=(0, 1))))
            image, found, reference = image[:, :, index], found[..., index], reference[..., index]
        return Picture(flat(image), _outlined(reference), _outlined(found), downwards=True)


def _maps(output: Tensor) -> Tensor:
    """Return object probability and depth of an output (3, …)."""
    return torch.cat([output[:2].softmax(0)[1:], output[2:]])


def separate(inside: NDArray[np.bool_], depth: NDArray[np.float32], seed_depth: float, smallest: int) -> Numbers:
    """Return one number for each object.

    Args:
        inside: where objects are, (x, y[, z]).
        depth: of a voxel inside its object, about 0 to 1.
        seed_depth: least depth of seeds.
        smallest: objects of fewer voxels are dropped.
    """
    # A depth that fluctuates around the threshold would give many seeds in one object.
    smooth = ndimage.gaussian_filter(depth, _SMOOTHING)
    seeds, count = ndimage.label(inside & (smooth > seed_depth))
    pieces, _ = ndimage.label(inside)
    # A component without a seed is one object.
    seeded = np.zeros(pieces.max() + 1, bool)
    seeded[np.unique(pieces[seeds > 0])] = True
    rest, _ = ndimage.label(inside & ~seeded[pieces])
    seeds[rest > 0] = rest[rest > 0] + count
    if not seeds.any():
        return np.zeros(inside.shape, np.int32)
    # A voxel belongs to the nearest seed: seeds have their objects' shape, so this divides objects half-way.
    nearest = ndimage.distance_transform_edt(seeds == 0, return_distances=False, return_indices=True)
    grown = np.where(inside, seeds[tuple(nearest)], 0)
    sizes = np.bincount(grown.ravel())
    kept = sizes >= smallest
    kept[0] = False
    renumbered = np.cumsum(kept) * kept
    return np.asarray(renumbered[grown], np.int32)


def object_scores(found: Numbers, reference: Numbers) -> dict[str, float]:
    """Return detection and overlap figures of objects.

    Two objects match if they share more than half of their union, so each has at most one match.

    Args:
        found: a number for each object, (x, y[, z]).
        reference: the same.

    Returns:
        pq: panoptic quality, the product of f1 and iou; f1: of detecting objects; iou: mean over matches; dice: of
        all objects together. NaN if there are no objects in either.
    """
    rows, columns = int(found.max()) + 1, int(reference.max()) + 1
    pairs = found.ravel().astype(np.int64) * columns + reference.ravel()
    counts = np.bincount(pairs, minlength=rows * columns).reshape(rows, columns)
    found_sizes, reference_sizes = counts.sum(axis=1)[1:], counts.sum(axis=0)[1:]
    shared = counts[1:, 1:]
    union = found_sizes[:, None] + reference_sizes[None, :] - shared
    ratios = shared / np.maximum(union, 1)
    same = ratios > _SAME_OBJECT
    hits = int(same.sum())
    objects = int((found_sizes > 0).sum()) + int((reference_sizes > 0).sum())
    covered = int(shared.sum())
    total = int(found_sizes.sum() + reference_sizes.sum())
    if not objects:
        return dict.fromkeys(("pq", "f1", "iou", "dice"), float("nan"))
    f1 = 2 * hits / objects
    iou = float(ratios[same].mean()) if hits else float("nan")
    return {"pq": f1 * iou if hits else 0.0, "f1": f1, "iou": iou, "dice": 2 * covered / total}


def _outlined(numbers: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Return objects with edges cut out, for separate contours."""
    edges = np.zeros(numbers.shape, bool)
    for axis in range(numbers.ndim):
        step = np.diff(numbers, axis=axis) != 0
        edges |= np.pad(step, [(0, 1) if a == axis else (0, 0) for a in range(numbers.ndim)])
    return ((numbers > 0) & ~edges).astype(np.uint8)
