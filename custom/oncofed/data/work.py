"""One case to be read in a process of its own: files, a DICOM series with its labels, or a slide."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import nibabel as nib
import numpy as np
from PIL import Image

from oncofed.data import facts
from oncofed.data.dicom.headers import Header
from oncofed.data.dicom.labels import read_label
from oncofed.data.dicom.pixels import read_stack
from oncofed.data.dicom.series import Slice, Stack
from oncofed.data.files import Use
from oncofed.data.images import LoadedImage
from oncofed.data.layouts import Item
from oncofed.data.manifest import write_whole
from oncofed.data.slides import TileSpec
from oncofed.data.slides.measuring import measure
from oncofed.errors import DataError

# Raised when facts gain a field, so that what an older version remembered is read anew.
_FACTS_VERSION = "3"


class Work(Protocol):
    """One case to be read in a process of its own."""

    @property
    def key(self) -> str:
        """What the index knows it by."""

    @property
    def name(self) -> str:
        """The case's, unique in the dataset."""

    def files(self) -> Iterator[tuple[str, Use]]:
        """Yield the path of each file that it reads, inside the registered folder, and as what."""

    def stamp(self) -> str:
        """What changes when its files do."""

    def read(self) -> dict[str, Any]:
        """Return the fields of an ``Entry``, or ``set_aside`` with the reason why the case cannot be used."""

    def set_aside(self, reason: str) -> dict[str, Any]:
        """Return ``{"name", "reason", "source"}`` of a case that cannot be used."""


@dataclass(frozen=True)
class FileWork:
    """A case whose image and label are files of their own."""

    root: Path
    prefix: str
    item: Item

    @property
    def key(self) -> str:
        """What the index knows it by."""
        return f"file:{self.item.name}"

    @property
    def name(self) -> str:
        """The case's."""
        return self.item.name

    def files(self) -> Iterator[tuple[str, Use]]:
        """Yield each file and its use."""
        yield from ((image, "image") for image in self.item.images)
        if isinstance(self.item.label, str):
            yield self.item.label, "label"

    def stamp(self) -> str:
        """What changes when its files do."""
        return f"{_FACTS_VERSION} {self.item!r} {facts.stamp(self._paths())}"

    def read(self) -> dict[str, Any]:
        """Return the case's facts or the reason why it cannot be used."""
        item = self.item
        label = self.root / item.label if isinstance(item.label, str) else None
        images = [self.root / image for image in item.images]
        try:
            image, mask = facts.read_case(images, label)
            found = facts.measure(image, mask)
            found["checksum"] = facts.checksum(images)
            found["notes"] = facts.header_text(image)
        except Exception as error:  # noqa: BLE001 - readers raise whatever they like for a malformed file
            return self.set_aside(facts.reason_of(error))
        paths = [f"{self.prefix}{image}" for image in item.images]
        return {
            **found,
            "name": item.name,
            "patient": item.patient,
            "image": paths[0] if len(paths) == 1 else paths,
            "label": f"{self.prefix}{item.label}" if isinstance(item.label, str) else item.label,
            "split": item.split,
            "modality": item.modality,
            "tags": item.tags,
            "stamp": facts.stamp(self._paths()),
            "source": item.images[0],
        }

    def set_aside(self, reason: str) -> dict[str, Any]:
        """Return what is known of a case that cannot be used."""
        return _set_aside(self.item.name, reason, self.item.images[0])

    def _paths(self) -> list[Path]:
        label = [self.item.label] if isinstance(self.item.label, str) else []
        return [self.root / path for path in (*self.item.images, *label) if (self.root / path).exists()]


@dataclass(frozen=True)
class StackWork:
    """A DICOM image with its label files."""

    root: Path
    out: Path
    name: str
    stack: Stack
    labels: tuple[Slice, ...]
    values: Mapping[str, int]
    class_label: int | None
    split: str | None

    @property
    def key(self) -> str:
        """What the index knows it by."""
        return f"dicom:{self.name}"

    def files(self) -> Iterator[tuple[str, Use]]:
        """Yield each file and its use."""
        yield from ((item.path, "image") for item in self.stack.slices)
        yield from ((item.path, "label") for item in self.labels)

    def stamp(self) -> str:
        """What changes when its files do."""
        files = sorted(item.path + item.header["stamp"] for item in (*self.stack.slices, *self.labels))
        text = f"{_FACTS_VERSION} {files} {sorted(self.values.items())} {self.class_label} {self.split}"
        there = all((self.out / path).is_file() for path in self._written())
        return hashlib.sha256(text.encode()).hexdigest() + ("" if there else " not written")

    def read(self) -> dict[str, Any]:
        """Convert the image and its label and return their facts, or the reason why they cannot be used."""
        header = self.stack.header
        try:
            pixels = read_stack(self.root, self.stack)
            label = self._label(pixels.image)
            found = facts.measure(pixels.image, label)
        except Exception as error:  # noqa: BLE001 - readers raise whatever they like for a malformed file
            return self.set_aside(facts.reason_of(error))
        image_path, label_path = self._written()[0], self._written()[1] if self.labels else None
        _write_image(self.out / image_path, pixels.image)
        if label is not None and label_path:
            _write_image(self.out / label_path, label)
        written = [self.out / p for p in (image_path, label_path) if p]
        return {
            **found,
            "name": self.name,
            "patient": header["patient"],
            "image": image_path,
            "label": label_path or self.class_label,
            "split": self.split,
            "modality": header["modality"] or None,
            "vendor": header["vendor"] or None,
            "checksum": facts.checksum(written[:1]),
            "stamp": facts.stamp(written),
            "notes": [*self.stack.notes, *pixels.notes, *_header_notes(header)],
            "source": self.stack.slices[0].path,
        }

    def set_aside(self, reason: str) -> dict[str, Any]:
        """Return what is known of an image that cannot be used."""
        return _set_aside(self.name, reason, self.stack.slices[0].path)

    def _written(self) -> list[str]:
        flat = self.stack.kind == "flat"
        # Packing an image costs more time than all else and saves a third; a label nearly vanishes.
        image, label = (".png", ".png") if flat else (".nii", ".nii.gz")
        return [f"images/{self.name}{image}", *([f"labels/{self.name}{label}"] if self.labels else [])]

    def _label(self, image: LoadedImage) -> LoadedImage | None:
        mask: LoadedImage | None = None
        for item in self.labels:
            if image.dimensions != 3:
                raise DataError("its image is flat, and its label a volume")
            read = read_label(self.root / item.path, item.header, image, self.values)
            merged = read.values if mask is None else np.maximum(mask.values, read.values)
            mask = replace(read, values=merged)
        return mask


@dataclass(frozen=True)
class SlideWork:
    """A whole slide with its table's or region's label; ``instances`` are the files of a DICOM slide."""

    root: Path
    prefix: str
    out: Path
    item: Item
    tiles: TileSpec
    names: Mapping[str, int]
    instances: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """What the index knows it by."""
        return f"slide:{self.item.name}"

    @property
    def name(self) -> str:
        """The slide's."""
        return self.item.name

    def files(self) -> Iterator[tuple[str, Use]]:
        """Yield each file and its use."""
        yield from ((path, "image") for path in (*(self.instances or self.item.images), *self._tiles_of_mirax()))
        if isinstance(self.item.label, str):
            yield self.item.label, "regions"

    def stamp(self) -> str:
        """What changes when its files do."""
        there = (self.out / self._tiles_path).is_file()
        files = self.instances or self.item.images
        paths = [self.root / p for p in (*files, self.item.label) if isinstance(p, str)]
        seen = facts.stamp([p for p in paths if p.exists()])
        text = f"{_FACTS_VERSION} {self.item!r} {self.tiles!r} {sorted(self.names.items())} {seen}"
        return text + ("" if there else " not written")

    def read(self) -> dict[str, Any]:
        """Find the slide's tissue and tiles and return its facts, or the reason why it cannot be used."""
        item = self.item
        path = self._gather() if self.instances else self.root / item.images[0]
        region = self.root / item.label if isinstance(item.label, str) else None
        try:
            found, grid = measure(path, self.tiles, region, self.names)
        except Exception as error:  # noqa: BLE001 - readers raise whatever they like for a malformed file
            return self.set_aside(facts.reason_of(error))
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **grid)  # type: ignore[arg-type]
        target = self.out / self._tiles_path
        target.parent.mkdir(parents=True, exist_ok=True)
        write_whole(target, buffer.getvalue())
        return {
            **found,
            "name": item.name,
            "patient": item.patient,
            "image": self._folder if self.instances else f"{self.prefix}{item.images[0]}",
            "label": f"{self.prefix}{item.label}" if isinstance(item.label, str) else item.label,
            "split": item.split,
            "modality": "SM",
            "tags": item.tags,
            "tiles": self._tiles_path,
            "stamp": facts.stamp([path]),
            "source": item.images[0],
        }

    def set_aside(self, reason: str) -> dict[str, Any]:
        """Return what is known of a slide that cannot be used."""
        return _set_aside(self.item.name, reason, self.item.images[0])

    def _tiles_of_mirax(self) -> list[str]:
        """Return the files that hold the tiles of an MRXS slide: all of the folder that is named as it is."""
        if self.instances or not self.item.images[0].lower().endswith(".mrxs"):
            return []
        folder = (self.root / self.item.images[0]).with_suffix("")
        return [str(path.relative_to(self.root)) for path in sorted(folder.rglob("*")) if path.is_file()]

    def _gather(self) -> Path:
        """Link the instances of one DICOM slide into a folder of its own, and return it."""
        folder = self.out / self._folder
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.iterdir():
            old.unlink()
        for number, instance in enumerate(self.instances):
            (folder / f"{number}.dcm").symlink_to((self.root / instance).resolve())
        return folder

    @property
    def _folder(self) -> str:
        return f"slides/{self.item.name}"

    @property
    def _tiles_path(self) -> str:
        return f"tiles/{self.item.name}.npz"


def _header_notes(header: Header) -> list[str]:
    return ["burned-in annotation: its header says YES"] if header["burned_in"].upper() == "YES" else []


def _set_aside(name: str, reason: str, source: str) -> dict[str, Any]:
    return {"name": name, "reason": reason, "source": source}


def _write_image(path: Path, image: LoadedImage) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if image.dimensions == 3:
        nifti = nib.Nifti1Image(image.values[..., 0], image.affine)
        nifti.header.set_xyzt_units("mm")
        unfinished = path.with_name(f".{path.name}")
        nib.save(nifti, unfinished)
        unfinished.replace(path)
        return
    values = np.ascontiguousarray(image.values.swapaxes(0, 1))
    if values.dtype != np.uint8:
        low = int(values.min())
        # PNG holds 16 bits without a sign; the lowest value becomes zero where it was negative.
        values = (values.astype(np.float64) - min(low, 0)).clip(0, 65535).round().astype(np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(values[..., 0] if values.shape[-1] == 1 else values).save(buffer, "PNG", compress_level=1)
    write_whole(path, buffer.getvalue())
