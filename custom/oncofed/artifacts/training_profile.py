"""Traits of a federation's training images, kept with the model.

Each site counts its training patients in histograms whose ends and bins ``data.traits`` fixes, merges bins of fewer
than five patients or hides them, and the server adds the sites up. It holds no smallest or largest value of a patient.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from oncofed.atomic import write_whole
from oncofed.data.manifest import Entry
from oncofed.data.spec import DataSpec
from oncofed.data.traits import Trait, counts_of_patients, traits
from oncofed.errors import SpecError
from oncofed.privacy.small_counts import merge_small_bins, suppress_small_counts
from oncofed.suppression import LEAST_PATIENTS

PROFILE_FILE = "training_profile.json"
# A range covers the patients whose bins are shown. With more than this share hidden it would be too narrow.
_MOST_HIDDEN = 0.2
_TAIL = 0.01

# Of one site: trait -> ``patients`` and ``counts``.
SiteProfile = Mapping[str, Mapping[str, Any]]


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class TraitRange(_Part):
    """One trait of the training images."""

    patients: int = Field(ge=LEAST_PATIENTS, description="of whose images it is known")
    counts: tuple[int, ...] = Field(description="patients in each bin; 0 also where a site had fewer than five")
    range: tuple[float, float] | None = Field(
        None, description="in which their images lie, first to 99th percentile; null: too few stand behind it"
    )
    bins: tuple[int, int] | None = Field(None, description="the first and the last bin of that range")
    names: tuple[str, ...] | None = Field(None, description="of a trait that has names: those that were there")
    unit: str = ""


class TrainingProfile(_Part):
    """``training_profile.json``."""

    schema_: Literal[1] = Field(1, alias="schema")
    sites: int = Field(ge=0, description="whose profiles are added up")
    traits: dict[str, TraitRange]


def site_profile(images: Iterable[tuple[str, Entry]], data: DataSpec) -> dict[str, dict[str, Any]]:
    """Return the profile of a site's training images.

    It leaves out each trait that one to four patients have, or lack.

    Args:
        images: each with its patient's key.
        data: of the job.
    """
    profile, known, every = {}, traits(data), list(images)
    everybody = len({patient for patient, _ in every})
    for name, counts in counts_of_patients(every, data).items():
        patients = int(counts.sum())
        if patients >= LEAST_PATIENTS and not 0 < everybody - patients < LEAST_PATIENTS:
            merged = merge_small_bins(counts, ordered=known[name].scale != "names")
            profile[name] = {"patients": patients, "counts": suppress_small_counts(merged).tolist()}
    return profile


def bins_of(data: DataSpec) -> dict[str, int]:
    """Return each histogram's number of bins, by trait."""
    return {name: trait.bins for name, trait in traits(data).items()}


def combined_profile(profiles: Iterable[SiteProfile], data: DataSpec) -> TrainingProfile:
    """Return the sum of several sites' profiles."""
    every = list(profiles)
    ranges: dict[str, TraitRange] = {}
    for name, trait in traits(data).items():
        parts = [profile[name] for profile in every if name in profile]
        if parts:
            counts = np.array([part["counts"] for part in parts], np.int64).sum(axis=0)
            ranges[name] = _range(trait, sum(part["patients"] for part in parts), counts)
    return TrainingProfile(schema=1, sites=len(every), traits=ranges)


def write_training_profile(folder: Path, profile: TrainingProfile) -> Path:
    """Write ``folder/training_profile.json`` whole or not at all; return its path."""
    path = folder / PROFILE_FILE
    write_whole(path, json.dumps(profile.model_dump(mode="json", by_alias=True), indent=1) + "\n")
    return path


def read_training_profile(folder: Path) -> TrainingProfile | None:
    """Return the profile next to a model's weights.

    None without one, as in runs of older sites.

    Raises:
        SpecError: it cannot be read as one.
    """
    path = folder / PROFILE_FILE
    try:
        return TrainingProfile.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError):
        raise SpecError(
            f"{path}: no profile of training images that this version knows. Fetch the run again, or remove the file: "
            "what the model was trained on is then not known"
        ) from None


def _range(trait: Trait, patients: int, counts: np.ndarray[Any, np.dtype[np.int64]]) -> TraitRange:
    shown = int(counts.sum())
    known = shown > 0 and patients - shown <= _MOST_HIDDEN * patients
    about: dict[str, Any] = {"patients": patients, "counts": tuple(counts.tolist()), "unit": trait.unit}
    if not known:
        return TraitRange(**about)
    if trait.scale == "names":
        return TraitRange(**about, names=tuple(n for n, count in zip(trait.names, counts, strict=True) if count))
    below = np.cumsum(counts)
    first = int(np.searchsorted(below, _TAIL * shown, side="right"))
    last = int(np.searchsorted(below, (1 - _TAIL) * shown, side="left"))
    ends = trait.low + first * trait.width, trait.low + (last + 1) * trait.width
    low, high = (float(f"{trait.plain(end):.4g}") for end in ends)
    return TraitRange(**about, range=(low, high), bins=(first, last))
