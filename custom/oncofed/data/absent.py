"""Classes that a few labelled images lack and most have.

They may have been forgotten there, or have another name.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from oncofed.data import case_facts
from oncofed.data.decisions import name_of
from oncofed.data.grouping import named
from oncofed.data.manifest import Entry, Manifest
from oncofed.data.masks import value_name

_FEWEST_LABELLED = 3
_FEW = 2  # few in a dataset of any size
_FEW_SHARE = 0.2
_MOST_SHARE = 0.5


@dataclass(frozen=True)
class Absence:
    """A class that a few labelled images lack.

    Attributes:
        what: the class in words.
        cases: names of the images that lack it.
        labelled: how many images have a mask.
    """

    what: str
    cases: tuple[str, ...]
    labelled: int

    @property
    def note(self) -> str:
        """On an image that lacks it."""
        return f"it has no {self.what}, which {self.labelled - len(self.cases)} of {self.labelled} labelled images have"

    @property
    def remark(self) -> str:
        """On the dataset."""
        return (
            f"{len(self.cases)} of {self.labelled} labelled images have no {self.what}: {named(self.cases)}. Where it "
            "was forgotten or is called by another name there, draw or rename it, and register again"
        )


def absences(manifest: Manifest) -> Iterator[Absence]:
    """Yield classes that most masks show and few lack.

    At least half of the masks show them. They come in the order of label values; values whose names differ only in
    case and surrounding spaces are one class.
    """
    if manifest.label_kind == "instances":
        return
    masked = [entry for entry in manifest.entries if isinstance(entry.label, str) and _is_drawn(entry)]
    if len(masked) < _FEWEST_LABELLED:
        return
    values = {name_of(entry): _values(entry) for entry in masked}
    found = {value for shown in values.values() for value in shown}
    classes: dict[str, set[int]] = defaultdict(set)
    for value in sorted(found):
        classes[_in_words(manifest, value).casefold()].add(value)
    for alike in classes.values():
        without = tuple(case for case, shown in values.items() if not alike & shown)
        is_rare = len(without) <= _FEW or len(without) < _FEW_SHARE * len(masked)
        if without and is_rare and len(masked) - len(without) >= _MOST_SHARE * len(masked):
            yield Absence(_in_words(manifest, min(alike)), without, len(masked))


def _is_drawn(entry: Entry) -> bool:
    """Return whether a mask was read and shows something; an empty one is a finding of its own."""
    return entry.label_values is not None and (bool(entry.tiles) or not case_facts.is_empty(entry))


def _values(entry: Entry) -> set[int]:
    counts = case_facts.label_counts(entry.label_values or {})
    # A slide's values are counted in tiles: 0 is of a class that is smaller than a tile.
    return {value for value, count in counts.items() if value and (count or entry.tiles)}


def _in_words(manifest: Manifest, value: int) -> str:
    name = manifest.labels.get(str(value), "").strip()
    return name if name and name != str(value) else f"label value {value_name(value)}"
