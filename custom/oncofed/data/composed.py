"""Cases whose mask is composed of several files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from oncofed.data.case_readers import FileWork
from oncofed.data.converted import write_image
from oncofed.data.images import LoadedImage
from oncofed.data.layouts import Part
from oncofed.data.masks import read_mask
from oncofed.data.same_grid import other_grid, turned_onto
from oncofed.errors import DataError


@dataclass(frozen=True)
class ComposedWork(FileWork):
    """A case of files whose mask is written to ``out``."""

    out: Path = Path()

    def stamp(self) -> str:
        """A string that changes when its files do."""
        is_written = any(self._written(dimensions).is_file() for dimensions in (2, 3))
        return super().stamp() + ("" if is_written else " not written")

    def _with_label(self, image: LoadedImage, mask: LoadedImage | None) -> LoadedImage | None:
        assert isinstance(self.item.label, tuple)
        mask = turned_onto(image, compose(self.root, self.item.label), "its label")
        path = self._written(mask.dimensions)
        unsaid = not mask.calibrated or not image.calibrated  # the written PNG holds no pixel size either
        write_image(path, mask if not unsaid else replace(mask, affine=image.affine))
        return mask

    def _listed_label(self, mask: LoadedImage | None) -> str | int | None:
        return str(self._label_files(mask)[0].relative_to(self.out))

    def _label_files(self, mask: LoadedImage | None) -> list[Path]:
        assert mask is not None
        return [self._written(mask.dimensions)]

    def _written(self, dimensions: int) -> Path:
        return self.out / "labels" / f"{self.item.name}{'.nii.gz' if dimensions == 3 else '.png'}"


def compose(root: Path, parts: Sequence[Part]) -> LoadedImage:
    """Return several mask files as one mask.

    Raises:
        DataError: one cannot be read, or they overlap or lie on different grids; the message has paths in ``root``.
    """
    composed: LoadedImage | None = None
    values: np.ndarray[Any, Any] | None = None
    notes: list[str] = []
    for part in parts:
        read = _read(root, part)
        notes += (f"{note} (of {part.name or part.path})" for note in read.notes)
        if composed is None or values is None:
            composed, values = read, np.zeros(read.values.shape, np.uint16)
        else:
            read = turned_onto(composed, read, "one of its masks")
            if fault := other_grid(composed, read):
                raise DataError(f"its masks do not lie on one grid: beside {parts[0].path}, {part.path} {fault}")
            composed = replace(composed, notes=tuple(dict.fromkeys((*composed.notes, *read.notes))))
        labelled = _labelled(read.values, part)
        both = (values != 0) & (labelled != 0)
        if both.any():
            other = next(p for p in parts if p.value == values[both][0])
            raise DataError(
                f"its masks of {other.name} and {part.name} overlap in {int(both.sum())} voxels: no task learns "
                "overlapping classes yet. Keep one of them, or name the masks that count in a table (image, label)"
            )
        values[labelled != 0] = labelled[labelled != 0]
    assert composed is not None
    assert values is not None
    kept = values.astype(np.uint8) if values.max(initial=0) < 256 else values
    return replace(composed, values=kept, stored=str(kept.dtype), notes=tuple(dict.fromkeys(notes)))


def _read(root: Path, part: Part) -> LoadedImage:
    try:
        return read_mask(root / part.path, named=[value for value, _ in part.values] if part.value is None else ())
    except DataError as error:
        raise DataError(f"its label file {part.path} {error}") from None


def _labelled(values: np.ndarray[Any, Any], part: Part) -> np.ndarray[Any, Any]:
    """Return a file's voxels with their label values."""
    rounded = np.rint(values)
    if not np.array_equal(rounded, values):
        raise DataError(f"its label file {part.path} holds fractions, expected one whole number for each class")
    found = np.unique(rounded[rounded != 0])
    if part.value is None:
        result = np.zeros(values.shape, np.uint16)
        for value, to in part.values:
            result[rounded == value] = to
        if unnamed := set(found) - {value for value, _ in part.values}:
            raise DataError(
                f"its label file {part.path} holds the value {min(unnamed):g}, which it does not name. Name it where "
                "its other values are named"
            )
        return result
    if len(found) > 1:
        raise DataError(
            f"its label file {part.path} holds {', '.join(f'{v:g}' for v in found[:5])}, expected one beside "
            f"0: by its name it is the mask of {part.name} alone. Save each class in a file of its own, or list the "
            "mask that holds them all in a table (image, label)"
        )
    labelled: np.ndarray[Any, Any] = np.where(rounded != 0, np.uint16(part.value), np.uint16(0))
    return labelled
