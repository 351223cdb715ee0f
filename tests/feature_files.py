"""Files of features, in the true layout of each tool."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
import zarr
from numpy.typing import NDArray

Array = NDArray[Any]


def vectors(tiles: int = 12, size: int = 8, seed: int = 0, dtype: str = "float32") -> Array:
    """Return features, (tile, feature)."""
    return np.random.default_rng(seed).normal(size=(tiles, size)).astype(dtype)


def grid(tiles: int = 12, step: int = 512) -> Array:
    """Return the upper left corners of tiles, (tile, 2), four a row."""
    return np.stack([np.arange(tiles) % 4, np.arange(tiles) // 4], axis=1).astype(np.int64) * step


def hdf5(path: Path, arrays: Mapping[str, Array], attrs: Mapping[str, Mapping[str, Any]] | None = None) -> Path:
    """Write datasets, and attributes by dataset; "" is the root."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file[name] = values
        for name, stated in (attrs or {}).items():
            (file[name] if name else file).attrs.update(stated)
    return path


def trident(
    path: Path,
    features: Array | None = None,
    places: Array | None = None,
    encoder: str | None = "uni_v1",
    magnifications: tuple[int, int] = (40, 20),
    tile: int = 256,
    **of_tiles: int,
) -> Path:
    """Write what TRIDENT's ``extract_patch_features`` does; older versions name no encoder."""
    features = vectors() if features is None else features
    places = grid(len(features)) if places is None else places
    of_features = {"name": path.stem, "savetodir": "/out"} | ({"encoder": encoder} if encoder else {})
    stated = {
        "patch_size": tile,
        "patch_size_level0": tile * magnifications[0] // magnifications[1],
        "level0_magnification": magnifications[0],
        "target_magnification": magnifications[1],
        "overlap": 0,
        "name": path.stem,
        "savetodir": "/out",
    }
    return hdf5(path, {"features": features, "coords": places}, {"features": of_features, "coords": stated | of_tiles})


def clam(path: Path, features: Array | None = None, places: Array | None = None) -> Path:
    """Write what CLAM's ``compute_w_loader`` does: no attribute, coordinates int32."""
    features = vectors() if features is None else features
    places = grid(len(features)) if places is None else places
    return hdf5(path, {"features": features, "coords": places.astype(np.int32)})


def stamp(path: Path, version: str = "2.1", features: Array | None = None, side: float = 256.0) -> Path:
    """Write what a version of STAMP does: "1", "2.0", "2.1", "slide" or "patient"."""
    features = vectors(dtype="float16") if features is None else features
    count = 1 if version in {"slide", "patient"} else len(features)
    arrays = {"feats": features[:count]}
    attrs: dict[str, Any] = {"extractor": "mahmood-uni"}
    if version == "1":
        attrs = {"extractor": "xiyuewang-ctranspath-7c998680"}
        arrays |= {"coords": grid(count, 224), "augmented": np.zeros(count, bool)}
    elif version == "2.0":
        arrays["coords"] = (grid(count, 1) * side).astype(np.float32)
        attrs |= {"stamp_version": "2.0.0", "unit": "um", "tile_size": side}
    elif version == "2.1":
        arrays["coords"] = (grid(count, 1) * side).astype(np.float32)
        attrs |= {"stamp_version": "2.1.0", "unit": "um", "tile_size_um": side, "tile_size_px": 224}
        attrs |= {"code_hash": "01234567", "feat_type": "tile"}
    else:
        attrs = {"version": "2.3.0", "encoder": "titan", "precision": "torch.float32", "feat_type": version}
    return hdf5(path, arrays, {"": attrs})


def stamp_together(path: Path) -> Path:
    """Write what ``encode_slides`` of older versions of STAMP did."""
    attrs = {"version": "2.1.0", "encoder": "titan", "precision": "torch.float32"}
    return hdf5(path, {f"s{number}": row for number, row in enumerate(vectors())}, {"": attrs})


def hest(path: Path, features: Array | None = None) -> Path:
    """Write what the benchmark's ``embed_tiles`` does."""
    features = vectors() if features is None else features
    names = np.array([[f"spot{n}".encode()] for n in range(len(features))])
    return hdf5(path, {"embeddings": features, "coords": grid(len(features)), "barcodes": names})


SPEC = {
    "height": 256,
    "width": 256,
    "stride_height": 256,
    "stride_width": 256,
    "mpp": 0.5,
    "ops_level": 0,
    "ops_downsample": 2.0,
    "base_level": 0,
    "base_downsample": 2.0,
    "tissue_name": "tissues",
}


def lazyslide(path: Path, tables: Mapping[str, Array] | None = None, tiles: str = "tiles") -> Path:
    """Write the parts of a SpatialData store that tell of features, without the tiles' outlines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    store = zarr.open_group(path, mode="w")
    store.attrs.put(
        {
            "spatialdata_attrs": {"version": "0.2"},
            "tile_spec": {tiles: SPEC},
            "slide_properties": {"shape": [4096, 4096], "mpp": 0.25, "magnification": 40},
        }
    )
    for name, values in (tables or {"uni": vectors()}).items():
        table = store.create_group(f"tables/{name}_{tiles}")
        table.attrs.update(
            {"encoding-type": "anndata", "region": tiles, "region_key": "library_id", "instance_key": "tile_id"}
        )
        table.create_array("X", data=values)
        table.create_group("obs").create_array("tile_id", data=np.arange(len(values)))
    graph = store.create_group(f"tables/{tiles}_graph")
    graph.attrs.update({"encoding-type": "anndata", "region": tiles})
    return path


def anndata(path: Path, features: Array | None = None) -> Path:
    """Write what ``features_anndata`` of LazySlide exports, by AnnData to HDF5."""
    features = vectors() if features is None else features
    arrays = {"X": features, "obs/tile_id": np.arange(len(features)), "obsm/spatial": grid(len(features))}
    arrays |= {f"uns/tile_spec/{name}": np.array(value) for name, value in SPEC.items() if not isinstance(value, str)}
    arrays["uns/slide_properties/mpp"] = np.array(0.25)
    return hdf5(path, arrays, {"": {"encoding-type": "anndata"}})


def tensor(path: Path, features: Any = None) -> Path:
    """Write what CLAM keeps in ``pt_files``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(torch.from_numpy(vectors()) if features is None else features, path)
    return path


def outline(x: float, y: float, side: float) -> bytes:
    """Return a square in well-known binary, as GeoParquet keeps it."""
    corners = [(x + side, y), (x + side, y + side), (x, y + side), (x, y), (x + side, y)]
    return struct.pack("<BIII", 1, 3, 1, 5) + b"".join(struct.pack("<2d", *corner) for corner in corners)
