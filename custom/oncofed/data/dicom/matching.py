"""Match label files with images.

By the instances that a file names, else by their series, else by its frame of reference.

References of segmentations: DICOM PS3.3, A.51.5; of structure sets: C.8.8.5. Two objects with one frame of reference
share one space (C.7.4.1), so a file that names no image belongs to each image of its space that it overlaps.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path

import numpy as np
from pydicom.uid import SurfaceSegmentationStorage

from oncofed.data.dicom.header_types import FrameGrid
from oncofed.data.dicom.references import read_sources, regions_on, wanted_regions
from oncofed.data.dicom.stacks import LabelFile, Stack
from oncofed.data.dicom.volumes import FOLDER

# Reasons for leaving out a label file.
NO_REGION = "label that names no region: nothing in it can be drawn"
SURFACE = "surface segmentation: surfaces are not read. Export it as a segmentation of pixels (SEG)"
ON_SLIDE = "segmentation of a slide: regions of slides are read from GeoJSON. Export it as that"
NO_SERIES = (
    "label of a series that is not in the folder: add the series that it was drawn on. "
    "Images in its frame of reference are not taken in its place"
)
NO_INSTANCE = "label of images that are not in the folder: add the images that it was drawn on"
NO_REFERENCE = "label that names neither an image nor a frame of reference: export it again with its references"
NO_SPACE = "label that names no image, and no image here has its frame of reference: add its image"
OTHER_PATIENT = (
    "label that names no image, and whose frame of reference is another patient's: correct its PatientID, or add its "
    "image"
)
SEVERAL_STUDIES = (
    "label that names no image, and its frame of reference is that of images of several studies or patients: export it "
    "again with its references"
)
SAME_UIDS = (
    "label of a series whose UIDs are those of other images, too, and that lies in the folder of none of them alone: "
    "put it into the folder of its image"
)
BESIDE_SERIES = "label that lies beside every image of the series that it names: add its image, or export it again"
BESIDE = "label that names no image, and lies beside every image of its frame of reference: add its image"
OTHER_SPACE = "label whose regions are drawn in another frame of reference than the image that it names"
WHICH_FLAT = "label that names a series of several flat images, and none of them: export it again with its references"
CONTOURS_ON_FLAT = "structure set of a flat image: its contours have no place on it. Export it as a segmentation (SEG)"
BY_SPACE = "its label names no image: it lies here by its frame of reference"
ON_EACH = "it lies on each"
IN_FOLDER = "other images have the UIDs that its label names: it lies here by its folder"
UNWANTED = "label whose regions are not among those that --labels names"


@dataclass(frozen=True)
class PlacedLabel(LabelFile):
    """A label file on one image.

    Attributes:
        named: whether the file names the image, instead of only sharing its space.
        notes: how it was matched, for people.
    """

    named: bool = True
    notes: tuple[str, ...] = ()


def match_labels(
    root: Path,
    stacks: Sequence[Stack],
    labels: Sequence[LabelFile],
    wanted: Mapping[str, int] | None = None,
    slides: Container[str] = (),
) -> tuple[list[tuple[PlacedLabel, ...]], dict[str, str]]:
    """Find the images that label files belong to.

    Args:
        root: folder that the files' paths start from.
        stacks: the images.
        labels: SEG and RT-STRUCT files.
        wanted: name of a region -> label value, if the user chose regions.
        slides: series of whole slides.

    Returns:
        The labels of each image, in the order of ``stacks``; and path -> reason of each file that matches none.
    """
    if not labels:
        return [()] * len(stacks), {}
    images = _Images(stacks, root)
    placed: list[list[PlacedLabel]] = [[] for _ in stacks]
    reasons: dict[str, str] = {}
    for label in labels:
        found = images.find(label)
        if isinstance(found, str):
            on_slide = any(series in slides for series in label.header.refers_to)
            reasons[label.path] = ON_SLIDE if on_slide else found
            continue
        for number, item in found.items():
            placed[number].append(item)
    if wanted is not None:
        placed = [_wanted(items, wanted) for items in placed]
        kept = {item.path for items in placed for item in items}
        reasons |= {label.path: UNWANTED for label in labels if label.path not in kept | set(reasons)}
    return [tuple(items) for items in placed], reasons


def _wanted(labels: list[PlacedLabel], wanted: Mapping[str, int]) -> list[PlacedLabel]:
    """Return the files with a wanted region.

    All of them if none has one, so that the image is set aside.
    """
    return [label for label in labels if wanted_regions(label.header.labels, wanted)] or labels


class _Images:
    """Images by series, space and instance."""

    def __init__(self, stacks: Sequence[Stack], root: Path) -> None:
        self._stacks, self._root = stacks, root
        self._of_series: dict[str, list[int]] = defaultdict(list)
        self._of_space: dict[str, list[int]] = defaultdict(list)
        self._of_instance: dict[str, set[int]] = defaultdict(set)
        for number, stack in enumerate(stacks):
            self._of_series[stack.header.series].append(number)
            self._of_space[stack.header.frame_of_reference].append(number)
            for item in stack.slices:
                self._of_instance[item.header.instance].add(number)
        self._of_space.pop("", None)
        self._of_instance.pop("", None)

    def find(self, label: LabelFile) -> dict[int, PlacedLabel] | str:
        """Return a label's images, or why it has none."""
        header = label.header
        if header.sop_class == SurfaceSegmentationStorage:
            return SURFACE
        if not header.labels:
            return NO_REGION
        if not header.refers_to and not header.refers_to_images:
            return self._in_space(label)
        found = self._in_series(label) if header.refers_to else self._by_images(label)
        found = self._in_its_folder(label, found) if isinstance(found, dict) else found
        if isinstance(found, str):
            return found
        if header.kind == "rtstruct":
            found = {n: item for n, item in found.items() if self._stacks[n].kind != "flat"}
            if not found:
                return CONTOURS_ON_FLAT
        return {n: item for n, item in found.items() if regions_on(header, self._stacks[n].header)} or OTHER_SPACE

    def _by_images(self, label: LabelFile) -> dict[int, PlacedLabel] | str:
        numbers = sorted({n for uid in label.header.refers_to_images for n in self._of_instance.get(uid, ())})
        return self._placed(label, numbers) or NO_INSTANCE

    def _in_series(self, label: LabelFile) -> dict[int, PlacedLabel] | str:
        found: dict[int, PlacedLabel] = {}
        reason = NO_SERIES
        for series, instances in label.header.refers_to.items():
            numbers = self._of_series.get(series, [])
            here = self._named(numbers, instances)
            if len(numbers) > 1 and len(here) != 1:
                numbers, here = self._by_regions(label, here or numbers, bool(here))
                reason = reason if numbers else BESIDE_SERIES
            flat = any(self._stacks[n].kind == "flat" for n in numbers)
            if instances and not here and numbers and (flat or len(numbers) > 1):
                reason = NO_INSTANCE
            elif flat and not here and len(numbers) > 1:
                reason = WHICH_FLAT
            else:
                notes = () if flat else _which(here, numbers, bool(instances))
                found |= self._placed(label, here or numbers, notes)
        if not found and reason == NO_SERIES:
            moved = sorted({n for i in label.header.refers_to.values() for uid in i for n in self._of_instance[uid]})
            found = self._placed(label, moved, ("its label names images of this series, and another series",))
        return found or reason

    def _by_regions(self, label: LabelFile, numbers: Sequence[int], named: bool) -> tuple[list[int], list[int]]:
        """Return the images that regions overlap, and those named.

        If a label lists the whole series, the source images of its regions may say more.
        """
        sources, box = read_sources(self._root / label.path, label.header.kind)
        volumes = [n for n in numbers if self._stacks[n].kind != "flat"] if box else []
        reached = [n for n in volumes or numbers if not box or _reaches(box, self._stacks[n])]
        return reached, self._named(reached, sources) or (reached if named else [])

    def _named(self, numbers: Sequence[int], instances: Iterable[str]) -> list[int]:
        named = {n for uid in instances for n in self._of_instance.get(uid, ())}
        return [n for n in numbers if n in named]

    def _placed(self, label: LabelFile, numbers: Sequence[int], notes: tuple[str, ...] = ()) -> dict[int, PlacedLabel]:
        """Return the label on images of the same patient.

        On another patient's images only if none are of the same patient.
        """
        patient = label.header.patient
        own = [n for n in numbers if self._stacks[n].header.patient == patient]
        if numbers and not own and _is_identified(patient):
            notes = (*notes, "its label names another patient than its image")
        return {n: PlacedLabel(label.path, label.header, named=True, notes=notes) for n in own or numbers}

    def _in_space(self, label: LabelFile) -> dict[int, PlacedLabel] | str:
        header = label.header
        spaces = {header.frame_of_reference, *header.frames_of_reference.values()} - {""}
        if not spaces:
            return NO_REFERENCE
        numbers = [n for space in sorted(spaces) for n in self._of_space.get(space, ())]
        numbers = [n for n in numbers if self._stacks[n].kind != "flat"]
        if not numbers:
            return NO_SPACE
        patients = {header.patient} if _is_identified(header.patient) else set()
        numbers = [n for n in numbers if not patients or self._stacks[n].header.patient in patients]
        if not numbers:
            return OTHER_PATIENT
        numbers = [n for n in numbers if _reaches(header.box, self._stacks[n])]
        numbers = [n for n in numbers if regions_on(header, self._stacks[n].header)]
        if not numbers:
            return BESIDE
        # Anonymisers may give all patients the same frame of reference.
        own = [n for n in numbers if header.study and self._stacks[n].header.study == header.study]
        numbers = own or numbers
        numbers = [n for n in numbers if _same_grid(header.grid, self._stacks[n])] or numbers
        if len({(self._stacks[n].header.patient, self._stacks[n].header.study) for n in numbers}) > 1:
            return SEVERAL_STUDIES
        more = f", as on {len(numbers) - 1} more of its frame of reference: {ON_EACH}" if len(numbers) > 1 else ""
        note = f"{BY_SPACE}{more}" if own or not header.study else f"{BY_SPACE}, and is of another study{more}"
        return self._in_its_folder(
            label, {n: PlacedLabel(label.path, header, named=False, notes=(note,)) for n in numbers}
        )

    def _in_its_folder(self, label: LabelFile, found: dict[int, PlacedLabel]) -> dict[int, PlacedLabel] | str:
        """Return the image in a label's folder.

        Only if nothing but the folder tells images apart.
        """
        if len(found) < 2 or not all(any(FOLDER in note for note in self._stacks[n].notes) for n in found):
            return found
        own = label.path.split("/")[:-1]
        shared = {}
        for number in found:
            pairs = zip(own, self._stacks[number].slices[0].path.split("/")[:-1], strict=False)
            shared[number] = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        nearest = [number for number in found if shared[number] == max(shared.values())]
        if len(nearest) > 1:
            return SAME_UIDS
        return {nearest[0]: replace(found[nearest[0]], notes=(IN_FOLDER,))}


def _which(named: Sequence[int], numbers: Sequence[int], lists_images: bool) -> tuple[str, ...]:
    """Return a note if a label's volume is ambiguous."""
    if len(numbers) == 1 and not named and lists_images:
        return ("its label names other images of its series, which are not in the folder",)
    if len(named or numbers) < 2:
        return ()
    if named:
        return (f"its label names images of {len(named)} volumes of its series: {ON_EACH}",)
    return (f"its label names the series, and none of its {len(numbers)} volumes: {ON_EACH}",)


def _is_identified(patient: str) -> bool:
    """Return whether a patient's key identifies somebody.

    That is, it comes from a PatientID or a name, not from the study.
    """
    return not patient.startswith("study|")


def _reaches(box: Sequence[Sequence[float]] | None, stack: Stack) -> bool:
    """Return whether a label's box touches an image's.

    True if a place is unknown without reading the whole file.
    """
    header = stack.header
    if box is None or not header.position or not header.orientation or not header.spacing:
        return True
    row, column = np.array(header.orientation[:3]), np.array(header.orientation[3:])
    right = row * header.spacing[1] * (header.columns - 0.5)
    down = column * header.spacing[0] * (header.rows - 0.5)
    firsts = np.array([item.header.position for item in (stack.slices[0], stack.slices[-1])])
    margin = max(header.thickness / 2, *header.spacing)
    corners = np.concatenate([firsts + end for end in (0 * right, right, down, right + down)])
    low, high = corners.min(axis=0) - margin, corners.max(axis=0) + margin
    return bool((np.array(box[0]) <= high).all() and (np.array(box[1]) >= low).all())


def _same_grid(grid: FrameGrid | None, stack: Stack) -> bool:
    """Return whether a segmentation lies on an image's pixels."""
    header = stack.header
    if grid is None or not header.position or not header.orientation or not header.spacing:
        return False
    if grid.size != [header.rows, header.columns]:
        return False
    shift = np.array(grid.position) - header.position
    axes = np.array(header.orientation).reshape(2, 3)
    return (
        bool(np.allclose(grid.spacing, header.spacing, rtol=1e-3))
        and bool(np.allclose(grid.orientation, header.orientation, atol=1e-3))
        and bool((np.abs(axes @ shift) < 0.1 * min(header.spacing)).all())
    )
