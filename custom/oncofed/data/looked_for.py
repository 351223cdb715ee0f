"""What was looked for in masks, and which label values they therefore tell apart.

A class was looked for, or a region of several. Two label values are told apart where one of what was looked for has one
of them and not the other: where a whole tumour alone was drawn, nobody knows which part of it is its core, but that
nothing around it is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from oncofed.data.label_names import IGNORED, OVERLAP, name_key
from oncofed.data.manifest import Manifest
from oncofed.errors import DataError


@dataclass(frozen=True)
class Sought:
    """What one name stands for.

    Attributes:
        key: the name, for comparison.
        values: of the job, a class's or a region's; empty for background.
    """

    key: str
    values: frozenset[int]


def named(
    manifest: Manifest,
    classes: Mapping[int, str],
    regions: Mapping[str, Sequence[int]],
    values: Mapping[int, int] | None,
) -> list[Sought]:
    """Return what a dataset's labels name.

    Args:
        manifest: of the dataset.
        classes: of the job, label value -> name.
        regions: of the job, name -> label values.
        values: the dataset's label value -> the job's, 0 being background; None: they are the same.
    """
    of_regions = {name_key(name): frozenset(of) for name, of in regions.items()}
    mapping = {name_key(name): target for name, target in manifest.label_map.items()}
    known = set(map(name_key, classes.values()))
    found: list[Sought] = []
    for text, name in manifest.labels.items():
        value = int(float(text))
        own = value if values is None else values.get(value, 0)
        target = mapping.get(name_key(name), name) or ""
        parts = [of_regions.get(name_key(part)) for part in target.split(OVERLAP)]
        if value == 0:
            continue
        if own == 0 or classes.get(own) == IGNORED:
            found.append(Sought(name_key(name), frozenset()))
        elif name_key(target) in known or None in parts:
            found.append(Sought(name_key(name), frozenset({own})))
        else:
            words = name.split(OVERLAP)
            words = words if len(words) == len(parts) else [name] * len(parts)
            found += [Sought(name_key(word), part) for word, part in zip(words, parts, strict=True) if part]
    return found


def stated(
    names: Sequence[str], of_dataset: Sequence[Sought], manifest: Manifest, regions: Mapping[str, Sequence[int]]
) -> set[frozenset[int]]:
    """Return what a case states that was looked for.

    A class that several of the dataset's labels stand for was looked for where all of them were.

    Args:
        names: of the case: the dataset's, or of the job's regions.
        of_dataset: what the dataset names.
        manifest: of the dataset.
        regions: of the job, name -> label values.

    Raises:
        DataError: neither the dataset nor a region of the job has such a name.
    """
    own = {sought.key for sought in of_dataset}
    of_regions = {name_key(name): frozenset(of) for name, of in regions.items()}
    joined = {name_key(name): [name_key(part) for part in name.split(OVERLAP)] for name in manifest.labels.values()}
    strange = sorted(name for name in names if name_key(name) not in {*own, *joined, *of_regions})
    if strange:
        known = {name for value, name in manifest.labels.items() if int(float(value)) != 0} | set(regions)
        raise DataError(
            f"looked_for names {', '.join(strange)}, which no label of the dataset is called: known are "
            f"{', '.join(sorted(known)) or 'none'}"
        )
    keys = set(map(name_key, names))
    keys |= {part for key in keys for part in joined.get(key, ())}
    missed = {sought.values for sought in of_dataset if sought.key not in keys}
    return ({sought.values for sought in of_dataset} - missed) | {
        of_regions[key] for key in keys & of_regions.keys() - own
    }


def alike_by(sought: Iterable[Collection[int]], label_values: int) -> tuple[int, ...] | None:
    """Return for each label value the least that it is not told from; None: all are told apart.

    Args:
        sought: label values of each class and region that was looked for.
        label_values: number of them, with background.
    """
    found: dict[tuple[bool, ...], int] = {}
    sets = [set(values) for values in sought]
    values = tuple(range(label_values))
    least = tuple(found.setdefault(tuple(value in one for one in sets), value) for value in values)
    return None if least == values else least


def tells(alike: Sequence[int] | None, values: Collection[int]) -> bool:
    """Return whether a mask says of each voxel whether it is of a class or region.

    Args:
        alike: of the mask, see ``alike_by``.
        values: label values of the class or region.
    """
    if alike is None:
        return True
    inside = {alike[value] for value in values}
    return not any(least in inside for value, least in enumerate(alike) if value not in values)


def named_regions(manifest: Manifest, regions: Mapping[str, Sequence[int]]) -> dict[str, Sequence[int]]:
    """Return those of a job's regions that a dataset's labels name."""
    mapping = {name_key(name): target for name, target in manifest.label_map.items()}
    targets = [mapping.get(name_key(name), name) or "" for name in manifest.labels.values()]
    keys = {name_key(part) for target in targets for part in target.split(OVERLAP)}
    return {name: values for name, values in regions.items() if name_key(name) in keys}
