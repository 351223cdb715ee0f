"""Labels from SEG and RT-STRUCT, on an image's grid."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from oncofed.data.dicom.canvas import Canvas, OutsideError
from oncofed.data.dicom.matching import PlacedLabel
from oncofed.data.dicom.references import named_twice, regions_on, wanted_regions
from oncofed.data.dicom.segmentations import draw_segmentation
from oncofed.data.dicom.stacks import Stack
from oncofed.data.dicom.structures import draw_structures
from oncofed.data.images import LoadedImage
from oncofed.data.masks import value_name
from oncofed.errors import DataError

_MOST_VALUES = 65535


@dataclass(frozen=True)
class Label:
    """A mask read from DICOM.

    Attributes:
        image: label values (x, y, z, 1), or (x, y, 1) of a flat image; uint8, or uint16 where a value needs it. None
            where no file reaches the image.
        notes: observations and steps, for people.
        not_drawn: paths of the files that lie outside the image, though they share its frame of reference.
    """

    image: LoadedImage | None
    notes: list[str]
    not_drawn: tuple[str, ...] = ()


def read_labels(
    root: Path, labels: Sequence[PlacedLabel], image: LoadedImage, stack: Stack, values: Mapping[str, int]
) -> Label:
    """Read an image's label files as one mask.

    Args:
        root: folder that the files' paths start from.
        labels: SEG and RT-STRUCT files, at least one.
        image: as read from ``stack``.
        stack: the image's files.
        values: name of a region -> label value; others are left out.

    Returns:
        The mask; where two regions overlap, the higher value. A file that does not name the image, and lies outside, is
        skipped with a note.

    Raises:
        DataError: a file cannot be read or drawn, or none of its names is in ``values``.
    """
    if max(values.values(), default=0) > _MOST_VALUES:
        raise DataError(_too_high(values))
    names = {value: name for name, value in values.items()}
    canvas = Canvas(image.shape, names)
    notes: list[str] = []
    drawn: list[PlacedLabel] = []
    outside: list[str] = []
    for label in labels:
        regions = regions_on(label.header, stack.header)
        wanted = wanted_regions(regions, values)
        if not wanted:
            named = ", ".join(sorted(set(regions.values())))
            raise DataError(f"its label names {named or 'nothing'}, expected some of {', '.join(sorted(values))}")
        try:
            found = _draw(root / label.path, canvas, wanted, image, stack, label)
        except OutsideError:
            if label.named:
                raise
            notes.append(f"{label.path} shares its frame of reference, and lies outside: not drawn")
            outside.append(label.path)
            continue
        notes += [*label.notes, *_space_note(label, stack), *found]
        drawn.append(label)
    if not drawn:
        return Label(None, notes, tuple(outside))
    notes += _joined(drawn, stack, values)
    notes += canvas.overlaps()
    mask = LoadedImage(canvas.values[..., None], image.affine, str(canvas.values.dtype), calibrated=image.calibrated)
    return Label(mask, list(dict.fromkeys(notes)), tuple(outside))


def _too_high(values: Mapping[str, int]) -> str:
    if len(values) > _MOST_VALUES:
        return (
            f"the labels of its folder name {len(values):,} regions, expected at most {_MOST_VALUES:,}: say which are "
            "to be learned with --labels 1=NAME,2=NAME"
        )
    name = max(values, key=lambda name: values[name])
    return (
        f"--labels gives the region {name} the value {value_name(values[name])}, expected a number from 1 to "
        f"{_MOST_VALUES:,}, such as 1={name}: regions of DICOM are told by their names, and no colour is"
    )


def _draw(
    path: Path, canvas: Canvas, wanted: Mapping[int, int], image: LoadedImage, stack: Stack, label: PlacedLabel
) -> list[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if label.header.kind == "seg":
                return draw_segmentation(path, canvas, wanted, image, stack, label)
            return draw_structures(path, canvas, wanted, image, label)
        except DataError:
            raise
        except (MemoryError, OSError):
            raise
        except Exception:  # noqa: BLE001 - a broken file raises any type of error
            kind = "segmentation (SEG)" if label.header.kind == "seg" else "structure set (RT-STRUCT)"
            raise DataError(
                f"its label file {path.name} cannot be read: it is cut off or no {kind} as DICOM describes it. "
                "Export it again"
            ) from None


def _space_note(label: PlacedLabel, stack: Stack) -> list[str]:
    """Return a note if a label is in another space."""
    own = {label.header.frame_of_reference, *label.header.frames_of_reference.values()} - {""}
    space = stack.header.frame_of_reference
    if stack.kind == "flat" or not own or not space or space in own:
        return []
    return ["its label says another frame of reference than the image that it names: placed by its own positions"]


def _joined(labels: Sequence[PlacedLabel], stack: Stack, values: Mapping[str, int]) -> list[str]:
    """Return a note if several files label one image."""
    if len(labels) < 2:
        return []
    files = ", ".join(label.path for label in labels)
    twice = named_twice((label.header for label in labels), stack.header, values)
    note = f"{len(labels)} label files joined: {files}"
    return [f"{note}; more than one holds {', '.join(twice[:5])}: all of it counts" if twice else note]
