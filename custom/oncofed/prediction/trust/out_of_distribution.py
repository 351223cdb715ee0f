"""Detects images outside the training distribution."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from oncofed.artifacts.training_profile import TrainingProfile, TraitRange
from oncofed.data.spec import MODALITY_NAMES, DataSpec
from oncofed.data.traits import CHANNELS, EDGE, MODALITY, Trait, traits

# Tolerance in bins, since a range is only as precise as its bins.
_BINS_BEYOND = 1
_DIRECTIONS = {
    "right": "from left to right",
    "anterior": "from front to back",
    "superior": "from head to foot",
    "down": "from top to bottom",
}
_PERCENTILES = {"low": "0.5th percentile", "median": "median", "high": "99.5th percentile"}


@dataclass(frozen=True)
class Deviation:
    """One trait in which an image deviates from training.

    Attributes:
        feature: name of the trait; see ``data.traits``.
        value: of the image: a number in its unit, or a name.
        range: of the training: lowest and highest number, None where open; or the names that occurred.
        words: description for people.
    """

    feature: str
    value: float | str
    range: tuple[float | None, float | None] | tuple[str, ...]
    words: str


def find_deviations(
    found: Mapping[str, float], modality: str | None, data: DataSpec, profile: TrainingProfile | None
) -> tuple[tuple[Deviation, ...], tuple[str, ...]]:
    """Return deviations from training, and traits without reference.

    The job's own modality, and Hounsfield units of CT, are checked without a profile too.

    Args:
        found: the image's traits; see ``data.traits.traits_of``.
        modality: as registered, such as MR; None: unknown.
        data: the job's data settings.
        profile: training profile; None: unknown.
    """
    reasons, not_known = [], []
    for name, trait in traits(data).items():
        known = profile.traits.get(name) if profile else None
        reason = _of_the_job(trait, found.get(name), modality, data)
        if reason is None and name in found and known and (known.bins or known.names):
            reason = _beyond(trait, found[name], known, data)
        elif reason is None:
            not_known.append(name)
        if reason:
            reasons.append(reason)
    return tuple(reasons), tuple(not_known)


def _of_the_job(trait: Trait, value: float | None, modality: str | None, data: DataSpec) -> Deviation | None:
    """Return a deviation from the job itself."""
    if trait.name == MODALITY and modality:
        everything = {name for names in MODALITY_NAMES.values() for name in names} | {"us", "nm"}
        fitting = MODALITY_NAMES[data.modality]
        if modality.lower() in everything - set(fitting):
            expected = tuple(name.upper() for name in fitting)
            return Deviation(
                MODALITY, modality, expected, f"its modality is {modality}, the model's is {data.modality}"
            )
    if trait.name == "intensity_low" and data.modality == "ct" and value is not None and value >= 0:
        words = f"its darkest values are {_short(value)}: no Hounsfield units, of which air has -1000"
        return Deviation(trait.name, value, (None, 0.0), words)
    return None


def _beyond(trait: Trait, value: float, known: TraitRange, data: DataSpec) -> Deviation | None:
    if known.names is not None:
        name = trait.names[int(value)]
        if name in known.names:
            return None
        return Deviation(trait.name, name, known.names, _named(trait, name, known.names))
    assert known.bins
    assert known.range
    first, last = known.bins
    if first - _BINS_BEYOND <= trait.bin_of(value) <= last + _BINS_BEYOND:
        return None
    # The outermost bins also count values beyond the histogram.
    low = known.range[0] if first > 0 else None
    high = known.range[1] if last < trait.bins - 1 else None
    plain = float(f"{trait.plain(value):.6g}")
    unit = f" {trait.unit}" if trait.unit else ""
    words = f"{_said(trait, _short(plain) + unit, data)}, training had {_between(low, high)}{unit}"
    return Deviation(trait.name, plain, (low, high), words)


def _named(trait: Trait, name: str, names: tuple[str, ...]) -> str:
    had = " or ".join(names)
    if trait.name == CHANNELS:
        return f"it has {name} {'channel' if name == '1' else 'channels'}, training had {had}"
    return f"its modality is {name}, training had {had}"


def _said(trait: Trait, value: str, data: DataSpec) -> str:
    kind, _, of = trait.name.partition("_")
    piece = "voxels" if data.dimensions == 3 else "pixels"
    if kind == "spacing":
        return f"its {piece} are {value} apart {_DIRECTIONS[of]}"
    if kind == "size":
        return f"it has {value} {piece} {_DIRECTIONS[of]}"
    if kind == "intensity":
        return f"the {_PERCENTILES[of]} of its intensities is {value}"
    if kind == "density":
        return f"its stain has a mean optical density of {value} in {of}"
    assert trait.name == EDGE
    return f"its edge has a brightness of {value} of 1, as that of an inverted or cut image would be"


def _between(low: float | None, high: float | None) -> str:
    if low is None:
        return f"at most {_short(high or 0)}"
    return f"at least {_short(low)}" if high is None else f"{_short(low)} to {_short(high)}"


def _short(value: float) -> str:
    """Return a number with three significant digits.

    All digits before the point are kept.
    """
    digits = 3 if not value or abs(value) < 1000 else int(math.log10(abs(value))) + 1
    return f"{value:.{digits}g}"
