"""What a folder's layout says of its cases, and which files there are."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

from oncofed.data.images import stem
from oncofed.data.manifest import Quarantined, Split

_PATIENT_PATTERNS = (
    r"(?:^|/)(sub-[A-Za-z0-9]+)",
    r"(TCGA-[A-Z0-9]{2}-[A-Z0-9]{4})",
    r"(BraTS-[A-Za-z]+(?:-[A-Za-z]+)?-\d{4,5})(?=-\d)",  # what follows counts the patient's scans
    r"^((?:[^/]+/)*(?i:patient|subject|subj|case|pat)[ _-]?\d+)/",
)
SPLIT_NAMES: dict[str, Split] = {
    "train": "training",
    "training": "training",
    "tr": "training",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "va": "validation",
    "test": "test",
    "testing": "test",
    "ts": "test",
}

NO_IMAGE = "mask without an image: name it as its image (CASE_seg beside CASE), or list both in a table (image, label)"


@dataclass(frozen=True)
class Part:
    """A file of a mask that is put together from several, or whose values get other numbers.

    Attributes:
        path: inside the folder.
        value: label value of every voxel that is not zero; None: ``values`` says it.
        values: value in the file -> label value; what is not named keeps its number.
        name: of what it shows, for messages.
    """

    path: str
    value: int | None = None
    values: tuple[tuple[int, int], ...] = ()
    name: str = ""


@dataclass(frozen=True)
class Item:
    """One case as its folder's layout tells it.

    Attributes:
        name: unique in the dataset.
        patient: as the source names it; it is hashed before it is written anywhere.
        images: paths inside the folder, one a channel.
        label: path of a mask inside the folder, the files that a mask is put together from, or number of a class.
        split: where the layout says it.
        modality: where the layout says it.
        tags: other columns of a table.
        notes: what the layout saw, for people.
    """

    name: str
    patient: str
    images: tuple[str, ...]
    label: str | int | tuple[Part, ...] | None = None
    split: Split | None = None
    modality: str | None = None
    tags: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def masks(self) -> tuple[str, ...]:
        """Paths of the mask's files."""
        if isinstance(self.label, tuple):
            return tuple(part.path for part in self.label)
        return (self.label,) if isinstance(self.label, str) else ()


@dataclass
class Layout:
    """What a folder holds.

    Attributes:
        kind: name of the layout, for people.
        items: its cases.
        labels: label value -> name, as far as the layout says.
        modality: channel -> name, as far as the layout says.
        task: what the layout is for; None where it does not say.
        bad: cases that cannot be used.
        left_out: path of a file that is no case -> why it is not.
        unlabelled: path of a case's first image -> why it has no label, where more is known than that none was found.
        tables: paths of the tables and manifests that it is read from.
        heap: other files of the folder may be DICOM.
    """

    kind: str
    items: list[Item] = field(default_factory=list)
    labels: dict[int, str] = field(default_factory=dict)
    modality: dict[str, str] = field(default_factory=dict)
    task: str | None = None
    bad: list[Quarantined] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    unlabelled: dict[str, str] = field(default_factory=dict)
    tables: list[str] = field(default_factory=list)
    heap: bool = False


def patient_of(path: str, default: str) -> str:
    """Return the patient whom a path names by BIDS, TCGA, BraTS or a folder such as patient012, else ``default``."""
    for pattern in _PATIENT_PATTERNS:
        found = re.search(pattern, path)
        if found:
            return found[1]
    return default


def name_of(path: str) -> str:
    """Return the name of a case by its image's path."""
    return stem(Path(path.replace("/", "_"))) if path.count("/") != 1 else stem(Path(path))


def unique(items: list[Item]) -> list[Item]:
    """Return items whose names differ; a name given twice takes its folder along."""
    counts = Counter(item.name for item in items)
    seen: Counter[str] = Counter()
    named = []
    for item in items:
        if counts[item.name] > 1:
            longer = stem(Path(item.images[0].replace("/", "_")))
            seen[longer] += 1
            name = longer if seen[longer] == 1 else f"{longer}-{seen[longer]}"
            patient = name if item.patient == item.name else item.patient
            named.append(replace(item, name=name, patient=patient))
        else:
            named.append(item)
    return named
