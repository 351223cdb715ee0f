"""Draw DICOM segmentations on an image, frame by frame.

DICOM PS3.3, sections A.51 and C.8.20; without a frame of reference, frames match their image by pixels (A.51.5.1).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels.utils import iter_pixels
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from oncofed.data.dicom.canvas import Canvas, OutsideError
from oncofed.data.dicom.matching import PlacedLabel
from oncofed.data.dicom.pixels import as_turned
from oncofed.data.dicom.planes import ROUNDING, Floats, reaches, voxels_near
from oncofed.data.dicom.references import LABEL_MAP, frame_measure, frame_place, read_whole, source_instances
from oncofed.data.dicom.stacks import Stack
from oncofed.data.formats.common import LPS_TO_RAS
from oncofed.data.images import LoadedImage
from oncofed.errors import DataError

_UNCOMPRESSED = {ImplicitVRLittleEndian, ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian}
# Frames no farther from a slice than this share of the slice distance lie on it.
_ON_SLICES = 0.1
_PARALLEL = 1 - 1e-4  # cosine of 0.8 degrees


@dataclass(frozen=True)
class _Frame:
    """One frame.

    Attributes:
        number: in the file, from 0.
        segment: its number; None in a label map, whose pixels hold it.
        place: (column, row, mm along the normal) -> LPS in mm; all zero if not stated.
        spacing: between frames in mm; 0 if not stated.
        thickness: of the frame in mm; 0 if not stated.
        sources: images that it was derived from.
    """

    number: int
    segment: int | None
    place: Floats
    spacing: float
    thickness: float
    sources: frozenset[str]


def draw_segmentation(
    path: Path, canvas: Canvas, wanted: Mapping[int, int], image: LoadedImage, stack: Stack, label: PlacedLabel
) -> list[str]:
    """Draw a segmentation.

    Args:
        path: the file.
        canvas: to draw on.
        wanted: number of a segment -> label value.
        image: as read from ``stack``, with its place in space.
        stack: the image's files.
        label: how the file refers to them.

    Returns:
        Notes for people.

    Raises:
        DataError: its frames cannot be placed.
        OutsideError: they lie outside the image.
    """
    dataset = read_whole(path)
    if "PixelData" not in dataset:
        raise DataError("its label has no pixels (PixelData), expected a segmentation of pixels")
    frames = [f for f in _frames(dataset) if f.segment is None or f.segment in wanted]
    reader = _Reader(dataset, wanted)
    place = _on_pixels if stack.kind == "flat" else _in_space
    drawn = place(canvas, reader, frames, image, stack, label)
    notes = list(reader.notes())
    if reader.filled and not drawn:
        raise OutsideError("its label lies outside the image: none of its pixels is on a voxel")
    if stack.kind != "flat" and (bare := sorted(set(wanted.values()) - reader.filled - reader.faint)):
        # With several flat images, not each need show every region.
        notes.append(f"named without a pixel, not drawn: {', '.join(canvas.names[value] for value in bare)}")
    if faint := sorted(reader.faint - reader.filled):
        names = ", ".join(canvas.names[value] for value in faint)
        notes.append(f"below a half wherever its fractional label shows it, not drawn: {names}")
    lost = sorted(reader.filled - drawn)
    if lost:
        names = ", ".join(canvas.names[value] for value in lost)
        notes.append(f"lies outside the image or between its voxels, not drawn: {names}")
    return notes


class _Reader:
    """The frames of a segmentation as label values.

    Attributes:
        filled: label values that occur in a frame.
        faint: those that occur as fractions.
    """

    def __init__(self, dataset: Dataset, wanted: Mapping[int, int]) -> None:
        self._dataset = dataset
        self._wanted = wanted
        self._kind = str(dataset.get("SegmentationType", "")).upper()
        self._full = float(dataset.get("MaximumFractionalValue") or 255)
        self._partial = False
        self._size = int(dataset.Rows) * int(dataset.Columns)
        self.filled: set[int] = set()
        self.faint: set[int] = set()
        self._values = np.zeros(max(wanted) + 2, np.uint16)  # the last one stands for all higher numbers
        self._values[list(wanted)] = list(wanted.values())

    def frame(self, frame: _Frame) -> NDArray[np.uint16]:
        """Return (row, column) label values of a frame."""
        stored = self._stored(frame.number)
        if frame.segment is None:
            values: NDArray[np.uint16] = self._values[np.minimum(stored, len(self._values) - 1)]
            self.filled |= set(np.unique(values).tolist()) - {0}
            return values
        value = self._wanted[frame.segment]
        if self._kind == "FRACTIONAL":
            self._partial |= bool(((stored > 0) & (stored < self._full)).any())
            if stored.any():
                self.faint.add(value)
            stored = (stored >= self._full / 2).astype(np.uint8)
        if stored.any():
            self.filled.add(value)
        filled: NDArray[np.uint16] = np.where(stored > 0, np.uint16(value), np.uint16(0))
        return filled

    def notes(self) -> Iterator[str]:
        """Yield notes on decisions made when reading."""
        if self._partial:
            kind = str(self._dataset.get("SegmentationFractionalType", "")).lower() or "fraction"
            yield f"its label is fractional ({kind}): from a half on a voxel counts as the region's"

    def _stored(self, number: int) -> NDArray[np.unsignedinteger]:
        """Return one frame as stored.

        Bits of binary frames are packed without gaps (PS3.5, section 8.1.1).
        """
        dataset = self._dataset
        if dataset.BitsAllocated == 1 and dataset.file_meta.TransferSyntaxUID in _UNCOMPRESSED:
            first = number * self._size
            content = np.frombuffer(dataset.PixelData, np.uint8)[first // 8 : (first + self._size + 7) // 8]
            bits = np.unpackbits(content, bitorder="little")[first % 8 : first % 8 + self._size]
            if len(bits) < self._size:
                raise DataError(f"its label is cut off: frame {number + 1} is not whole. Copy it again")
            return bits.reshape(int(dataset.Rows), int(dataset.Columns))
        return np.asarray(next(iter_pixels(dataset, indices=[number], raw=True)))


def _frames(dataset: Dataset) -> Iterator[_Frame]:
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    groups = dataset.get("PerFrameFunctionalGroupsSequence") or ()
    count = int(dataset.get("NumberOfFrames") or 1)
    if groups and len(groups) != count:
        raise DataError(f"its label has {count} frames, and describes {len(groups)}. Export it again")
    kind = str(dataset.get("SegmentationType", "")).upper()
    labelmap = kind == "LABELMAP" or dataset.get("SOPClassUID") == LABEL_MAP
    for number, frame in enumerate(groups or [Dataset()] * count):
        segment = None if labelmap else _segment(frame, shared, dataset)
        sources = frozenset(uid for part in (frame, shared) for uid in source_instances(part) if uid)
        place = frame_place(frame, shared)
        spacing, thickness = (
            frame_measure(frame, shared, keyword) for keyword in ("SpacingBetweenSlices", "SliceThickness")
        )
        yield _Frame(
            number=number,
            segment=segment,
            place=np.zeros((4, 4)) if place is None else place,
            spacing=abs(spacing),
            thickness=thickness,
            sources=sources,
        )


def _segment(frame: Dataset, shared: Dataset, dataset: Dataset) -> int:
    for groups in (frame, shared):
        for item in groups.get("SegmentIdentificationSequence") or ():
            return int(item.ReferencedSegmentNumber)
    numbers = [int(s.SegmentNumber) for s in dataset.get("SegmentSequence") or ()]
    if len(numbers) != 1:
        raise DataError(
            "its label does not say which of its frames shows which region (SegmentIdentificationSequence). Export it "
            "again, or as NIfTI"
        )
    return numbers[0]


# --- flat images


def _on_pixels(
    canvas: Canvas, reader: _Reader, frames: list[_Frame], image: LoadedImage, stack: Stack, label: PlacedLabel
) -> set[int]:
    """Draw frames pixel by pixel, and return the values drawn."""
    header = stack.header
    own = [f for f in frames if header.instance in f.sources]
    silent = [f for f in frames if not f.sources]
    if silent and _names_others(label, header.instance):
        raise DataError(
            "its label is of several flat images, and does not say which of its frames is whose. Export one label an "
            "image"
        )
    drawn: set[int] = set()
    for frame in own or silent:
        values = reader.frame(frame)
        if values.shape != (header.rows, header.columns):
            raise DataError(
                f"its label has {values.shape[1]} x {values.shape[0]} pixels, expected the image's "
                f"{header.columns} x {header.rows}"
            )
        turned = as_turned(values.swapaxes(0, 1)[..., None], stack)[..., 0]
        for value in np.unique(turned[turned > 0]):
            canvas.draw(np.nonzero(turned == value), int(value))
            drawn.add(int(value))
    if frames and not own and not silent:
        raise DataError(
            "its label's frames are of other images than this one. Copy those images, too, or export it again"
        )
    return drawn


def _names_others(label: PlacedLabel, instance: str) -> bool:
    named = {uid for uids in label.header.refers_to.values() for uid in uids} | {*label.header.refers_to_images}
    return bool(named - {instance})


# --- volumes


def _in_space(
    canvas: Canvas, reader: _Reader, frames: list[_Frame], image: LoadedImage, stack: Stack, label: PlacedLabel
) -> set[int]:
    """Draw frames at their places, and return the values drawn."""
    if image.dimensions != 3:
        raise DataError(
            "its label's frames lie in space, and its image is flat, expected a label of the flat image itself"
        )
    drawn: set[int] = set()
    for frame, (low, high), to_frame in _slabs(reader, frames, image, label):
        values = reader.frame(frame)
        rows, columns = (np.flatnonzero(values.any(axis=axis)) for axis in (1, 0))
        if not len(rows):
            continue
        first = np.array([columns[0] - 0.5, rows[0] - 0.5, low - ROUNDING])
        last = np.array([columns[-1] + 0.5, rows[-1] + 0.5, high - ROUNDING])
        first[:2] -= ROUNDING
        last[:2] -= ROUNDING
        for index, places in voxels_near(to_frame, image.shape, first, last):
            column, row = np.floor(places + (0.5 + ROUNDING)).astype(int).T
            found = values[row, column]
            for value in np.unique(found[found > 0]):
                canvas.draw(tuple(axis[found == value] for axis in index), int(value))
                drawn.add(int(value))
    return drawn


def _slabs(
    reader: _Reader, frames: list[_Frame], image: LoadedImage, label: PlacedLabel
) -> Iterator[tuple[_Frame, tuple[float, float], Floats]]:
    """Yield each frame, its reach, and its transform.

    The reach is below and above in mm; the transform is voxel -> (column, row, mm).
    """
    if not all(frame.place.any() for frame in frames):
        raise DataError(
            "its label's frames have no place in space (PlanePositionSequence), and its image is a volume. Export it "
            "again with its positions, or as NIfTI"
        )
    to_lps = LPS_TO_RAS @ image.affine
    for group in _by_direction(frames):
        normal = group[0].place[:3, 2]
        depths = np.array([normal @ frame.place[:3, 3] for frame in group])
        planes = _distinct(depths, 0.02 * float(voxel_sizes(to_lps).min()))
        ways = reaches(planes, _half(group[0], planes, normal, to_lps, label))
        for frame, depth in zip(group, depths, strict=True):
            nearest = int(np.argmin(np.abs(planes - depth)))
            yield frame, ways[nearest], np.linalg.inv(frame.place) @ to_lps


def _by_direction(frames: list[_Frame]) -> list[list[_Frame]]:
    groups: list[list[_Frame]] = []
    for frame in frames:
        group = next((g for g in groups if g[0].place[:3, 2] @ frame.place[:3, 2] > _PARALLEL), None)
        if group is None:
            groups.append([frame])
        else:
            group.append(frame)
    return groups


def _distinct(depths: Floats, tolerance: float) -> Floats:
    """Return depths that differ by more than ``tolerance``, ascending."""
    ordered = np.sort(depths)
    distinct: Floats = ordered[np.concatenate([[True], np.diff(ordered) > tolerance])]
    return distinct


def _half(frame: _Frame, planes: Floats, normal: Floats, to_lps: Floats, label: PlacedLabel) -> float:
    """Return the reach of an isolated frame in mm.

    Frames on the slices of the image that they name cover those slices alone: empty frames were left out.
    """
    step = float(normal @ to_lps[:3, 2])
    across = np.cross(to_lps[:3, 0], to_lps[:3, 1])
    parallel = abs(normal @ across) > _PARALLEL * np.linalg.norm(across)
    if label.named and parallel:
        slices = (planes - normal @ to_lps[:3, 3]) / step
        if (np.abs(slices - np.rint(slices)) <= _ON_SLICES).all():
            return abs(step) / 2
    if frame.spacing:
        return frame.spacing / 2
    if len(planes) > 1:
        return float(np.diff(planes).min()) / 2
    return (frame.thickness or float(np.abs(normal @ to_lps[:3, :3]).max())) / 2
