"""The cases of a folder, by its layout."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path

from oncofed.data.images import stem
from oncofed.data.layouts.kinds import LayoutKind
from oncofed.data.manifest import Quarantined, Split
from oncofed.data.targets import DatasetTarget, TargetValue

_PATIENT_PATTERNS = (
    r"(?:^|/)(sub-[A-Za-z0-9]+)",
    r"(TCGA-[A-Z0-9]{2}-[A-Z0-9]{4})",
    r"(BraTS-[A-Za-z]+(?:-[A-Za-z]+)?-\d{4,5})(?=-\d)",  # followed by the number of the scan
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
    """A file of a composed or renumbered mask.

    Attributes:
        path: inside the folder.
        value: label value of every voxel that is not zero; None: by ``values``.
        values: value in the file -> label value; others keep their number.
        name: of its content, for messages.
    """

    path: str
    value: int | None = None
    values: tuple[tuple[int, int], ...] = ()
    name: str = ""


@dataclass(frozen=True)
class Item:
    """One case of a layout.

    Attributes:
        name: unique in the dataset.
        patient: as the source names it; hashed before it is written anywhere. Empty: the case is a separate patient.
        images: paths inside the folder, one per channel.
        label: path of a mask inside the folder, the files that a mask is composed of, or number of a class.
        split: if the layout states it.
        modality: if the layout states it.
        tags: other columns of a table.
        notes: observations of the layout, for people.
        targets: that a table or manifest states.
        looked_for: names of the mask's classes that were looked for; None: not stated.
        features: path of a slide's features inside the folder.
        unread: target -> why what a table says of it is not used; "": the same of its row.
    """

    name: str
    patient: str
    images: tuple[str, ...]
    label: str | int | tuple[Part, ...] | None = None
    split: Split | None = None
    modality: str | None = None
    tags: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    targets: Mapping[str, TargetValue] = field(default_factory=dict)
    looked_for: tuple[str, ...] | None = None
    features: str | None = None
    unread: Mapping[str, str] = field(default_factory=dict)

    @property
    def masks(self) -> tuple[str, ...]:
        """Paths of the mask's files."""
        if isinstance(self.label, tuple):
            return tuple(part.path for part in self.label)
        return (self.label,) if isinstance(self.label, str) else ()


@dataclass
class FolderLayout:
    """A folder's cases, by its layout.

    Attributes:
        kind: the layout.
        items: its cases.
        labels: label value -> name, as far as stated by the layout.
        modality: channel -> name, as far as stated by the layout.
        task: type of task that the layout is for; None: not stated.
        bad: cases that cannot be used.
        left_out: path of a file that belongs to no case -> reason.
        unlabelled: path of a case's first image -> why it has no label, if that is known.
        tables: paths of the tables and manifests that were read.
        remarks: observations on the whole folder, for people.
        targets: name -> declaration, of targets that cases state.
    """

    kind: LayoutKind
    items: list[Item] = field(default_factory=list)
    labels: dict[int, str] = field(default_factory=dict)
    modality: dict[str, str] = field(default_factory=dict)
    task: str | None = None
    bad: list[Quarantined] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    unlabelled: dict[str, str] = field(default_factory=dict)
    tables: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    targets: Mapping[str, DatasetTarget] = field(default_factory=dict)


def patient_of(path: str, default: str = "") -> str:
    """Return the patient that a path names, else ``default``.

    By BIDS, TCGA, BraTS or a folder such as patient012.
    """
    for pattern in _PATIENT_PATTERNS:
        found = re.search(pattern, path)
        if found:
            return found[1]
    return default


def name_of(path: str) -> str:
    """Return a case's name from its image's path."""
    return stem(Path(path.replace("/", "_"))) if path.count("/") != 1 else stem(Path(path))


def unique(items: Sequence[Item]) -> list[Item]:
    """Return items with distinct names.

    Duplicate names get their folder added; an item without a patient gets its name as patient.
    """
    names = distinct_names([(item.name, _longer(item.images[0])) for item in items])
    return [replace(item, name=name, patient=item.patient or name) for item, name in zip(items, names, strict=True)]


def with_distinct_cases(layout: FolderLayout) -> FolderLayout:
    """Return a layout with distinct names of cases.

    Including cases that cannot be used.
    """
    layout.items = unique(layout.items)
    taken = {item.name for item in layout.items}
    bad = []
    for case in layout.bad:
        name = case.name
        if name in taken and case.source:
            name = first_free(_longer(case.source), taken)
        taken.add(name)
        bad.append(case.model_copy(update={"name": name}))
    layout.bad = bad
    return layout


def distinct_names(names: Sequence[tuple[str, str]]) -> list[str]:
    """Return a distinct name for each (name, longer name).

    The first if it is unique, else the longer one, numbered.
    """
    counts = Counter(name for name, _ in names)
    taken = {name for name, times in counts.items() if times == 1}
    found = []
    for name, longer in names:
        chosen = name if counts[name] == 1 else first_free(longer, taken)
        taken.add(chosen)
        found.append(chosen)
    return found


def first_free(name: str, taken: Collection[str]) -> str:
    """Return a free name: itself, or with a number behind."""
    numbered = (f"{name}-{number}" for number in count(2))
    return name if name not in taken else next(candidate for candidate in numbered if candidate not in taken)


def _longer(path: str) -> str:
    return stem(Path(path.replace("/", "_")))
