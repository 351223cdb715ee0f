"""Traits of images, for comparison with the training images.

A trait is a number, with a histogram's range and bins fixed here, or one of a few names. All derive from facts that
registering found about the image alone, so unlabelled images have them too.
"""

from __future__ import annotations

import base64
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from oncofed.data.manifest import Entry, Intensity
from oncofed.data.profile import AXES, FLAT_AXES, body_shape, body_spacing
from oncofed.data.spec import DataSpec, Modality

Scale = Literal["log2", "log10", "linear", "names"]

# DICOM's codes (PS3.3, section C.7.3.1.1.1) and other layouts' words -> common name for counting.
_MODALITIES = {
    **dict.fromkeys(("mr", "mri"), "MR"),
    "ct": "CT",
    **dict.fromkeys(("pt", "pet"), "PET"),
    **dict.fromkeys(("cr", "dx", "rg", "xray", "x-ray"), "radiograph"),
    "mg": "mammogram",
    **dict.fromkeys(("xa", "rf"), "fluoroscopy"),
    "us": "ultrasound",
    **dict.fromkeys(("sm", "gm", "xc", "microscopy", "histology", "pathology", "fluorescence"), "microscope or camera"),
}
MODALITY, CHANNELS, EDGE = "modality", "channels", "edge"
_MODALITY_NAMES = tuple(dict.fromkeys(_MODALITIES.values()))
_CHANNEL_NAMES = ("1", "2", "3", "4", "more than 4")
_COLOURS = ("red", "green", "blue")
_CELLS = {2: (16, 16), 3: (8, 8, 8)}  # of a thumbnail, by the image's axes


@dataclass(frozen=True)
class Trait:
    """One trait of an image, a number or name.

    Attributes:
        name: such as ``spacing_superior``.
        scale: of its histogram: "log2", "log10" (sign times log10(1 + size)), "linear"; "names".
        low: start of the histogram, on that scale; lower values count in its first bin.
        high: its end.
        bins: number of bins; one per name.
        unit: of the number.
        names: the possible names.
    """

    name: str
    scale: Scale
    low: float
    high: float
    bins: int
    unit: str = ""
    names: tuple[str, ...] = ()

    @property
    def width(self) -> float:
        """Of a bin, on the scale."""
        return (self.high - self.low) / self.bins

    def bin_of(self, value: float) -> int:
        """Return the bin of a number or a name's index."""
        return min(max(math.floor((value - self.low) / self.width), 0), self.bins - 1)

    def plain(self, value: float) -> float:
        """Return the number for a value on the scale."""
        if self.scale == "log2":
            return float(2.0**value)
        if self.scale == "log10":
            return math.copysign(10.0 ** abs(value) - 1, value)
        return float(value)


def traits(data: DataSpec) -> dict[str, Trait]:
    """Return the traits of images for a job, by name."""
    return dict(_traits(data.dimensions, data.modality, len(data.channels)))


@lru_cache
def _traits(dimensions: int, modality: Modality, channels: int) -> Mapping[str, Trait]:
    axes = AXES if dimensions == 3 else FLAT_AXES
    found = [
        _names(MODALITY, _MODALITY_NAMES),
        _names(CHANNELS, _CHANNEL_NAMES),
        # From 1/1024 mm (a slide) to 16 mm, in quarters of an octave; powers of two lie in the middle of a bin.
        *(Trait(f"spacing_{axis}", "log2", -10.125, 3.875, 56, "mm") for axis in axes),
        *(Trait(f"size_{axis}", "log2", 2.75, 16.75, 28) for axis in axes),
    ]
    for name in ("low", "median", "high"):
        # Hounsfield units are comparable everywhere; other intensities are compared by order of magnitude.
        if modality == "ct":
            found.append(Trait(f"intensity_{name}", "linear", -1100, 3100, 42, "HU"))
        else:
            found.append(Trait(f"intensity_{name}", "log10", -6, 6, 24))
    found.append(Trait(EDGE, "linear", 0, 1, 10))
    if dimensions == 2 and channels == len(_COLOURS):
        found += [Trait(f"density_{colour}", "linear", 0, 2.4, 24) for colour in _COLOURS]
    return {trait.name: trait for trait in found}


def traits_of(entry: Entry, data: DataSpec) -> dict[str, float]:
    """Return an image's traits on their scales.

    Only those that its facts give; names as their index.

    Args:
        entry: with the facts that registering found.
        data: of the job.
    """
    found: dict[str, float] = {}
    modality = _MODALITIES.get((entry.modality or "").lower())
    if modality:
        found[MODALITY] = _MODALITY_NAMES.index(modality)
    if entry.channels:
        found[CHANNELS] = min(entry.channels, len(_CHANNEL_NAMES)) - 1
    shape, spacing = body_shape(entry), body_spacing(entry)
    if len(shape) == data.dimensions:
        axes = AXES if data.dimensions == 3 else FLAT_AXES
        if not entry.tiles:  # how much of a slide was scanned says nothing of its tissue
            found |= {f"size_{axis}": math.log2(side) for axis, side in zip(axes, shape, strict=True)}
        if len(spacing) == len(axes):
            found |= {f"spacing_{axis}": math.log2(side) for axis, side in zip(axes, spacing, strict=True)}
    intensity = intensity_of_image(entry)
    for name in ("low", "median", "high") if intensity else ():
        value = float(getattr(intensity, name))
        signed = math.copysign(math.log10(1 + abs(value)), value)
        found[f"intensity_{name}"] = value if data.modality == "ct" else signed
    edge = _edge(entry)
    if edge is not None:
        found[EDGE] = edge
    if entry.stain and len(entry.stain) == len(_COLOURS):
        found |= {f"density_{colour}": value for colour, value in zip(_COLOURS, entry.stain, strict=True)}
    known = traits(data)
    return {name: value for name, value in found.items() if name in known and math.isfinite(value)}


def intensity_of_image(entry: Entry) -> Intensity | None:
    """Return an image's intensities regardless of its label.

    None if they were not measured.
    """
    if entry.image_intensity:
        return entry.image_intensity
    return None if isinstance(entry.label, str) and not entry.tiles else entry.intensity


def counts_of_patients(images: Iterable[tuple[str, Entry]], data: DataSpec) -> dict[str, NDArray[np.int64]]:
    """Return the number of patients in each bin, (bins,).

    A patient's value is the mean over the images, or the most frequent name.

    Args:
        images: each with its patient's key.
        data: of the job.
    """
    values: Mapping[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for patient, entry in images:
        for name, value in traits_of(entry, data).items():
            values[name][patient].append(value)
    found = {}
    for name, trait in traits(data).items():
        counts = np.zeros(trait.bins, np.int64)
        for own in values[name].values():
            value = Counter(own).most_common(1)[0][0] if trait.scale == "names" else math.fsum(own) / len(own)
            counts[trait.bin_of(value)] += 1
        found[name] = counts
    return found


def _names(name: str, names: tuple[str, ...]) -> Trait:
    return Trait(name, "names", 0, len(names), len(names), names=names)


def _edge(entry: Entry) -> float | None:
    """Return the brightness of an image's rim (0 to 1).

    0 is the image's darkest value; it tells inverted images apart.
    """
    if not entry.thumbnail:
        return None
    values = np.frombuffer(base64.b64decode(entry.thumbnail), np.uint8)
    cells = _CELLS[3 if values.size == np.prod(_CELLS[3]) else 2]
    if values.size != np.prod(cells):
        return None
    inner = np.zeros(cells, bool)
    inner[tuple(slice(1, -1) for _ in cells)] = True
    return float(values.reshape(cells)[~inner].mean() / 255)
