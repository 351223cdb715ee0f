"""Training input: patches, whole images, bags of features.

A preparation makes tensors of a case, once (see ``prepared``); training and scoring each have theirs. An input draws
from prepared cases at random, and puts what it drew together to a batch. Everything random comes from one generator,
whose state is all that a later run needs to go on.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import monai
import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Generator, Tensor

from oncofed.data.augment import Augment, Augmentation, Batch, strength
from oncofed.data.case import Case
from oncofed.data.case_facts import Values
from oncofed.data.covariates import table_row
from oncofed.data.spatial import patch_at
from oncofed.data.spec import DataSpec
from oncofed.data.stain.augment import changed
from oncofed.data.transforms import load_pair, load_whole

Prepared = dict[str, Tensor]

# Beginnings of the names of what is only looked up to draw a sample, and stays off the GPU.
LOOKED_UP = ("centres.", "outside", "slides", "tissue")
# Raised when what preparing does changes though its settings do not.
_VERSION = 6
# Voxels of each class among which a patch's centre is drawn, spread evenly over them all. All of them would take eight
# bytes for each voxel of a prepared case.
CENTRES_PER_CLASS = 10_000


class Preparation(ABC):
    """The deterministic part of training input.

    Args:
        spec: the job's data.

    Attributes:
        costly: it takes a network, and the device that what is prepared is for: all cases are prepared before the first
            is used, and always kept on disk. Else each is prepared when it is wanted first.
    """

    costly = False

    def __init__(self, spec: DataSpec) -> None:
        self.spec = spec

    def truth(self, case: Case) -> Prepared:
        """Return what a case is labelled with, apart from its image."""
        return {}

    def beside_image(self, case: Case) -> Prepared:
        """Return a case's row of the table (``table``, (column,) float32) and what it is labelled with.

        It is added to what was prepared, and not cached: a corrected table needs no image read again.
        """
        return {**table_row(case.entry, self.spec.covariates), **self.truth(case)}

    @property
    def settings(self) -> str:
        """Settings that the prepared case depends on."""
        relevant = ("modality", "channels", "window", "background", "orientation", "spacing", "patch")
        values = [getattr(self.spec, name) for name in relevant]
        values += self.stain_settings + self.intensity_settings
        return json.dumps([type(self).__name__, _VERSION, monai.__version__, *values, *self._more_settings()])

    def settings_of(self, case: Case) -> str:
        """Return the settings that one prepared case depends on."""
        del case
        return self.settings

    def origin(self, cases: Sequence[Case]) -> dict[str, Any]:
        """Return facts about the cases in which all sites must agree.

        They leave the site before the training (``privacy.outbound.check_counts``).

        Raises:
            DataError: the cases do not fit the job, or one another.
        """
        del cases
        return {}

    def remarks(self, cases: Sequence[Case]) -> list[str]:
        """Return what a person of the site should know of the cases; nothing holds them back."""
        del cases
        return []

    @property
    def stain_settings(self) -> list[Any]:
        """What normalising of stains depends on; empty where none is normalised."""
        template, stain = self.spec.template, self.spec.stain
        how = [stain.normalise, template.key if template and stain.normalise != "none" else None]
        return how if stain.is_used else []

    @property
    def intensity_settings(self) -> list[Any]:
        """The template of intensities; empty where images keep their own."""
        template = self.spec.intensities
        return [] if template is None else [template.tolist()]

    @abstractmethod
    def prepare(self, case: Case) -> Prepared:
        """Read a case and do all that is not random.

        Raises:
            DataError: a file cannot be read.
        """

    def prepare_all(self, cases: Sequence[Case]) -> Iterator[tuple[int, Prepared]]:
        """Yield each case's number and prepared case, in any order."""
        yield from ((number, self.prepare(case)) for number, case in enumerate(cases))

    @abstractmethod
    def size(self, case: Case) -> int | None:
        """Return the approximate size of a prepared case in bytes; None: unknown."""

    def _more_settings(self) -> list[Any]:
        return []


class BatchSource(Preparation):
    """How cases become batches.

    Args:
        spec: the job's data.
        augmentation: how much is changed at random.

    Attributes:
        device: where samples are changed as they are drawn; None: where their cases are.
    """

    device: torch.device | None = None

    def __init__(self, spec: DataSpec, augmentation: Augmentation) -> None:
        super().__init__(spec)
        self._strength = strength(augmentation, spec.modality)

    @abstractmethod
    def draw(self, prepared: Prepared, generator: Generator) -> Prepared:
        """Return one sample of a prepared case."""

    def together(self, parts: Sequence[Prepared]) -> Batch:
        """Return samples as one batch, on their device."""
        return {name: torch.stack([part[name] for part in parts]) for name in parts[0]}

    def change(self, batch: Batch, generator: Generator) -> Batch:
        """Return a batch after random augmentation, on its device."""
        return self.augment(generator)(batch)

    def augment(self, generator: Generator) -> Augment:
        """Return what changes batches at random, by the job's settings."""
        return Augment(self._strength, generator, partial(changed, spec=self.spec.stain, template=self.spec.template))


def working_voxels(case: Case, spec: DataSpec) -> float | None:
    """Return about how many voxels a case has on a job's grid.

    None: nobody registered its size.
    """
    entry = case.entry
    if entry is None or not entry.shape:
        return None
    shape = np.array(entry.shape, dtype=np.float64)
    if spec.spacing and entry.spacing:
        shape = shape * np.array(entry.spacing) / np.array(spec.spacing)
    return float(np.prod(np.maximum(np.ceil(shape), spec.patch[: len(shape)])))


class Patches(BatchSource):
    """Patches for segmentation.

    Each class, background included, is as often at the centre.

    A batch holds image (batch, channel, x, y[, z]) float32 and label (batch, 1, x, y[, z]) uint8; with ``objects``
    also distance (batch, 1, x, y[, z]) float32; with ``partial`` also alike (batch, class) int64: for each label value,
    background's first, the least that the sample's mask does not tell it from.

    Args:
        spec: the job's data.
        augmentation: how much is changed at random.
        classes: with background.
        objects: masks number their objects, and each one's distance map is learned too.
        partial: masks may lack classes.
    """

    def __init__(
        self, spec: DataSpec, augmentation: Augmentation, classes: int, objects: bool = False, partial: bool = False
    ) -> None:
        super().__init__(spec, augmentation)
        # What a patch is turned by is applied as it is drawn, where the rest of the image is at hand.
        self._moves, self._strength = self._strength.moves, self._strength.unmoved
        self.classes = classes
        self._partial = partial
        self._objects = objects
        self._load = load_pair(spec, numbered=objects)

    def prepare(self, case: Case) -> Prepared:
        """Return image, label, and where each class lies."""
        loaded = self._load(case)
        prepared = {"image": loaded["image"], "label": loaded["label"]}
        if self._objects:
            numbers = prepared["label"][0].numpy()
            prepared["distance"] = torch.from_numpy(object_distances(numbers))[None]
            prepared["label"] = (prepared["label"] > 0).to(torch.uint8)
        flat = prepared["label"].flatten()
        for value in range(self.classes):
            places = torch.nonzero(flat == value).flatten()
            if len(places) > CENTRES_PER_CLASS:
                places = places[torch.linspace(0, len(places) - 1, CENTRES_PER_CLASS).long()]
            prepared[f"centres.{value}"] = places
        return prepared

    def of_unlabelled(self, image: Tensor, value: int) -> Prepared:
        """Return the same of an image without a mask, whose patches may lie anywhere.

        Args:
            image: (channel, x, y[, z]), as large as a patch or larger.
            value: label value of voxels that nobody labelled.
        """
        voxels = image[0].numel()
        centres = torch.linspace(0, voxels - 1, min(voxels, CENTRES_PER_CLASS), dtype=torch.float64).long()
        depths = {"distance": torch.zeros_like(image[:1])} if self._objects else {}
        return {
            "image": image,
            "label": torch.full_like(image[:1], value, dtype=torch.uint8),
            "outside": torch.tensor(value),
            **depths,
            "centres.0": centres,
            **{f"centres.{number}": centres[:0] for number in range(1, self.classes)},
        }

    def truth(self, case: Case) -> Prepared:
        """Return which label values a case's mask does not tell apart."""
        return {"alike": torch.tensor(case.alike or range(self.classes))} if self._partial else {}

    def size(self, case: Case) -> int | None:
        """Return about how many bytes the prepared case takes."""
        voxels = working_voxels(case, self.spec)
        if voxels is None:
            return None
        each = 4 * len(self.spec.channels) + (5 if self._objects else 1)
        return int(voxels * each) + self.classes * 8 * CENTRES_PER_CLASS

    def draw(self, prepared: Prepared, generator: Generator) -> Prepared:
        """Return a patch around a voxel of a random class, turned and scaled at random.

        What lies beyond the image is 0 there, and background, or the value of what nobody labelled.
        """
        names = ("image", "label", "distance")
        maps: dict[str, Tensor] = {name: prepared[name] for name in names if name in prepared}
        corner = self._corner(prepared, generator)
        which, matrices = self._moves.matrices(1, self.spec.patch, generator)
        if len(which):
            outside = {"label": float(prepared["outside"])} if "outside" in prepared else {}
            patch = patch_at(maps, matrices[0], self.spec.patch, corner, outside, self.device)
        else:
            window = (slice(None), *(slice(at, at + side) for at, side in zip(corner, self.spec.patch, strict=True)))
            patch = {name: values[window] for name, values in maps.items()}
        return patch | {name: prepared[name] for name in ("alike",) if name in prepared}

    def _corner(self, prepared: Prepared, generator: Generator) -> list[int]:
        """Return where a patch begins that has a voxel of a random class at its centre, or near to it at an edge."""
        shape = prepared["image"].shape[1:]
        there = [value for value in range(self.classes) if len(prepared[f"centres.{value}"])]
        value = there[int(torch.randint(len(there), (), generator=generator))]
        centres = prepared[f"centres.{value}"]
        flat = int(centres[torch.randint(len(centres), (), generator=generator)])
        return [
            min(max(int(at) - side // 2, 0), length - side)
            for at, side, length in zip(np.unravel_index(flat, shape), self.spec.patch, shape, strict=True)
        ]

    def change(self, batch: Batch, generator: Generator) -> Batch:
        """Return a batch whose maps are changed at random."""
        maps = super().change({name: values for name, values in batch.items() if name != "alike"}, generator)
        return {**batch, **maps}

    def _more_settings(self) -> list[Any]:
        return [self.classes, self._objects]


def class_label(case: Case) -> Prepared:
    """Return the number of a case's class, () int64."""
    return {"label": torch.tensor(case.class_label)}


class WholeImages(BatchSource):
    """Whole images for classification.

    Each is scaled and padded to the job's ``patch``.

    A batch holds image (batch, channel, x, y[, z]) float32, and what ``truth`` returns of each case.

    Args:
        spec: the job's data.
        augmentation: how much is changed at random.
        truth: from a case to its labels.
    """

    def __init__(
        self, spec: DataSpec, augmentation: Augmentation, truth: Callable[[Case], Prepared] = class_label
    ) -> None:
        super().__init__(spec, augmentation)
        self._load = load_whole(spec)
        self._truth = truth

    def prepare(self, case: Case) -> Prepared:
        """Return the image on the patch's grid."""
        return {"image": self._load(case)["image"].as_tensor().contiguous()}

    def truth(self, case: Case) -> Prepared:
        """Return a case's labels."""
        return self._truth(case)

    def size(self, case: Case) -> int | None:
        """Return how many bytes the prepared case takes."""
        return int(np.prod(self.spec.patch)) * len(self.spec.channels) * 4 + 8

    def draw(self, prepared: Prepared, generator: Generator) -> Prepared:
        """Return the whole image."""
        return prepared

    def change(self, batch: Batch, generator: Generator) -> Batch:
        """Return a batch whose images are changed at random."""
        super().change({"image": batch["image"]}, generator)
        return batch


class TableRows(BatchSource):
    """Rows of the table alone; no image is read.

    A batch holds table (batch, column) float32, and what ``truth`` returns of each case.

    Args:
        spec: the job's data.
        truth: from a case to its labels.
    """

    def __init__(self, spec: DataSpec, truth: Callable[[Case], Prepared]) -> None:
        super().__init__(spec, "none")
        self._truth = truth

    def prepare(self, case: Case) -> Prepared:
        """Return nothing: a row is not cached."""
        return {}

    def truth(self, case: Case) -> Prepared:
        """Return a case's labels."""
        return self._truth(case)

    def size(self, case: Case) -> int | None:
        """Return how many bytes a row takes."""
        return 4 * len(self.spec.covariates)

    def draw(self, prepared: Prepared, generator: Generator) -> Prepared:
        """Return the row."""
        return prepared

    def change(self, batch: Batch, generator: Generator) -> Batch:
        """Return the batch as it is."""
        return batch


def object_distances(numbers: Values) -> NDArray[np.float32]:
    """Return the depth of each pixel in its object.

    Near zero at the edge, one at the innermost pixel.

    Args:
        numbers: (x, y[, z]), a number for each object, zero for background.

    Returns:
        (x, y[, z]) float32.
    """
    distances = np.zeros(numbers.shape, np.float32)
    integers = numbers.astype(np.int64)
    for number, box in enumerate(ndimage.find_objects(integers), start=1):
        if box is None:
            continue
        inside = np.pad(integers[box] == number, 1)
        depth = ndimage.distance_transform_edt(inside)[(slice(1, -1),) * numbers.ndim]
        distances[box] = np.maximum(distances[box], depth / depth.max())
    return distances
