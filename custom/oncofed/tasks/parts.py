"""Means of a job's targets, made of what may be told of each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from oncofed.suppression import LEAST_PATIENTS, Group, are_told_beside, withheld_counts, withheld_groups


@dataclass(frozen=True)
class Part:
    """A target whose figure is one of those that make a task's mean.

    Attributes:
        members: those with a figure each; empty: the target has one alone.
        has_own_figure: the target's is made patient by patient; else it is the mean of its members'.
    """

    members: Sequence[str] = ()
    has_own_figure: bool = False


# By target.
Parts = Mapping[str, Part]
NO_PARTS: Parts = MappingProxyType({})


@dataclass(frozen=True)
class ToldParts:
    """What may be told of a mean's parts.

    Attributes:
        by_class: figures of members and of targets.
        patients: number behind each; of a mean of members, the fewest behind one of them.
        mean: of the targets' figures; None without any.
        fewest: patients behind a part of the mean; zero without any.
        is_whole: nothing was left out.
    """

    by_class: dict[str, float]
    patients: dict[str, int]
    mean: float | None
    fewest: int
    is_whole: bool


def mixed_targets(parts: Parts, behind: Mapping[str, Group]) -> set[str]:
    """Return the targets whose own figure, beside those of their members, would tell of one to four patients.

    Args:
        parts: of the mean.
        behind: patients behind each figure, by target or by ``TARGET.MEMBER``.
    """
    found = set()
    for target, part in parts.items():
        members = {name: set(behind.get(f"{target}.{name}", ())) for name in part.members}
        if part.has_own_figure and withheld_groups(members, LEAST_PATIENTS, set(behind.get(target, ()))):
            found.add(target)
    return found


def told_parts(
    parts: Parts, by_class: Mapping[str, float], patients: Mapping[str, int], everybody: int, least: int
) -> ToldParts:
    """Return the figures that enough patients are behind, and means of those alone.

    A mean of other figures, too, would give one away to whoever knows the rest. So would a figure of a target's own,
    which is of all its members: it is told where each of them is.

    Args:
        parts: of the mean.
        by_class: figures by target, or by ``TARGET.MEMBER``.
        patients: number behind each figure.
        everybody: number of all patients; a part that one to a few of them lack is left out, too.
        least: fewest patients.
    """
    told: dict[str, float] = {}
    behind: dict[str, int] = {}
    targets, hidden = [], 0
    for target, part in parts.items():
        names = [f"{target}.{member}" for member in part.members] or [target]
        counts = {name: patients.get(name, 0) for name in names if name in by_class}
        withheld = withheld_counts(counts, everybody, least)
        hidden += len(withheld)
        kept = [name for name in counts if name not in withheld]
        told |= {name: by_class[name] for name in kept}
        behind |= {name: counts[name] for name in kept}
        if part.has_own_figure:
            own = {target: patients.get(target, 0)} if target in by_class else {}
            hidden_own = withheld_counts(own, everybody, least)
            hidden += len(hidden_own)
            # What a site made for anybody it made knowing who is in which; a stricter policy knows numbers alone.
            unsure = least > LEAST_PATIENTS and not are_told_beside(counts, patients.get(target, 0), least)
            if not own or hidden_own or withheld or unsure:
                hidden += bool(unsure)
                continue
        if kept:
            targets.append(target)
            told[target] = by_class[target] if part.has_own_figure else sum(told[name] for name in kept) / len(kept)
            behind[target] = patients[target] if part.has_own_figure else min(counts[name] for name in kept)
    mean = sum(told[target] for target in targets) / len(targets) if targets else None
    return ToldParts(told, behind, mean, min((behind[target] for target in targets), default=0), not hidden)


@dataclass(frozen=True)
class ComparableMeans:
    """Means of several models over the same parts.

    Attributes:
        targets: in each mean, in their order.
        means: model -> mean; empty without any target that all have a figure of.
        whole: models of whose figures none was left out.
    """

    targets: list[str]
    means: dict[str, float]
    whole: set[str]


def comparable_means(parts: Parts, of_models: Mapping[str, Mapping[str, float]]) -> ComparableMeans:
    """Return each model's mean over the targets, and members, that all models with figures have one of.

    Means of other parts compare nothing: the difference would be that of the parts.

    Args:
        parts: of the mean.
        of_models: model -> figures by target, or by ``TARGET.MEMBER``.
    """
    known = {m: {n for n, value in of.items() if not math.isnan(value)} for m, of in of_models.items() if of}
    common = set.intersection(*known.values()) if known else set()
    names: dict[str, list[str]] = {}
    for target, part in parts.items():
        members = [] if part.has_own_figure else [f"{target}.{member}" for member in part.members]
        if kept := [name for name in members or [target] if name in common]:
            names[target] = kept
    figures = {m: [sum(of[n] for n in own) / len(own) for own in names.values()] for m, of in of_models.items() if of}
    return ComparableMeans(
        list(names),
        {model: sum(values) / len(values) for model, values in figures.items() if values},
        {model for model, found in known.items() if found <= common},
    )
