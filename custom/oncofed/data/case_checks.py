"""Whether a case can be used by a job."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from oncofed.data import boxes, case_facts
from oncofed.data.case import Case
from oncofed.data.covariates import row_faults
from oncofed.data.grouping import millimetres
from oncofed.data.manifest import (
    Entry,
)
from oncofed.data.masks import value_name
from oncofed.data.spec import DataSpec
from oncofed.errors import DataError


@dataclass(frozen=True)
class Problem:
    """Why one case cannot be used, or, of one with targets beside it, its mask alone."""

    case: str
    what: str
    of_mask: bool = False

    def __str__(self) -> str:
        return f"{self.case}: {self.what}"


def check_cases(
    cases: Iterable[Case],
    classes: Sequence[int],
    data: DataSpec | None = None,
    workers: int = 4,
    progress: Callable[[], None] | None = None,
    known: dict[Case, Entry] | None = None,
) -> list[Problem]:
    """Return the problems of all cases.

    Files that are as they were when the dataset was registered are not read again.

    Args:
        cases: the cases to check.
        classes: label values that the job learns; 0 is background.
        data: the job's contract; None: a volume of one channel.
        workers: files read at the same time.
        progress: called after each case.
        known: takes the facts of each case.
    """

    def check(case: Case) -> Problem | None:
        problem = check_case(case, classes, data, known)
        if progress:
            progress()
        return problem

    with ThreadPoolExecutor(workers) as pool:
        return [problem for problem in pool.map(check, cases) if problem]


def check_case(
    case: Case, classes: Sequence[int], data: DataSpec | None = None, known: dict[Case, Entry] | None = None
) -> Problem | None:
    """Return why ``case`` cannot be used, or None; see ``check_cases``."""
    try:
        entry = known_facts(case)
        if known is not None:
            known[case] = entry
    except Exception as error:  # noqa: BLE001 - one case that cannot be read does not keep the others from training
        return Problem(case.name, case_facts.reason_of(error))
    data = data or DataSpec(dataset="any")
    found = [*contract_faults(entry, data), *row_faults(entry, data.covariates)]
    found += case_facts.image_faults(entry)
    of_mask = [case.mask_fault] if case.mask_fault else []
    of_mask += case_facts.mask_faults(entry, case.may_be_empty)
    found += [case.target_fault] if case.target_fault else []
    if case.boxes is not None:
        fault = boxes.fault(case.boxes, entry.shape or [], dict(case.label_values or ((c, c) for c in classes)))
        found += [fault] if fault else []
    elif (classes or not case.targets) and not entry.label_problem:
        of_mask += label_faults(case, entry, classes)
    if of_mask and not found and case.has_targets:
        return Problem(case.name, f"{'; '.join(of_mask)}. Its targets are used without the mask", of_mask=True)
    found += of_mask
    return Problem(case.name, "; ".join(found)) if found else None


def known_facts(case: Case) -> Entry:
    """Return the facts of a case.

    They are read again only where its files have changed since it was registered.

    Raises:
        DataError: a file cannot be read.
    """
    files = case.files
    entry = case.entry
    if (
        entry
        and entry.stamp
        and entry.is_read
        and all(f.exists() for f in files)
        and entry.stamp == case_facts.stamp(files)
    ):
        return entry
    if case.features:
        raise DataError("its features are missing or have changed; register the dataset again")
    if case.tiles:
        raise DataError("its slide is missing or has changed since it was registered; register the dataset again")
    mask = case.label if isinstance(case.label, Path) else None
    image, label = case_facts.read_case(case.images, mask, *case.reading)
    found = case_facts.measure(image, label)
    base = entry or Entry(image=case.image.name)
    return base.model_copy(update={"label_problem": None, **found})


def contract_faults(entry: Entry, data: DataSpec) -> list[str]:
    """Return why an image does not meet a job's contract."""
    if entry.features:
        return []  # which the encoder's job decides (``FeatureFacts``)
    shape = entry.shape or []
    found = []
    if len(shape) != data.dimensions:
        kinds = {2: "a flat image", 3: "a volume"}
        found.append(
            f"its image is {kinds.get(len(shape), f'of {len(shape)} axes')}, expected {kinds[data.dimensions]}"
        )
    elif not channels_fit(entry.channels or 1, data):
        found.append(
            f"its image has {entry.channels} channels, expected {len(data.channels)}: {', '.join(data.channels)}"
        )
    if data.size_range and shape and not data.size_range[0] <= min(shape) <= max(shape) <= data.size_range[1]:
        found.append(f"its image has {'x'.join(map(str, shape))} voxels, expected {_between(data.size_range)} a side")
    if data.spacing_range and entry.spacing is None:
        found.append(f"its image does not say how large its pixels are, expected {_between(data.spacing_range)} mm")
    elif data.spacing_range and entry.spacing:
        low, high = data.spacing_range
        if not low - 1e-6 <= min(entry.spacing) <= max(entry.spacing) <= high + 1e-6:
            sides = " x ".join(map(millimetres, entry.spacing))
            found.append(f"its voxels are {sides} mm, expected {_between(data.spacing_range)} mm a side")
    if data.spacing and not entry.spacing:
        found.append("its image does not say how large its pixels are, so that it cannot be resampled")
    return found


def channels_fit(channels: int, data: DataSpec) -> bool:
    """Return whether an image has the job's channels.

    A flat image's grey and colour can become each other.
    """
    wanted = len(data.channels)
    return channels == wanted or (data.dimensions == 2 and {channels, wanted} == {1, 3})


def label_faults(case: Case, entry: Entry, classes: Sequence[int]) -> list[str]:
    """Return the faults of a label with unknown values."""
    if case.instances or entry.label_values is None or isinstance(case.label, int):
        return []
    known = dict(case.label_values) if case.label_values is not None else {value: value for value in classes}
    extra = [value_name(v) for v in sorted(case_facts.label_counts(entry.label_values)) if v not in {0, *known}]
    if not extra:
        return []
    expected = ", ".join(map(value_name, sorted({0, *known})))
    return [f"its label holds the values {', '.join(extra[:5])}, expected only {expected}"]


def _between(pair: tuple[float, float]) -> str:
    return f"{pair[0]:g} to {pair[1]:g}"
