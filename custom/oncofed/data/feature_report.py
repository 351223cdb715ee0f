"""What a dataset's features are, for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from oncofed.data.grouping import counted
from oncofed.data.manifest import Entry, FeatureFacts

_SHOWN = 12  # digits of a digest that tell it from others


@dataclass(frozen=True)
class WantedFeatures:
    """The features that a job takes.

    Attributes:
        encoder: that makes them.
        faults: returns why a slide's features are not those.
    """

    encoder: str
    faults: Callable[[FeatureFacts], Iterable[str]]


@dataclass(frozen=True)
class FeatureSummary:
    """A dataset's features in words.

    Attributes:
        found: encoder, digest of its weights and counts.
        differ: why they cannot be learned together; empty where they can.
    """

    found: str
    differ: str = ""


def misfits(entries: Sequence[Entry], wanted: WantedFeatures) -> str:
    """Return why features are not the job's, with numbers of slides; empty where they are."""
    faults = Counter(fault for entry in entries if entry.features for fault in wanted.faults(entry.features))
    return "; ".join(f"{counted(number, 'slide')}: {fault}" for fault, number in faults.most_common())


def summarise(entries: Sequence[Entry]) -> FeatureSummary | None:
    """Return a dataset's features in words; None where no case brings any."""
    facts = [entry.features for entry in entries if entry.features]
    if not facts:
        return None
    groups: dict[str, list[FeatureFacts]] = {}
    for one in facts:
        groups.setdefault(in_words(one), []).append(one)
    listed = [f"{name}: {counted(len(own), 'slide')}{_tiles(own)}" for name, own in groups.items()]
    without = len(entries) - len(facts)
    listed += [f"{counted(without, 'slide')} without"] * bool(without)
    weights = sorted({one.digest for one in facts if one.digest})
    differ = "features of several encoders, expected one: register one of them with --encoder"
    if len({(one.encoder, one.size, one.level) for one in facts}) == 1:
        differ = "features of several weights of one encoder: extract them again with one" if len(weights) > 1 else ""
    return FeatureSummary("; ".join(listed), differ)


def in_words(facts: FeatureFacts) -> str:
    """Return encoder, digest, size and tiles, such as "uni (weights unknown), 1024 numbers a tile"."""
    weights = f"weights {facts.digest[:_SHOWN]}…" if facts.digest else "weights unknown"
    return f"{facts.encoder} ({weights}), {facts.size:,} numbers a {facts.level}"


def _tiles(facts: Sequence[FeatureFacts]) -> str:
    """Return number, side and resolution of tiles."""
    if facts[0].level == "slide":
        return ""
    sides = sorted({one.tile for one in facts if one.tile})
    mpps = sorted({one.mpp for one in facts if one.mpp})
    shown = f", {sum(one.tiles for one in facts):,} tiles"
    shown += f" of {'/'.join(map(str, sides))} pixels" if sides else ""
    low, high = (f"{mpps[0]:.3g}", f"{mpps[-1]:.3g}") if mpps else ("", "")
    return shown + (f" at {low if low == high else f'{low} to {high}'} µm" if mpps else "")
