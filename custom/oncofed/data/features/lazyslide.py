"""Features as LazySlide writes them (Zheng et al., bioRxiv 2025).

A SpatialData store in Zarr (Marconato et al., Nature Methods 2025) with a table ENCODER_TILES for each encoder, whose
``X`` are the features; the places of tiles are a GeoParquet file, and the root states ``tile_spec`` and
``slide_properties``. One such table that was exported is AnnData, in Zarr or HDF5: ``X``, ``obsm/spatial``, and both
statements in ``uns``. A slide encoder's vector is in its tiles' table: ``uns/agg_ops/KEY`` with ``encoder`` and
``features`` (1, feature); with ``keys`` they are of parts of the slide.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from oncofed.data.features.names import same_encoder, standard_name
from oncofed.data.features.stored import Group, Rows, Stored, number_of, stored, text_of, whole
from oncofed.errors import DataError

_TOOL = "LazySlide"
_NEEDS_PARQUET = "the places of its tiles were not read, for they are Parquet: pip install pyarrow"
# A rectangle in well-known binary: byte order, type, one ring, five corners.
_WKB_HEAD, _WKB_BOX = 13, 93


def read(group: Group, path: Path, encoder: str | None) -> Stored | None:
    """Return the features; None where another tool wrote the file.

    Args:
        group: the root.
        path: of the store.
        encoder: whose features to read where there are several.

    Raises:
        DataError: it holds features of several encoders and none is named, or its arrays do not fit together.
    """
    if "tables" in group:
        return _of_store(group, path, encoder)
    return _of_table(group) if "X" in group and "obs" in group else None


def _of_store(group: Group, path: Path, encoder: str | None) -> Stored:
    tables = group["tables"]
    found = {}
    for name in sorted(tables):
        table = tables[name]
        region = _region(table)
        # Graphs of tiles are tables, too, without features.
        if region and name.endswith(f"_{region}") and "X" in table:
            found[name.removesuffix(f"_{region}")] = (table, region)
    of_slide = {name: rows for table, _ in found.values() for name, rows in _of_slide(table)}
    chosen = [name for name in found if encoder is None or same_encoder(name, encoder)]
    for name in [name for name in of_slide if encoder and not chosen and same_encoder(name, encoder)]:
        return stored(of_slide[name], None, level="slide", tool=_TOOL, encoder=name)
    if len(chosen) != 1:
        names = ", ".join((*found, *of_slide)) or "none"
        wanted = f"those of {standard_name(encoder)}" if encoder else "one: say which with --encoder"
        raise DataError(f"it holds features of {names}, expected {wanted}")
    table, region = found[chosen[0]]
    spec = group.attrs.get("tile_spec", {})
    stated = _stated(spec.get(region, {}), group.attrs.get("slide_properties", {}))
    places, notes = _places(path / "shapes" / region / "shapes.parquet")
    return stored(_rows(table), places, level="tile", tool=_TOOL, encoder=chosen[0], notes=notes, **stated)


def _of_slide(table: Group) -> Iterator[tuple[str, Rows]]:
    """Yield the vectors of a whole slide that encoders of slides made, with the encoder's name."""
    every = table.get("uns/agg_ops", {})
    for aggregated in (every[key] for key in sorted(every)):
        name = str(np.asarray(aggregated["encoder"][()]).astype(str)) if "encoder" in aggregated else ""
        # A mean or median does not say of which encoder it is.
        if name and not hasattr(np, name) and "keys" not in aggregated and "features" in aggregated:
            yield name, Rows(aggregated["features"])


def _of_table(table: Group) -> Stored:
    uns = table.get("uns", {})
    stated = _stated(_scalars(uns, "tile_spec"), _scalars(uns, "slide_properties"))
    places = table["obsm"]["spatial"] if "obsm" in table and "spatial" in table["obsm"] else None
    return stored(_rows(table), places, tool=_TOOL, **stated)


def _rows(table: Group) -> Rows:
    values = table["X"]
    if not hasattr(values, "shape"):
        raise DataError("its features are a sparse matrix, expected a dense one. Save X.toarray()")
    return Rows(values)


def _region(table: Group) -> str | None:
    regions = table.attrs.get("region")
    return regions[0] if isinstance(regions, list) and len(regions) == 1 else text_of({"region": regions}, "region")


def _stated(spec: Mapping[str, Any], slide: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a specification of tiles says."""
    tile, scale = number_of(spec, "width"), number_of(spec, "base_downsample")
    return {
        "tile": whole(tile),
        "mpp": number_of(spec, "mpp"),
        "step": tile * scale if tile and scale else number_of(spec, "raw_width"),
        "finest": number_of(slide, "mpp"),
    }


def _scalars(uns: Any, name: str) -> dict[str, Any]:
    """Return a group's single values, which AnnData keeps as arrays."""
    if name not in uns:
        return {}
    group = uns[name]
    return {key: group[key][()] for key in group if getattr(group[key], "shape", None) == ()}


def _places(path: Path) -> tuple[NDArray[np.float64] | None, tuple[str, ...]]:
    """Return where tiles lie, from a table of their outlines."""
    if not path.exists():
        return None, ("it does not say where its tiles lie",)
    if importlib.util.find_spec("pyarrow") is None:
        return None, (_NEEDS_PARQUET,)
    from pyarrow import parquet  # noqa: PLC0415 - optional

    table = parquet.read_table(path)
    if {"x", "y"} <= set(table.column_names):
        return np.stack([table.column(name).to_numpy() for name in ("x", "y")], axis=1).astype(np.float64), ()
    return corners(table.column("geometry").to_pylist()), ()


def corners(outlines: list[bytes]) -> NDArray[np.float64]:
    """Return the upper left corners of rectangles, (tile, 2).

    Args:
        outlines: in well-known binary (OGC 06-103r4), little endian.

    Raises:
        DataError: one is no rectangle.
    """
    if any(len(outline) != _WKB_BOX or outline[0] != 1 for outline in outlines):
        raise DataError("its tiles have outlines that are no rectangles, expected tiles of one size")
    points = np.frombuffer(b"".join(outline[_WKB_HEAD:] for outline in outlines), "<f8")
    return cast("NDArray[np.float64]", points.reshape(len(outlines), -1, 2).min(axis=1))
