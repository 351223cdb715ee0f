"""One case of a job: an image, what it should be told, and reading both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from scipy import ndimage

from oncofed.data import boxes, case_facts
from oncofed.data.formats.common import LoadedImage
from oncofed.data.images import stem
from oncofed.data.label_mapping import Supervision, Vocabulary, alike
from oncofed.data.looked_for import tells
from oncofed.data.manifest import (
    SALT_FILE,
    Entry,
    Manifest,
    inside,
)
from oncofed.data.masks import read_mask
from oncofed.data.same_grid import turned_onto
from oncofed.data.targets import Encoded, declared_target, is_known, stated_value, unknown
from oncofed.errors import DataError


@dataclass(frozen=True)
class Case:
    """One image with its reference label.

    Attributes:
        name: of the case; it stays at the site.
        patient: key of the patient.
        image: the image's file, or that of its first channel.
        label: the mask's file, or the number of the image's class in the job.
        more_images: files of the other channels.
        label_values: the file's label values -> the job's; None: the same.
        instances: the mask numbers objects, all of class 1 of ``label_values``.
        spacing: pixel size in mm along each axis, for a file that cannot say it.
        reading: of the mask: whether by its palette's colours, and which values have names; see ``read_mask``.
        entry: what the manifest knows of it; None where nobody has registered it.
        tiles: file with the places of a slide's tiles.
        features: file with a slide's features; its entry says what they are.
        folder: of the registered dataset, where prepared cases may be kept; None where nobody has registered it.
        targets: of a job that learns targets, name -> numbers; NaN: unknown.
        target_fault: why its targets, or a mask that lacks what the job learns, cannot be used; empty where they can.
        mask_fault: why nobody knows what was looked for in its mask; empty where it is known.
        alike: for each of the job's label values, the least that the mask does not tell it from; None: all are told.
        boxes: of a job that looks for objects, those that the dataset states; None: its mask shows them.
        may_be_empty: a mask without any object is fine.
        parts: the patient's slides, where several are one case; see ``patients``.
        slide_colours: of a job that normalises stains, sketches of the image's whole slide; see ``data.stain``.
        label_names: of a slide, the dataset's label values and their names, which its file of regions has.
    """

    name: str
    patient: str
    image: Path
    label: Path | int
    more_images: tuple[Path, ...] = ()
    label_values: tuple[tuple[int, int], ...] | None = None
    instances: bool = False
    spacing: tuple[float, ...] | None = None
    reading: tuple[bool, tuple[int, ...]] = (False, ())
    entry: Entry | None = field(default=None, compare=False, repr=False)
    tiles: Path | None = None
    features: Path | None = None
    folder: Path | None = field(default=None, compare=False, repr=False)
    targets: Mapping[str, Encoded] = field(default_factory=dict, compare=False, repr=False)
    target_fault: str = field(default="", compare=False, repr=False)
    mask_fault: str = field(default="", compare=False, repr=False)
    alike: tuple[int, ...] | None = None
    boxes: tuple[boxes.Box, ...] | None = field(default=None, compare=False, repr=False)
    may_be_empty: bool = False
    parts: tuple[Case, ...] = ()
    label_names: tuple[tuple[int, str], ...] = field(default=(), compare=False, repr=False)
    slide_colours: tuple[str, ...] = field(default=(), compare=False, repr=False)

    @property
    def has_targets(self) -> bool:
        """Whether any of its targets is known."""
        return any(map(is_known, self.targets.values()))

    def without_mask(self) -> Case:
        """Return the case with its targets alone."""
        return replace(self, label=0, alike=None)

    @property
    def slides(self) -> tuple[Case, ...]:
        """The slides of a case that may be several; else itself."""
        return self.parts or (self,)

    @property
    def looked_for(self) -> frozenset[int] | None:
        """The job's classes that were looked for in the mask, each by itself; None: all."""
        if self.alike is None:
            return None
        return frozenset(value for value in set(self.alike) - {0} if self.alike.count(value) == 1)

    @property
    def images(self) -> tuple[Path, ...]:
        """Files of all channels."""
        return (self.image, *self.more_images)

    @property
    def files(self) -> list[Path]:
        """Files of the image, its mask and its features."""
        return [
            *self.images,
            *([self.label] if isinstance(self.label, Path) else []),
            *([self.features] if self.features and self.features != self.image else []),
        ]

    @property
    def mask(self) -> Path:
        """The mask's file; segmentation only."""
        assert isinstance(self.label, Path)
        return self.label

    @property
    def class_label(self) -> int:
        """The job's number of the image's class; classification only."""
        assert isinstance(self.label, int)
        return self.label

    def read(self, numbered: bool = False) -> tuple[LoadedImage, LoadedImage]:
        """Read image and label; the label holds the job's values.

        Args:
            numbered: keep the numbers of single objects, where the mask has them.

        Raises:
            DataError: a file cannot be read.
        """
        image, label = case_facts.read_case(self.images, self.mask, *self.reading)
        assert label is not None
        image, label = self._placed(image), replace(label, values=self._translated(label.values, numbered))
        # A file that does not state its pixel size lies where the other does.
        both = image.calibrated and label.calibrated
        return image, label if both else replace(label, affine=image.affine, calibrated=image.calibrated)

    def read_image(self) -> LoadedImage:
        """Read the image alone."""
        return self._placed(case_facts.read_case(self.images, None)[0])

    def read_label(self, numbered: bool = False) -> LoadedImage:
        """Read the label alone; see ``read``."""
        label = read_mask(self.mask, *self.reading)
        if label.calibrated:
            label = turned_onto(self._grid(), label, "its label")
        return self._placed(replace(label, values=self._translated(label.values, numbered)))

    def _grid(self) -> LoadedImage:
        """Return an image on the case's grid.

        As registered, else by reading the image.
        """
        entry = self.entry
        if not (entry and entry.shape and entry.affine):
            return self.read_image()
        values: case_facts.Values = np.broadcast_to(np.zeros((), np.uint8), (*entry.shape, 1))
        return LoadedImage(values, np.array(entry.affine, np.float64), "uint8")

    def _placed(self, image: LoadedImage) -> LoadedImage:
        if image.calibrated or not self.spacing:
            return image
        return replace(image, affine=np.diag([*self.spacing, *[1.0] * (4 - len(self.spacing))]), calibrated=True)

    def _translated(self, values: case_facts.Values, numbered: bool) -> case_facts.Values:
        if self.instances and numbered:
            return values.astype(np.int32)
        if numbered:
            # A mask of one value for all objects: each connected component is an object.
            pieces: case_facts.Values = ndimage.label(self._translated(values, False) > 0)[0]
            return pieces
        if self.instances:
            target = dict(self.label_values or ((1, 1),)).get(1, 1)
            return ((values > 0) * target).astype(np.uint8)
        if self.label_values is None:
            return values
        result = np.zeros(values.shape, np.uint8)
        for value, target in self.label_values:
            result[values == value] = target
        return result


def case_of(folder: Path, manifest: Manifest, entry: Entry, values: tuple[tuple[int, int], ...] | None = None) -> Case:
    """Return an entry of a dataset as a case.

    Args:
        folder: the dataset's.
        manifest: of the dataset.
        entry: one of its own; without a label it has class 0.
        values: the dataset's label values -> the job's; None: the dataset's own.
    """
    images = [inside(folder, image) for image in entry.images]
    label: Path | int
    if isinstance(entry.label, str):
        label = inside(folder, entry.label)
    else:
        label = dict(values or ()).get(entry.label or 0, entry.label or 0)
    name = entry.name or stem(images[0])
    return Case(
        name=name,
        patient=entry.patient or name,
        image=images[0],
        label=label,
        more_images=tuple(images[1:]),
        label_values=values,
        instances=manifest.label_kind == "instances",
        spacing=tuple(entry.spacing) if entry.spacing else None,
        reading=manifest.reading(entry),
        entry=entry,
        tiles=inside(folder, entry.tiles) if entry.tiles else None,
        features=inside(folder, entry.features.file) if entry.features else None,
        folder=folder if (folder / SALT_FILE).is_file() else None,
        label_names=_names(manifest) if entry.tiles else (),
    )


def _names(manifest: Manifest) -> tuple[tuple[int, str], ...]:
    """Return a dataset's label values, other than background's, with their names."""
    return tuple((int(float(value)), name) for value, name in manifest.labels.items() if float(value) > 0)


def wanted_case(
    folder: Path,
    manifest: Manifest,
    entry: Entry,
    wanted: Supervision,
    vocabulary: Vocabulary,
    values: tuple[tuple[int, int], ...] | None,
) -> Case | None:
    """Return an entry as a case; None where it lacks what is learned."""
    if not wanted.of_entry(manifest, entry):
        return None
    if wanted.kind == "none":
        image = entry.model_copy(update={"label": None, "label_problem": None, "label_values": None, "boxes": None})
        return case_of(folder, manifest, image)
    if wanted.kind == "targets":
        return with_targets(case_of(folder, manifest, entry, values), manifest, entry, wanted, vocabulary)
    if wanted.kind == "boxes":
        return _with_boxes(case_of(folder, manifest, entry, values), entry)
    if wanted.kind == "class" and values is not None and entry.label not in dict(values):
        return None
    case = case_of(folder, manifest, entry, values)
    case = replace(case, may_be_empty=wanted.of_empty and entry.tiles is not None)
    if wanted.kind == "mask" and wanted.classes and (wanted.partial or entry.looked_for is not None):
        return _with_looked_for(case, manifest, entry, wanted, vocabulary)
    return case


def with_targets(
    case: Case, manifest: Manifest, entry: Entry, wanted: Supervision, vocabulary: Vocabulary
) -> Case | None:
    """Return a case with its targets, and the mask beside them; None where it has none of them."""
    masked = wanted.has_mask(entry)
    if masked and (wanted.partial or entry.looked_for is not None):
        drawn = _with_looked_for(case, manifest, entry, wanted, vocabulary)
        masked = drawn is not None
        case = drawn or case
    if wanted.classes and not masked:
        case = replace(case, label=0)
    found: dict[str, Encoded] = {}
    faults = [case.target_fault] if case.target_fault else []
    if wanted.reads_masks and entry.tiles:
        faults.append(
            "it is a whole slide, and what is drawn beside other targets is learned from images and volumes alone. "
            "Make the drawing a job of its own (task.type: slide_segmentation or slide_objects)"
        )
    for target in wanted.targets:
        found[target.name] = unknown(target)
        declared = declared_target(manifest.targets, manifest.labels, target)
        stated = stated_value(declared, entry.targets, entry.label, manifest.labels, target)
        if declared is None or stated is None:
            continue
        try:
            found[target.name] = target.encode(stated, declared)
        except DataError as error:
            faults.append(str(error))
    if not faults and not masked and not any(map(is_known, found.values())):
        return None
    return replace(case, targets=found, target_fault="; ".join(faults))


def _with_looked_for(
    case: Case, manifest: Manifest, entry: Entry, wanted: Supervision, vocabulary: Vocabulary
) -> Case | None:
    """Return a case with what was looked for in its mask.

    None where none of the job's were. What is drawn of another class is as unknown as the voxels around it.
    """
    try:
        told = alike(manifest, entry, wanted, vocabulary)
    except DataError as error:
        return replace(case, mask_fault=str(error))
    if told is None:
        return case
    missing = ", ".join(name for name, values in wanted.structures.items() if not tells(told, values))
    if not wanted.partial:
        return (
            case
            if not missing
            else replace(
                case,
                target_fault=f"nobody looked for {missing} in its mask, and the job takes what is not drawn for "
                f"background. Say in the job that masks may lack classes: {wanted.partial_setting}",
            )
        )
    if not any(told):
        return None
    pairs = case.label_values or tuple((value, value) for value in wanted.classes)
    return replace(
        case,
        alike=told,
        # A label to be ignored is none of the values that are told apart.
        label_values=tuple((value, told[target] if target < len(told) else target) for value, target in pairs),
    )


def _with_boxes(case: Case, entry: Entry) -> Case:
    """Return a case with the boxes that its entry states."""
    case = replace(case, may_be_empty=True)
    return case if entry.boxes is None else replace(case, label=0, boxes=tuple(entry.boxes))
