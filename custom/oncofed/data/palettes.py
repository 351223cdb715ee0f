"""Check that palette numbers mean the same in all files."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from oncofed.data.manifest import Entry
from oncofed.data.masks import value_of


def one_palette(entries: Sequence[Entry]) -> list[Entry]:
    """Return entries whose label values share one meaning.

    If each palette number has the same colour in all files, the number is the class. Programs that build a palette from
    the colours present number them differently in each file; then all such masks are read by their colours.
    """
    colours: dict[str, set[str]] = defaultdict(set)
    for entry in entries:
        for number, colour in (entry.label_colours or {}).items():
            colours[number].add(colour)
    if all(len(found) == 1 for found in colours.values()) and not any(entry.label_by_colour for entry in entries):
        return list(entries)
    return [_by_colour(entry) if entry.label_colours and not entry.label_by_colour else entry for entry in entries]


def own_colours(entries: Sequence[Entry]) -> bool:
    """Return whether palettes rarely share colours.

    That is so if each object got a random colour. Classes have the same colours in every file, even if numbered
    differently.
    """
    files = Counter(
        colour
        for entry in entries
        for number, colour in (entry.label_colours or {}).items()
        if int(number) and not entry.label_by_colour
    )
    return bool(files) and sum(count == 1 for count in files.values()) > len(files) / 2


def _by_colour(entry: Entry) -> Entry:
    counts: dict[str, int] = defaultdict(int)
    colours = entry.label_colours or {}
    for number, count in (entry.label_values or {}).items():
        value = value_of(colours.get(number, number))
        counts[number if value is None else str(value)] += count
    objects = sum(int(value) != 0 for value in counts)
    note = "its label is read by the palette's colours: its numbers differ in meaning between files"
    changed = {"label_values": dict(counts), "instances": objects, "label_by_colour": True}
    return entry.model_copy(update={**changed, "notes": [*entry.notes, note]})
