"""Choose cases for review: suspicious ones, then a spread."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from oncofed.data.case import Case, case_of
from oncofed.data.contract import with_facts
from oncofed.data.decisions import decided
from oncofed.data.manifest import Entry, Manifest, Split, read_manifest
from oncofed.data.placement import Placement, measure_placement
from oncofed.data.sample import sample_cases
from oncofed.data.suspicions import FINDING, Suspicion, by_facts, by_pixels, joined, remarks, score
from oncofed.data.workers import BROKE_ITS_READER, Workers
from oncofed.errors import DataError

# Limit of voxels, over all cases, that are compared with labels: some minutes on one core.
_MOST_VOXELS = 6_000_000_000
# Numbers of cases from which starting processes pays; large cases take longer than the start.
_LARGE, _FEW_LARGE, _MANY_SMALL = 300_000_000, 8, 200
# At least one in this many pictures shows an unsuspicious case, for comparison.
_USUAL_AMONG = 6

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Seen:
    """A case, and the reasons to review it."""

    split: Split
    entry: Entry
    reasons: tuple[Suspicion, ...]

    @property
    def name(self) -> str:
        """The case's."""
        return self.entry.name or self.entry.images[0]

    @property
    def suspicious(self) -> bool:
        """It has a reason beyond remarks."""
        return any(reason.weight > 0 for reason in self.reasons)


@dataclass(frozen=True)
class Look:
    """The cases to review.

    Attributes:
        manifest: with every fact.
        shown: the cases to show: the worst first, then others for comparison.
        worst: how many of them are the worst.
        suspicious: every suspicious case, worst first.
        remarks: oddities that most cases share.
        examined: cases whose pixels were compared with their label.
        masked: cases that have a mask on their image.
    """

    manifest: Manifest
    shown: tuple[Seen, ...]
    worst: int
    suspicious: tuple[Seen, ...]
    remarks: tuple[str, ...]
    examined: int
    masked: int


def look(
    folder: Path,
    most: int = 24,
    examine: int = 300,
    seed: int = 0,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Look:
    """Compare labels with images, and choose cases to show.

    Findings of registering are weighed for all cases; pixels are read of at most ``examine``, fewer if they are large.

    Args:
        folder: the dataset's.
        most: cases to show.
        examine: cases whose pixels are compared with their label.
        seed: of the samples.
        workers: processes that read; None: one a core.
        progress: called with (step, number done, number in all).

    Raises:
        DataError: there is no dataset in ``folder``, or no case of it can be read.
    """
    progress = progress or (lambda what, done, total: None)
    manifest = with_facts(folder, decided(read_manifest(folder)))
    cases = [(split, entry) for split, entry in manifest.by_split() if entry.is_read]
    if not cases:
        raise DataError(f"{folder}: none of its {len(manifest.entries)} cases can be read. See: oncofed data check")
    masked = [entry for _, entry in cases if isinstance(entry.label, str) and not entry.tiles]
    known = by_facts(manifest)
    order = sorted((e for e in masked if score(known.get(_name(e), ())) > 0), key=lambda e: -score(known[_name(e)]))
    rest = [entry for entry in masked if score(known.get(_name(entry), ())) == 0]
    placements = _measure(folder, manifest, _examined(order, rest, examine, seed), workers, progress)
    found = joined(known, by_pixels(manifest, placements))
    seen = [Seen(split, entry, found.get(_name(entry), ())) for split, entry in cases]
    suspicious = sorted((s for s in seen if s.suspicious), key=lambda s: (-score(s.reasons), s.name))
    shown, worst = _shown(seen, suspicious, most, seed)
    return Look(
        manifest,
        shown,
        worst,
        tuple(suspicious),
        tuple(remarks(manifest, placements)),
        len(placements),
        len(masked),
    )


def _examined(suspicious: Sequence[Entry], rest: Sequence[Entry], most: int, seed: int) -> list[Entry]:
    """Return the cases whose pixels are read.

    Up to half of them are suspicious, the worst first.
    """
    chosen = _within(suspicious[: -(-most // 2)], _MOST_VOXELS // 2)
    left = _MOST_VOXELS - sum(map(_voxels, chosen))
    room = left * len(rest) // max(sum(map(_voxels, rest)), 1)
    chosen += _spread(rest, min(max(room, 1 - len(chosen)), most - len(chosen)), seed)
    left = _MOST_VOXELS - sum(map(_voxels, chosen))
    taken = set(map(_name, chosen))
    further = [entry for entry in suspicious if _name(entry) not in taken]
    return chosen + _within(further[: most - len(chosen)], left)


def _shown(seen: Sequence[Seen], suspicious: Sequence[Seen], most: int, seed: int) -> tuple[tuple[Seen, ...], int]:
    """Return the cases to show, and the number of worst.

    The worst come first, then unsuspicious ones.
    """
    clean = [s for s in seen if not s.suspicious] or [s for s in seen if score(s.reasons) <= FINDING]
    room = max(most // _USUAL_AMONG, most - len(suspicious))
    usual = {_name(entry) for entry in _spread([s.entry for s in clean], room, seed)}
    others = [s for s in clean if s.name in usual]
    worst = [s for s in suspicious if s.name not in usual][: most - len(others)]
    return (*worst, *others), len(worst)


def _measure(
    folder: Path, manifest: Manifest, entries: Sequence[Entry], workers: int | None, progress: Progress
) -> list[Placement]:
    cases = [replace(case_of(folder, manifest, entry), name=_name(entry)) for entry in entries]
    placements = []
    fewest = _FEW_LARGE if sum(map(_voxels, entries)) > _LARGE else _MANY_SMALL
    with Workers(workers) as pool:
        for placement in pool.map(measure_placement, cases, fewest, _broke):
            placements.append(placement)
            progress("comparing labels with images", len(placements), len(cases))
    by_name = {placement.name: placement for placement in placements}
    return [by_name[case.name] for case in cases]


def _broke(case: Case) -> Placement:
    return Placement(case.name, problem=BROKE_ITS_READER)


def _within(entries: Sequence[Entry], voxels: int) -> list[Entry]:
    """Return the first entries up to a number of voxels."""
    sizes = itertools.accumulate(map(_voxels, entries))
    return [entry for entry, size in zip(entries, sizes, strict=True) if size <= voxels]


def _voxels(entry: Entry) -> int:
    return math.prod(entry.shape or [1]) * (entry.channels or 1)


def _spread(entries: Sequence[Entry], most: int, seed: int) -> list[Entry]:
    """Return at most ``most`` cases, spread over patients and classes."""
    groups: dict[object, int] = {}
    by_case = {
        Case(
            name=_name(entry),
            patient=entry.patient or _name(entry),
            image=Path(entry.images[0]),
            label=groups.setdefault(_classes(entry), len(groups)),
        ): entry
        for entry in entries
    }
    chosen: list[Case] = []
    rest = list(by_case)
    while rest and len(chosen) < most:  # a sample may be too small, as shares are rounded down
        chosen += sample_cases(rest, most - len(chosen), seed) or rest[:1]
        taken = {case.name for case in chosen}
        rest = [case for case in rest if case.name not in taken]
    return [by_case[case] for case in chosen]


def _classes(entry: Entry) -> object:
    if isinstance(entry.label, str):
        return frozenset(value for value, count in (entry.label_values or {}).items() if count and float(value) != 0)
    return entry.label


def _name(entry: Entry) -> str:
    return entry.name or entry.images[0]
