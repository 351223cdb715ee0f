"""Features as LazySlide writes them (Zheng et al., bioRxiv 2025).

A SpatialData store in Zarr (Marconato et al., Nature Methods 2025) with a table ENCODER_TILES for each encoder, whose
``X`` are the features; the places of tiles are a GeoParquet file, and the root states ``tile_spec`` and
``slide_properties``. One such table that was exported is AnnData, in Zarr or HDF5: ``X``, ``obsm/spatial``, and both
statements in ``uns``. A slide encoder's vector is in its tiles' table: ``uns/agg_ops/KEY`` with ``encoder`` and
``features`` (1, feature); with ``keys`` they are of parts of the slide.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oncofed.data.features.names import same_encoder, standard_name
from oncofed.data.features.outlines import places_of
from oncofed.data.features.stored import Group, Rows, Stored, number_of, stored, text_of, whole
from oncofed.errors import DataError

_TOOL = "LazySlide"
# Names of SpatialData's elements.
_NAME = re.compile(r"(?!\.)[\w.-]+")
_INSTANCE = "tile_id"  # what LazySlide calls SpatialData's instance key


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
    chosen = [
        name for name, (table, _) in found.items() if encoder is None or same_encoder(name, encoder, _size(table))
    ]
    for name in [name for name in of_slide if encoder and not chosen and same_encoder(name, encoder)]:
        return stored(of_slide[name], None, level="slide", tool=_TOOL, encoder=name)
    if len(chosen) != 1:
        names = ", ".join((*found, *of_slide)) or "none"
        wanted = f"those of {standard_name(encoder)}" if encoder else "one: say which with --encoder"
        raise DataError(f"it holds features of {names}, expected {wanted}")
    table, region = found[chosen[0]]
    spec = _mapping(group.attrs.get("tile_spec"))
    stated = _stated(_mapping(spec.get(region)), _mapping(group.attrs.get("slide_properties")))
    key = text_of(table.attrs, "instance_key") or _INSTANCE
    numbers = _instances(table, key)
    if numbers is None:
        places, note = None, f"it does not say of which tile a row is: its obs has no {key}"
    else:
        places, note = places_of(path, region, key, numbers)
    notes = (note,) if note else ()
    return stored(_rows(table), places, level="tile", tool=_TOOL, encoder=chosen[0], notes=notes, **stated)


def _of_slide(table: Group) -> Iterator[tuple[str, Rows]]:
    """Yield the vectors of a whole slide that encoders of slides made, with the encoder's name."""
    every = table.get("uns/agg_ops", {})
    for aggregated in (every[key] for key in sorted(every)):
        name = str(np.asarray(aggregated["encoder"][()]).astype(str)) if "encoder" in aggregated else ""
        # A mean or median does not say of which encoder it is.
        if name and not hasattr(np, name) and "keys" not in aggregated and "features" in aggregated:
            yield name, Rows(aggregated["features"])


def _instances(table: Group, key: str) -> NDArray[np.str_] | None:
    """Return the number of each row's tile, as text; None where nothing says it."""
    column = table["obs"].get(key) if "obs" in table else None
    if column is None:
        return None
    numbers: Any = None
    if hasattr(column, "shape"):
        numbers = column[...]
    elif "codes" in column:  # AnnData keeps texts that repeat so
        numbers = np.asarray(column["categories"][...])[np.asarray(column["codes"][...])]
    elif "values" in column:
        numbers = column["values"][...]
    return None if numbers is None else np.asarray(numbers).astype(str)


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


def _size(table: Group) -> int | None:
    """Return the numbers of a vector; None of a sparse matrix."""
    shape = getattr(table["X"], "shape", None)
    return shape[-1] if shape else None


def _region(table: Group) -> str | None:
    """Return the name of the tiles that a table is of; None where it names no one element of the store."""
    regions = table.attrs.get("region")
    one = regions[0] if isinstance(regions, list) and len(regions) == 1 else regions
    name = text_of({"region": one}, "region")
    # It becomes part of a path, and a file's sender chose it.
    return name if name and _NAME.fullmatch(name) else None


def _mapping(value: Any) -> Mapping[str, Any]:
    """Return what a file states by name; nothing where it states anything else."""
    return value if isinstance(value, Mapping) else {}


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
