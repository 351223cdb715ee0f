"""Readers of a case: files, DICOM series or slide."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from oncofed.atomic import write_whole
from oncofed.data import case_facts
from oncofed.data.case_results import CaseFound, CaseRefused, CaseResult
from oncofed.data.converted import fitting, is_there, write_image
from oncofed.data.dicom.header_types import ImageHeader
from oncofed.data.dicom.labels import Label, read_labels
from oncofed.data.dicom.matching import PlacedLabel
from oncofed.data.dicom.pixels import read_stack
from oncofed.data.dicom.stacks import Stack
from oncofed.data.files import Use
from oncofed.data.images import LoadedImage
from oncofed.data.layouts import Item, Stated
from oncofed.data.layouts.base import first_free
from oncofed.data.layouts.content import looks_like_mask
from oncofed.data.manifest import Entry, Split
from oncofed.data.mixtures import RAW, UNITS
from oncofed.data.slides import TileSpec
from oncofed.data.slides.measuring import measure

# Raised when facts gain a field: cases in the index of an older version are read again.
_FACTS_VERSION = "12"
# Raised when tissue, or flags of tiles, are found otherwise: slides are read again.
_TISSUE_VERSION = "1"


class Work(Protocol):
    """One case, read in a worker process."""

    @property
    def key(self) -> str:
        """Key of the case in the index."""

    @property
    def name(self) -> str:
        """Name of the case, unique in the dataset."""

    def files(self) -> Iterator[tuple[str, Use]]:
        """Yield each file and its use.

        Paths are inside the registered folder.
        """

    def stamp(self) -> str:
        """A string that changes when its files do."""

    def read(self) -> CaseResult:
        """Read the case; an unusable one raises no error."""

    def set_aside(self, reason: str) -> CaseRefused:
        """Return the case as one that cannot be used."""

    def renamed(self, name: str) -> Work:
        """Return the case by another name."""


def distinct_work(work: Sequence[Work], taken: Collection[str]) -> list[Work]:
    """Return cases with distinct names.

    Files are written by name, so names in ``taken`` are avoided too.
    """
    used, found = set(taken), []
    for item in work:
        name = first_free(item.name, used)
        used.add(name)
        found.append(item if name == item.name else item.renamed(name))
    return found


@dataclass(frozen=True)
class FileWork:
    """A case of plain image and label files.

    ``named`` are the label values that have names.
    """

    root: Path
    prefix: str
    item: Item
    named: tuple[int, ...] = ()

    @property
    def key(self) -> str:
        """Key of the case in the index."""
        return f"file:{self.item.name}"

    @property
    def name(self) -> str:
        """Name of the case."""
        return self.item.name

    def files(self) -> Iterator[tuple[str, Use]]:
        """Yield each file and its use."""
        yield from ((image, "image") for image in self.item.images)
        yield from ((mask, "label") for mask in self.item.masks)

    def stamp(self) -> str:
        """A string that changes when its files do."""
        return f"{_FACTS_VERSION} {self.item!r} {self.named} {case_facts.stamp(self._paths())}"

    def read(self) -> CaseResult:
        """Read the image and its label."""
        item = self.item
        images = [self.root / image for image in item.images]
        try:
            image, mask, problem = self._read_files(images)
            found = case_facts.measure(image, mask)
            found |= {"label_problem": problem} if problem else {}
            found["checksum"] = case_facts.checksum(images)
            found["notes"] = [*case_facts.notes(image, mask), *item.notes]
            alone = item.label is None and not item.targets and not item.unread and len(images) == 1
            may_be_mask = alone and looks_like_mask(image)
        except Exception as error:  # noqa: BLE001 - readers raise any type of error for a malformed file
            return self.set_aside(case_facts.reason_of(error))
        paths = [f"{self.prefix}{image}" for image in item.images]
        entry = Entry(
            **found,
            name=item.name,
            patient=item.patient,
            image=paths[0] if len(paths) == 1 else paths,
            label=self._listed_label(mask),
            label_named=(list(self.named) or None) if mask else None,
            split=item.split,
            modality=item.modality,
            tags=item.tags,
            targets=dict(item.targets),
            unread=dict(item.unread),
            looked_for=None if item.looked_for is None else list(item.looked_for),
            stamp=case_facts.stamp([*images, *self._label_files(mask)]),
            source=item.images[0],
        )
        return CaseFound(entry, looks_like_mask=may_be_mask)

    def set_aside(self, reason: str) -> CaseRefused:
        """Return the case as one that cannot be used."""
        return CaseRefused(self.item.name, reason=reason, source=self.item.images[0])

    def renamed(self, name: str) -> Work:
        """Return the case by another name."""
        return replace(self, item=replace(self.item, name=name))

    def _read_files(self, images: Sequence[Path]) -> tuple[LoadedImage, LoadedImage | None, str]:
        """Return image, mask, and why the mask cannot be read; a case with targets does without."""
        label = self._label_file()
        try:
            image, mask = case_facts.read_case(images, label, named=self.named)
        except Exception as error:
            if label is None or not label.is_file() or not self.item.targets:
                raise
            return case_facts.read_case(images, None)[0], None, case_facts.reason_of(error)
        return image, self._with_label(image, mask), ""

    def _label_file(self) -> Path | None:
        return self.root / self.item.label if isinstance(self.item.label, str) else None

    def _with_label(self, image: LoadedImage, mask: LoadedImage | None) -> LoadedImage | None:
        """Return the mask as stored; ``image`` is what it covers."""
        del image
        return mask

    def _listed_label(self, mask: LoadedImage | None) -> str | int | None:
        """Return the label as the manifest lists it."""
        del mask
        label = self.item.label
        assert not isinstance(label, tuple)
        return f"{self.prefix}{label}" if isinstance(label, str) else label

    def _label_files(self, mask: LoadedImage | None) -> list[Path]:
        """Return the label's file, as the manifest lists it."""
        del mask
        label = self._label_file()
        return [label] if label else []

    def _paths(self) -> list[Path]:
        paths = (*self.item.images, *self.item.masks)
        return [self.root / path for path in paths if (self.root / path).exists()]


@dataclass(frozen=True)
class StackWork:
    """A DICOM image with its label files."""

    root: Path
    out: Path
    name: str
    stack: Stack
    labels: tuple[PlacedLabel, ...]
    values: Mapping[str, int]
    class_label: int | None
    split: Split | None
    stated: Stated = field(default_factory=Stated)

    @property
    def key(self) -> str:
        """Key of the case in the index."""
        return f"dicom:{self.name}"

    def files(self) -> Iterator[tuple[str, Use]]:
        """Yield each file and its use."""
        yield from ((item.path, "image") for item in self.stack.slices)
        yield from ((item.path, "label") for item in self.labels)

    def stamp(self) -> str:
        """A string that changes when its files do."""
        slices = (item.path + item.header.stamp for item in self.stack.slices)
        files = sorted([*slices, *(label.path + label.header.stamp for label in self.labels)])
        placed = [(label.path, label.named, label.notes) for label in self.labels]
        text = f"{_FACTS_VERSION} {files} {placed} {sorted(self.values.items())} {self.class_label} {self.split}"
        text += f" {self.stack.header.person} {self.stack.notes}"
        text += f" {self.stated!r}" if self.stated != Stated() else ""
        is_written = all(is_there(self.out / path) for path in self._written())
        return hashlib.sha256(text.encode()).hexdigest() + ("" if is_written else " not written")

    def read(self) -> CaseResult:
        """Read the image and its label, and write them converted."""
        header = self.stack.header
        try:
            pixels = read_stack(self.root, self.stack)
            label, problem = self._read_label(pixels.image)
            mask = label.image if label else None
            found = case_facts.measure(pixels.image, mask, len(self.values) + 1)
            found |= {"label_problem": problem} if problem else {}
        except Exception as error:  # noqa: BLE001 - readers raise any type of error for a malformed file
            return self.set_aside(case_facts.reason_of(error))
        image_path = fitting(self._written()[0], pixels.image)
        label_path = self._written()[1] if mask is not None else None
        write_image(self.out / image_path, pixels.image)
        if mask is not None and label_path:
            write_image(self.out / label_path, mask)
        written = [self.out / p for p in (image_path, label_path) if p]
        entry = Entry(
            **found,
            name=self.name,
            patient=header.person,
            study=header.study or None,
            image=image_path,
            label=self.class_label if label_path is None else label_path,
            label_named=sorted(self.values.values()) if mask else None,
            split=self.split,
            modality=header.modality or None,
            vendor=header.vendor or None,
            checksum=case_facts.checksum(written[:1]),
            stamp=case_facts.stamp(written),
            targets=dict(self.stated.targets),
            unread=dict(self.stated.unread),
            looked_for=None if self.stated.looked_for is None else list(self.stated.looked_for),
            tags=dict(self.stated.tags),
            notes=[*self.stack.notes, *pixels.notes, *_header_notes(header), *(label.notes if label else ())],
            source=self.stack.slices[0].path,
        )
        return CaseFound(entry, not_drawn=label.not_drawn if label else ())

    def set_aside(self, reason: str) -> CaseRefused:
        """Return the image as one that cannot be used."""
        return CaseRefused(self.name, reason=reason, source=self.stack.slices[0].path)

    def renamed(self, name: str) -> Work:
        """Return the image by another name."""
        return replace(self, name=name)

    def _written(self) -> list[str]:
        flat = self.stack.kind == "flat"
        # Compressing an image takes longer than all else and saves a third; a label shrinks to almost nothing.
        image, label = (".png", ".png") if flat else (".nii", ".nii.gz")
        return [f"images/{self.name}{image}", *([f"labels/{self.name}{label}"] if self.labels else [])]

    def _read_label(self, image: LoadedImage) -> tuple[Label | None, str]:
        """Return the mask, and why it cannot be read; a case with targets does without."""
        if not self.labels:
            return None, ""
        try:
            return read_labels(self.root, self.labels, image, self.stack, self.values), ""
        except Exception as error:
            if not self.stated.targets:
                raise
            return None, case_facts.reason_of(error)


@dataclass(frozen=True)
class SlideWork:
    """A whole slide with its label.

    The label is a table's class or a file of regions; ``instances`` are the files of a DICOM slide.
    """

    root: Path
    prefix: str
    out: Path
    item: Item
    tiles: TileSpec
    names: Mapping[str, int]
    instances: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Key of the case in the index."""
        return f"slide:{self.item.name}"

    @property
    def name(self) -> str:
        """Name of the slide."""
        return self.item.name

    def files(self) -> Iterator[tuple[str, Use]]:
        """Yield each file and its use."""
        yield from ((path, "image") for path in (*(self.instances or self.item.images), *self._tiles_of_mirax()))
        if isinstance(self.item.label, str):
            yield self.item.label, "regions"

    def stamp(self) -> str:
        """A string that changes when its files do."""
        is_written = (self.out / self._tiles_path).is_file()
        files = self.instances or self.item.images
        paths = [self.root / p for p in (*files, self.item.label) if isinstance(p, str)]
        seen = case_facts.stamp([p for p in paths if p.exists()])
        text = f"{_FACTS_VERSION} {_TISSUE_VERSION} {self.item!r} {self.tiles!r} {sorted(self.names.items())} {seen}"
        return text + ("" if is_written else " not written")

    def read(self) -> CaseResult:
        """Find the slide's tissue, and write its tiles."""
        item = self.item
        path = self._gather() if self.instances else self.root / item.images[0]
        region = self.root / item.label if isinstance(item.label, str) else None
        try:
            found, grid = measure(path, self.tiles, region, self.names)
        except Exception as error:  # noqa: BLE001 - readers raise any type of error for a malformed file
            return self.set_aside(case_facts.reason_of(error))
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **grid)  # type: ignore[arg-type]
        target = self.out / self._tiles_path
        target.parent.mkdir(parents=True, exist_ok=True)
        write_whole(target, buffer.getvalue())
        assert not isinstance(item.label, tuple)
        entry = Entry(
            **found,
            name=item.name,
            patient=item.patient,
            image=self._folder if self.instances else f"{self.prefix}{item.images[0]}",
            label=f"{self.prefix}{item.label}" if isinstance(item.label, str) else item.label,
            split=item.split,
            modality="SM",
            tags=item.tags,
            targets=dict(item.targets),
            unread=dict(item.unread),
            looked_for=None if item.looked_for is None else list(item.looked_for),
            tiles=self._tiles_path,
            stamp=case_facts.stamp([path, *([region] if region else [])]),
            source=item.images[0],
        )
        return CaseFound(entry)

    def set_aside(self, reason: str) -> CaseRefused:
        """Return the slide as one that cannot be used."""
        return CaseRefused(self.item.name, reason=reason, source=self.item.images[0])

    def renamed(self, name: str) -> Work:
        """Return the case by another name."""
        return replace(self, item=replace(self.item, name=name))

    def _tiles_of_mirax(self) -> list[str]:
        """Return the tile files of an MRXS slide.

        They are all files in the folder with the slide's name.
        """
        if self.instances or not self.item.images[0].lower().endswith(".mrxs"):
            return []
        folder = (self.root / self.item.images[0]).with_suffix("")
        return [str(path.relative_to(self.root)) for path in sorted(folder.rglob("*")) if path.is_file()]

    def _gather(self) -> Path:
        """Return a folder of links to a DICOM slide's instances."""
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


def is_dicom(work: Work) -> bool:
    """Return whether a case's image is DICOM."""
    return isinstance(work, StackWork) or (isinstance(work, SlideWork) and bool(work.instances))


def _header_notes(header: ImageHeader) -> list[str]:
    notes = ["burned-in annotation: its header says YES"] if header.burned_in.upper() == "YES" else []
    if header.modality == "PT" and header.units:
        notes.append(f"{UNITS} {header.units}")
    return [*notes, RAW] if header.intent == "FOR PROCESSING" else notes
