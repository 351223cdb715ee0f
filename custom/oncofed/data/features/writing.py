"""Write features as TRIDENT does, so that its users read them."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from contextlib import suppress
from pathlib import Path

import numpy as np

from oncofed.atomic import flush_to_disk
from oncofed.data.features import trident
from oncofed.data.features.bag import FeatureBag
from oncofed.errors import DataError

_MODE = 0o600  # of a patient's slide
_OBJECTIVE = 10.0  # microns per pixel at 1x, by convention: 0.5 at 20x


def write_features(path: Path, bag: FeatureBag) -> None:
    """Write a slide's features to HDF5, whole or not at all.

    Datasets ``features`` and ``coords`` with TRIDENT's attributes; a slide's one vector is ``features`` (feature,).
    ``features`` also states the encoder, the digests of its weights and of its recipe, microns per pixel and the
    level. Magnifications are nominal: 10 divided by microns per pixel.

    Args:
        path: of the file; its folder exists.
        bag: float16 or float32.

    Raises:
        DataError: h5py is missing, or the numbers of vectors and places differ.
    """
    if importlib.util.find_spec("h5py") is None:
        raise DataError("writing features needs h5py: pip install 'oncofed[pathology]'")
    import h5py  # noqa: PLC0415 - optional

    values = bag.features[0] if bag.level == "slide" else bag.features
    if bag.places is not None and len(bag.places) != len(bag.features):
        raise DataError(f"there are {len(bag.features)} features and {len(bag.places)} places, expected one a feature")
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(descriptor)
    try:
        with h5py.File(name, "w") as file:
            features = file.create_dataset(trident.FEATURES, data=values)
            features.attrs["name"] = path.stem
            stated = {
                trident.ENCODER: bag.encoder,
                trident.DIGEST: bag.digest,
                trident.RECIPE: bag.recipe,
                trident.MPP: bag.mpp,
                trident.LEVEL: bag.level,
            }
            features.attrs.update({key: value for key, value in stated.items() if value is not None})
            if bag.places is not None:
                coords = file.create_dataset(trident.COORDS, data=bag.places.astype(np.int64))
                coords.attrs.update({"name": path.stem, "overlap": 0, **_of_tiles(bag)})
            elif bag.tile is not None:
                features.attrs[trident.PATCH_SIZE] = bag.tile
        Path(name).chmod(_MODE)
        flush_to_disk(Path(name))
        Path(name).replace(path)
    finally:
        with suppress(OSError):
            Path(name).unlink()


def _of_tiles(bag: FeatureBag) -> dict[str, int | float]:
    """Return TRIDENT's attributes of tiles, as far as they are known."""
    found: dict[str, int | float] = {}
    if bag.tile is not None:
        found[trident.PATCH_SIZE] = bag.tile
    if bag.step is not None:
        found[trident.SIZE_LEVEL0] = round(bag.step)
    if bag.mpp is not None:
        found[trident.MAGNIFICATION] = round(_OBJECTIVE / bag.mpp) or 1
    if bag.mpp is not None and bag.tile and bag.step:
        found[trident.MAGNIFICATION0] = round(_OBJECTIVE / (bag.mpp * bag.tile / bag.step)) or 1
    return found
