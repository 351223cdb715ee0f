"""Name and renumber mask values as their files state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from oncofed.data.label_names import name_key
from oncofed.data.layouts.base import FolderLayout, Item, Part
from oncofed.data.layouts.value_names import NamingFiles, ValueNames, in_file
from oncofed.data.manifest import Quarantined

_BY_USER = "its mask does not name its values: they are what --labels says"


def with_meaning(root: Path, files: Sequence[str], layout: FolderLayout, names: Mapping[int, str]) -> FolderLayout:
    """Return a layout with labels named by its masks' files.

    Args:
        root: the folder.
        files: all of it.
        layout: by names and places.
        names: label value -> name, if the user states it; takes precedence if all files agree on the numbers.
    """
    beside = NamingFiles(root, files)
    names_of = _stated_names(root, layout, beside)
    found = {path: values for path, values in names_of.items() if values}
    if not found:
        return layout
    layout.tables += sorted(beside.used - set(layout.tables))
    target = _numbering(found.values(), {**layout.labels, **names})
    agree = all(target.get(name_key(name)) == value for each in found.values() for value, name in each.names.items())
    spoken_for = bool(set(names) - {0})
    if spoken_for and not agree and _consistent(found.values()):
        target, agree = _numbering(found.values(), {}), True  # the user's names differ from the files'
    unknown = set() if not spoken_for or agree else set(target) - {name_key(name) for name in names.values()}
    kept = []
    for item in layout.items:
        label, reason = _renumbered(item, names_of, target, unknown, spoken_for, agree)
        if reason:
            layout.bad.append(Quarantined(name=item.name, reason=reason, source=item.images[0]))
            layout.left_out |= dict.fromkeys(item.masks, "mask of an image that is set aside for it")
        else:
            by_user = spoken_for and not agree and isinstance(label, str) and names_of.get(label) is None
            kept.append(replace(item, label=label, notes=(*item.notes, *([_BY_USER] if by_user else ()))))
    layout.items = kept
    if not spoken_for:
        written = {name_key(name): name for each in found.values() for name in each.names.values()}
        layout.labels = {0: "background"} | {v: n for v, n in layout.labels.items() if v}
        layout.labels |= {value: written[key] for key, value in target.items() if value not in layout.labels}
    return layout


def _stated_names(root: Path, layout: FolderLayout, beside: NamingFiles) -> dict[str, ValueNames | None]:
    """Return mask -> names in it or a nearby file."""
    masks = [item.label for item in layout.items if isinstance(item.label, str)]
    return {mask: in_file(root / mask) or beside.find(mask) for mask in masks}


def _numbering(found: Iterable[ValueNames], given: Mapping[int, str]) -> dict[str, int]:
    """Return name -> label value.

    As given, else as numbered by the files if they agree, else alphabetical.
    """
    target = {name_key(name): value for value, name in given.items() if value}
    each = list(found)
    new = {name_key(name) for values in each for name in values.names.values()} - set(target)
    if not target and _consistent(each):
        return {name_key(name): value for values in each for value, name in values.names.items()}
    free = (number for number in range(1, 1 << 16) if number not in target.values())
    return target | {name: next(free) for name in sorted(new)}


def _consistent(found: Iterable[ValueNames]) -> bool:
    by_value: dict[int, str] = {}
    by_name: dict[str, int] = {}
    return all(
        by_value.setdefault(value, name_key(name)) == name_key(name)
        and by_name.setdefault(name_key(name), value) == value
        for values in found
        for value, name in values.names.items()
    )


def _renumbered(
    item: Item,
    said: Mapping[str, ValueNames | None],
    target: Mapping[str, int],
    unknown: set[str],
    spoken_for: bool,
    agree: bool,
) -> tuple[str | int | tuple[Part, ...] | None, str]:
    """Return an item's label renumbered, or why that fails."""
    if not isinstance(item.label, str):
        return item.label, ""
    values = said.get(item.label)
    if values is None:
        if spoken_for:
            return item.label, ""
        return None, (
            "its mask does not name its values, as other masks of the folder do. Name them in its file, or say what "
            "they are where a file does not: --labels 1=NAME,2=NAME, with the names that the other masks give"
        )
    if values.overlapping:
        return None, (
            f"its segments overlap ({', '.join(values.overlapping[:4])} in a layer of their own): no task "
            "learns overlapping classes yet. Export those that the job learns as a label map "
            "(Slicer: Export visible segments to labelmap)"
        )
    if spoken_for and agree:
        return item.label, ""
    if unknown & {name_key(name) for name in values.names.values()}:
        return None, (
            f"its mask names its values {', '.join(sorted(values.names.values()))}, other masks give these names to "
            "other values, and --labels names neither: name them as the files do"
        )
    change = {value: target[name_key(name)] for value, name in values.names.items()}
    if all(value == to for value, to in change.items()):
        return item.label, ""
    return (Part(item.label, values=tuple(sorted(change.items()))),), ""
