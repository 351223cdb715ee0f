"""A dataset's profile, and numbers of each case.

After the fingerprint of nnU-Net (Isensee et al., Nature Methods 2021): spacings, sizes, intensities inside the
foreground, class frequencies.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, Field

from oncofed.data.case_facts import tissue_density
from oncofed.data.contract import with_facts
from oncofed.data.decisions import decided
from oncofed.data.feature_report import in_words
from oncofed.data.images import read_image
from oncofed.data.label_mapping import Supervision, match_labels
from oncofed.data.manifest import Entry, Manifest, inside, read_manifest
from oncofed.data.slides.tile_quality import FLAGS, flag_shares
from oncofed.data.spec import Modality
from oncofed.errors import DataError

AXES = ("right", "anterior", "superior")
FLAT_AXES = ("right", "down")
_PERCENTILES = (0, 10, 50, 90, 100)

Feature = tuple[str, float, float]


class Summary(BaseModel):
    """Distribution of a number over a site's cases; local only."""

    minimum: float
    p10: float
    median: float
    p90: float
    maximum: float
    mean: float
    std: float


class Profile(BaseModel):
    """A site's profile.

    It names no case, but holds single cases' values as minima and maxima, so it stays at the site.
    """

    schema_: Literal[1] = Field(1, serialization_alias="schema")
    dataset: str
    task: str
    cases: int
    patients: int
    labelled: int
    set_aside: int
    splits: dict[str, int]
    modalities: dict[str, int]
    vendors: dict[str, int]
    stored_types: dict[str, int]
    orientations: dict[str, int]
    shapes: dict[str, Summary] = Field(description="pixels or voxels along each axis of the body")
    spacings_mm: dict[str, Summary] = Field(description="mm along each axis of the body")
    intensity: dict[str, Summary] = Field(description="percentiles, mean and spread inside the foreground of a case")
    class_share: dict[str, Summary] = Field(description="share of an image's voxels, by label name")
    class_cases: dict[str, int] = Field(description="cases in which a label is seen")
    objects: Summary | None = Field(None, description="numbered objects of an image")
    features: dict[str, int] = Field({}, description="encoder, size of a vector and what it describes -> cases")
    stain: dict[str, Summary] = Field({}, description="of colour images: mean and spread of optical density by channel")
    tile_quality: dict[str, Summary] = Field({}, description="share of a slide's tiles with pen, fold, blur or bubble")


def make_profile(folder: Path) -> tuple[Profile, Manifest]:
    """Return a dataset's fingerprint, and its completed manifest.

    Raises:
        DataError: there is no dataset in ``folder``, or no case of it can be read.
    """
    manifest = with_facts(folder, decided(read_manifest(folder)))
    entries = [entry for entry in manifest.entries if entry.is_read]
    if not entries:
        raise DataError(f"{folder}: none of its {len(manifest.entries)} cases can be read. See: oncofed data check")
    names = {value: name for value, name in manifest.labels.items() if value != "0"}
    shares: dict[str, list[float]] = {name: [] for name in names.values()}
    for entry in entries:
        total = sum((entry.label_values or {}).values())
        for value, name in names.items():
            if total:
                shares[name].append((entry.label_values or {}).get(value, 0) / total)
    classes = Counter(str(e.label) for e in entries if isinstance(e.label, int))
    objects = [float(e.instances) for e in entries if e.instances is not None and manifest.label_kind == "instances"]
    return Profile(
        dataset=manifest.name or folder.name,
        task=manifest.task,
        cases=len(entries),
        patients=len({e.patient or e.name for e in entries}),
        labelled=sum(e.label is not None for e in entries),
        set_aside=len(manifest.quarantine),
        splits=dict(Counter(split for split, e in manifest.by_split() if e.is_read)),
        modalities=dict(Counter(e.modality or "not said" for e in entries)),
        vendors=dict(Counter(e.vendor or "not said" for e in entries)),
        stored_types=dict(Counter(e.dtype or "not said" for e in entries)),
        orientations=dict(Counter(e.orientation or "flat" for e in entries)),
        shapes=_by_axis(entries, body_shape),
        spacings_mm=_by_axis(entries, body_spacing),
        intensity=_intensities(entries),
        class_share={name: _summary(values) for name, values in shares.items() if values},
        class_cases={
            **{name: sum(v > 0 for v in values) for name, values in shares.items() if values},
            **{manifest.labels.get(value, value): n for value, n in classes.items()},
        },
        objects=_summary(objects) if objects else None,
        features=dict(Counter(in_words(entry.features) for entry in entries if entry.features)),
        stain=_stain(folder, entries),
        tile_quality={
            name: _summary([shares[name] for shares in looked_at])
            for name in FLAGS
            if (looked_at := [flag_shares(e.tile_quality) for e in entries if e.tile_quality])
        },
    ), manifest


def features(modality: Modality, dimensions: int, classes: Mapping[int, str]) -> list[Feature]:
    """Return a case's numbers, with their histograms' ranges.

    Sizes and spacings are logarithms (base 2), so that the mean is that of a typical case. Values outside the range
    count at its ends.
    """
    axes = AXES if dimensions == 3 else FLAT_AXES
    # Spacings from 1/1024 mm (a slide) to 16 mm, in quarters of an octave.
    found = [(f"log2_spacing_{axis}", -10.0, 4.0) for axis in axes]
    found += [(f"log2_size_{axis}", 3.0, 17.0) for axis in axes]
    for name in ("low", "median", "high", "mean", "std"):
        # Hounsfield units are comparable everywhere; other intensities are compared by order of magnitude.
        found.append((f"intensity_{name}", -1100.0, 3100.0) if modality == "ct" else (f"log10_intensity_{name}", -6, 6))
    found += [(f"log10_share_{value}", -7.0, 0.0) for value in classes]
    if modality == "microscopy" and dimensions == 2:
        found += [(f"share_of_tiles_{name}", 0.0, 1.0) for name in FLAGS]
    return found


def case_values(
    folder: Path, modality: Modality, dimensions: int, classes: Mapping[int, str]
) -> dict[str, list[float]]:
    """Return each feature's values, one per patient.

    Each is the mean over the patient's images.

    Raises:
        DataError: there is no dataset in ``folder``, or its labels do not fit ``classes``.
    """
    manifest = with_facts(folder, decided(read_manifest(folder)))
    vocabulary = match_labels(manifest, Supervision(classes=classes)) if classes else None
    if vocabulary and vocabulary.problems:
        raise DataError(f"{folder}: {'; '.join(vocabulary.problems)}")
    targets = dict(vocabulary.values) if vocabulary and vocabulary.values is not None else {v: v for v in classes}
    by_patient: dict[str, dict[str, list[float]]] = {}
    for entry in manifest.entries:
        if not entry.shape or len(entry.shape) != dimensions:
            continue
        patient = by_patient.setdefault(entry.patient or entry.name or entry.images[0], {})
        for name, value in _case_numbers(entry, modality, targets, classes).items():
            patient.setdefault(name, []).append(value)
    values: dict[str, list[float]] = {}
    for patient in by_patient.values():
        for name, several in patient.items():
            values.setdefault(name, []).append(float(np.mean(several)))
    return values


def _case_numbers(
    entry: Entry, modality: Modality, targets: Mapping[int, int], classes: Mapping[int, str]
) -> dict[str, float]:
    axes = AXES if len(entry.shape or []) == 3 else FLAT_AXES
    numbers: dict[str, float] = {}
    spacing = body_spacing(entry)
    for number, axis in enumerate(axes):
        numbers[f"log2_size_{axis}"] = float(np.log2(body_shape(entry)[number]))
        if spacing:
            numbers[f"log2_spacing_{axis}"] = float(np.log2(spacing[number]))
    if entry.intensity:
        for name, value in entry.intensity.model_dump().items():
            if modality == "ct":
                numbers[f"intensity_{name}"] = value
            else:
                numbers[f"log10_intensity_{name}"] = float(np.sign(value) * np.log10(1 + abs(value)))
    if entry.tile_quality and modality == "microscopy":
        numbers |= {f"share_of_tiles_{name}": share for name, share in flag_shares(entry.tile_quality).items()}
    total = sum((entry.label_values or {}).values())
    for value in classes if total else ():
        sources = [source for source, target in targets.items() if target == value]
        count = sum((entry.label_values or {}).get(str(source), 0) for source in sources)
        if count:
            numbers[f"log10_share_{value}"] = float(np.log10(count / total))
    return numbers


def body_shape(entry: Entry) -> Sequence[float]:
    """Return an image's size along the body's axes."""
    return _turned(entry, [float(n) for n in entry.shape or []])


def body_spacing(entry: Entry) -> Sequence[float]:
    """Return an image's voxel sizes in mm; empty: not stated."""
    return _turned(entry, list(entry.spacing)) if entry.spacing else []


def _turned(entry: Entry, values: list[float]) -> list[float]:
    """Return stored axes' values as right, anterior, superior."""
    if not entry.orientation or len(values) != 3 or "?" in entry.orientation:
        return values
    order = [next(n for n, letter in enumerate(entry.orientation) if letter in pair) for pair in ("RL", "AP", "SI")]
    return [values[n] for n in order]


def _by_axis(entries: Sequence[Entry], get: Any) -> dict[str, Summary]:
    found: dict[str, list[float]] = {}
    for entry in entries:
        values = get(entry)
        axes = AXES if len(values) == 3 else FLAT_AXES
        for axis, value in zip(axes, values, strict=False):
            found.setdefault(axis, []).append(value)
    return {axis: _summary(values) for axis, values in found.items()}


def _intensities(entries: Sequence[Entry]) -> dict[str, Summary]:
    known = [entry.intensity for entry in entries if entry.intensity]
    names = ("low", "median", "high", "mean", "std")
    return {name: _summary([getattr(i, name) for i in known]) for name in names} if known else {}


def _stain(folder: Path, entries: Sequence[Entry]) -> dict[str, Summary]:
    """Return mean and spread of optical density by channel.

    Over up to 100 colour images.
    """
    coloured = [e for e in entries if e.channels == 3 and len(e.shape or []) == 2 and e.dtype == "uint8"]
    flat = [e for e in coloured if not (e.tiles or e.features)]
    chosen = flat[:: max(1, len(flat) // 100)][:100]
    found: dict[str, list[float]] = {}
    for entry in chosen:
        try:
            pixels = read_image(inside(folder, entry.images[0])).values.reshape(-1, 3)
        except DataError:
            continue
        tissue = tissue_density(pixels)
        for number, name in enumerate(("red", "green", "blue")) if len(tissue) else ():
            found.setdefault(f"{name} mean", []).append(float(tissue[:, number].mean()))
            found.setdefault(f"{name} spread", []).append(float(tissue[:, number].std()))
    return {name: _summary(values) for name, values in found.items()}


def _summary(values: Sequence[float]) -> Summary:
    low, p10, median, p90, high = (float(v) for v in np.percentile(values, _PERCENTILES))
    return Summary(
        minimum=low,
        p10=p10,
        median=median,
        p90=p90,
        maximum=high,
        mean=float(np.mean(values)),
        std=float(np.std(values)),
    )
