"""Slides' features with known vectors, as cases of a site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from oncofed.data.case import Case
from oncofed.data.features import FeatureBag, write_features
from oncofed.data.manifest import Entry, FeatureFacts

TILE, STEP, MPP = 64, 128.0, 1.0
WEIGHTS = "ab" * 32


def made_bag(tiles: int = 12, size: int = 8, seed: int = 0, columns: int = 4) -> FeatureBag:
    """Return random features of tiles, row by row on a grid of half a micron a pixel."""
    features = np.random.default_rng(seed).normal(size=(tiles, size)).astype(np.float32)
    places = np.array([(n % columns * STEP, n // columns * STEP) for n in range(tiles)], np.int32)
    return FeatureBag(features, places, STEP, TILE, MPP, "lab-encoder", WEIGHTS)


def made_slide(
    folder: Path,
    bag: FeatureBag,
    name: str = "slide",
    patient: str = "P1",
    label: int = 0,
    targets: Mapping[str, Sequence[float]] | None = None,
    tags: Mapping[str, str] | None = None,
) -> Case:
    """Return a case that brings features alone."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.h5"
    write_features(path, bag)
    facts = FeatureFacts(
        file=path.name,
        encoder=bag.encoder or "unknown",
        digest=bag.digest,
        level="slide" if bag.level == "slide" else "tile",
        size=bag.features.shape[1],
        tiles=len(bag.features),
        tile=bag.tile,
        mpp=bag.mpp,
    )
    entry = Entry(image=path.name, name=name, patient=patient, label=label, features=facts, tags=dict(tags or {}))
    encoded = {target: tuple(values) for target, values in (targets or {}).items()}
    return Case(name, patient, path, label, entry=entry, features=path, targets=encoded)
