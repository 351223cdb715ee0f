"""Reads a source series and maps labels onto its frames.

Positions: DICOM PS3.3, section C.7.6.2 (classic images) and C.7.6.16.2 (enhanced ones).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from oncofed.data.dicom.frames import frame_affine
from oncofed.data.dicom.header_types import BrokenFile, ImageHeader
from oncofed.data.dicom.headers import read_header
from oncofed.data.dicom.indexing import completed
from oncofed.data.dicom.pixels import as_turned, digest
from oncofed.data.dicom.references import frame_place
from oncofed.data.dicom.series import group_series
from oncofed.data.dicom.stacks import Stack
from oncofed.data.formats.common import LPS_TO_RAS
from oncofed.errors import DataError

Floats = NDArray[np.float64]
_NAMES = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
# Tolerances in slice distances and pixels, for positions rounded to tenths of a millimetre.
_OFF_SLICE, _OFF_PIXEL = 0.3, 0.75
# Tolerance over a whole row or column, in pixels.
_DRIFT = 0.3


@dataclass(frozen=True)
class Frame:
    """One frame of a series.

    Attributes:
        file: index of its file, from 0.
        number: frame number within the file, from 1.
        place: (4, 4), (column, row, mm along the normal) -> LPS in mm; None for a flat image.
    """

    file: int
    number: int
    place: Floats | None


@dataclass(frozen=True)
class Series:
    """The files of one image.

    Attributes:
        headers: header of each file, without pixels.
        frames: all frames, in the order of the files.
        stack: as registration reads it.
    """

    headers: tuple[Dataset, ...]
    frames: tuple[Frame, ...]
    stack: Stack

    @property
    def is_flat(self) -> bool:
        """Whether it is a flat image, without position in space."""
        return self.stack.kind == "flat"

    @property
    def has_frames(self) -> bool:
        """Whether a file holds several frames."""
        return self.stack.kind == "multiframe"

    @property
    def places(self) -> list[Floats]:
        """Positions of a volume's frames, where known."""
        return [frame.place for frame in self.frames if frame.place is not None]

    @property
    def first(self) -> Dataset:
        """Header of the first file."""
        return self.headers[0]


def read_series(files: Sequence[Path], labels: NDArray[Any], affine: Floats) -> tuple[Series, NDArray[Any]]:
    """Read the source series and put labels onto its frames.

    Args:
        files: of the image, in any order; may include further volumes of the series.
        labels: label values (x, y, z) on the grid that registration made of the series, or (x, y) of a flat image.
        affine: (4, 4) from voxels to RAS+ in mm; ignored for a flat image.

    Returns:
        The series, and (frame, row, column) label values.

    Raises:
        DataError: the files are no image, or the labels do not fit it.
    """
    stacks = _stacks(files)
    problem = "the labels do not lie on the grid of the series. Predict on these files"
    found: list[tuple[Series, NDArray[Any]]] = []
    for stack in stacks:
        if stack.reason:
            problem = f"its series cannot be used: it {stack.reason}"
            continue
        series = _series(stack)
        placed = _on_pixels(labels, stack) if stack.kind == "flat" else _on_frames(labels, affine, series)
        if placed is not None:
            found.append((series, placed))
    if len(found) > 1:
        raise DataError(
            f"{files[0].parent}: the series holds {len(found)} volumes at one place, and the labels could be of any. "
            "Name the files of one"
        )
    if not found:
        raise DataError(f"{files[0].parent if files else 'series'}: {problem}")
    return found[0]


def _stacks(files: Sequence[Path]) -> list[Stack]:
    if not files:
        raise DataError("no DICOM file was named, expected those of the image")
    headers = [(str(path), completed(str(path), read_header(path))) for path in files]
    for path, header in headers:
        if isinstance(header, BrokenFile):
            raise DataError(f"{path}: {header.reason}")
    stacks = group_series(headers, lambda slices: {s.path: digest(Path(s.path), s.header) for s in slices}).stacks
    if not stacks:
        raise DataError(f"{files[0].parent}: holds no DICOM image, expected the series that was predicted on")
    return stacks


def _series(stack: Stack) -> Series:
    headers = []
    for item in stack.slices:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            header = pydicom.dcmread(item.path, stop_before_pixels=True, force=True)
        missing = [keyword for keyword in _NAMES if keyword not in header]
        if missing:
            raise DataError(
                f"{item.path}: has no {', '.join(missing)}, by which a DICOM object could name it. Export the series "
                "again from its source"
            )
        headers.append(header)
    if len({header.StudyInstanceUID for header in headers}) > 1:
        raise DataError(f"{stack.slices[0].path}: its volume is of several studies, expected one")
    return Series(tuple(headers), tuple(_frames(stack, headers)), stack)


def _frames(stack: Stack, headers: Sequence[Dataset]) -> list[Frame]:
    if stack.kind == "flat":
        return [Frame(0, 1, None)]
    if stack.kind == "volume":
        return [Frame(number, 1, _place(item.header)) for number, item in enumerate(stack.slices)]
    shared = (headers[0].get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    groups = headers[0].get("PerFrameFunctionalGroupsSequence") or ()
    return [Frame(0, number, frame_place(group, shared)) for number, group in enumerate(groups, start=1)]


def _place(header: ImageHeader) -> Floats:
    return frame_affine(header.orientation, header.spacing, header.position)


# --- labels on frames


def _on_pixels(labels: NDArray[Any], stack: Stack) -> NDArray[Any] | None:
    """Return (1, row, column) labels in the stored orientation."""
    flat = labels[..., 0] if labels.ndim == 3 and labels.shape[2] == 1 else labels
    size = (stack.header.columns, stack.header.rows)
    stored = as_turned(np.arange(size[0] * size[1]).reshape(*size, 1), stack)[..., 0]
    if flat.shape != stored.shape:
        return None
    placed = np.zeros(size[0] * size[1], labels.dtype)
    placed[stored] = flat
    upright: NDArray[Any] = placed.reshape(size).T[None]
    return upright


def _on_frames(labels: NDArray[Any], affine: Floats, series: Series) -> NDArray[Any] | None:
    """Return (frame, row, column) labels; None: they do not fit.

    Frames of a tilted gantry were shifted onto a rectangular grid: each pixel takes the nearest voxel's label.
    """
    lines = _lines(labels.shape, affine, series)
    if not lines:
        return None
    header = series.stack.header
    placed = np.zeros((len(lines), header.rows, header.columns), labels.dtype)
    for line, target in zip(lines, placed, strict=True):
        line.copy(labels, target)
    return placed


def labels_within_frames(labels: NDArray[Any], affine: Floats, series: Series) -> NDArray[Any]:
    """Zero labels on voxels that no frame acquired.

    Such voxels arise where slices of a tilted gantry were shifted.

    Args:
        labels: see ``read_series``.
        affine: of the labels.
        series: that they lie on.
    """
    kept = np.zeros_like(labels)
    for line in _lines(labels.shape, affine, series) or ():
        line.keep(labels, kept)
    return kept


def _lines(shape: Sequence[int], affine: Floats, series: Series) -> list[_Lines] | None:
    """Map each frame into the volume; None if impossible."""
    places = series.places
    if len(shape) != 3 or not places or len(places) < len(series.frames):
        return None
    header = series.stack.header
    rows, columns = header.rows, header.columns
    from_lps = np.linalg.inv(LPS_TO_RAS @ affine)
    lines = []
    for place in places:
        line = _Lines.of(from_lps @ place, (columns, rows), shape, bool(series.stack.tilt))
        if line is None:
            return None
        lines.append(line)
    return lines if sorted(line.slice for line in lines) == list(range(shape[lines[0].axes[2]])) else None


@dataclass(frozen=True)
class _Lines:
    """Maps a frame's pixels to voxels of an axis-aligned volume.

    Attributes:
        axes: volume axes of the frame's columns, rows and normal.
        across: voxel index of each column along the first axis.
        down: voxel index of each row along the second axis.
        slice: voxel index along the third axis.
    """

    axes: tuple[int, int, int]
    across: NDArray[np.int64]
    down: NDArray[np.int64]
    slice: int

    @classmethod
    def of(cls, to_voxels: Floats, size: Sequence[int], shape: Sequence[int], is_tilted: bool) -> _Lines | None:
        """Map a frame; None if pixels do not match voxels.

        Args:
            to_voxels: (4, 4) from the frame's (column, row, mm) to voxels.
            size: columns and rows of the frame.
            shape: of the volume.
            is_tilted: pixels may lie between voxels.
        """
        steps = to_voxels[:3, :2]
        axes = np.abs(steps).argmax(axis=0)
        if axes[0] == axes[1]:
            return None
        signs = np.sign(steps[axes, [0, 1]])
        exact = np.zeros((3, 2))
        exact[axes, [0, 1]] = signs
        ends = np.array(size) - 1
        if (np.abs(steps - exact) * ends).max(initial=0) > _DRIFT:
            return None
        third = 3 - int(axes.sum())
        centre = to_voxels[:3, 3] + steps @ (ends / 2)
        depth = centre[third]
        if abs(depth - round(depth)) > _OFF_SLICE:
            return None
        first = centre[axes] - signs * ends / 2
        if not is_tilted:
            expected = np.where(signs > 0, 0, ends)
            if (np.abs(first - expected) > _OFF_PIXEL).any() or [shape[axis] for axis in axes] != list(size):
                return None
            first = expected
        across, down = (
            np.floor(start + sign * np.arange(count) + 0.5).astype(int)
            for start, sign, count in zip(first, signs, size, strict=True)
        )
        return cls((int(axes[0]), int(axes[1]), third), across, down, round(depth))

    def copy(self, labels: NDArray[Any], target: NDArray[Any]) -> None:
        """Copy labels to the frame; keep pixels outside the volume."""
        rows, columns = self._inside(labels.shape)
        target[np.ix_(rows, columns)] = self._plane(labels)[np.ix_(self.down[rows], self.across[columns])]

    def keep(self, labels: NDArray[Any], target: NDArray[Any]) -> None:
        """Copy the frame's labels into another volume."""
        rows, columns = self._inside(labels.shape)
        voxels = np.ix_(self.down[rows], self.across[columns])
        self._plane(target)[voxels] = self._plane(labels)[voxels]

    def _inside(self, shape: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the rows and columns that lie in the volume."""
        rows = np.flatnonzero((self.down >= 0) & (self.down < shape[self.axes[1]]))
        return rows, np.flatnonzero((self.across >= 0) & (self.across < shape[self.axes[0]]))

    def _plane(self, volume: NDArray[Any]) -> NDArray[Any]:
        """Return a view of the frame's plane, (down, across)."""
        across_axis, down_axis, third = self.axes
        plane: NDArray[Any] = np.moveaxis(volume, third, 0)[self.slice]
        return plane if across_axis > down_axis else plane.T
