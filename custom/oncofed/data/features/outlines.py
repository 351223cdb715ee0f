"""Where LazySlide's tiles lie: a GeoParquet file of their outlines."""

from __future__ import annotations

import importlib.util
import json
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray

from oncofed.data.features.stored import MOST_TILES
from oncofed.errors import DataError

# A rectangle in well-known binary: byte order, type, one ring, five corners.
_WKB_HEAD, _WKB_BOX = 13, 93


def places_of(store: Path, region: str, key: str, rows: NDArray[np.str_]) -> tuple[NDArray[np.float64] | None, str]:
    """Return where each row's tile lies, (tile, 2), and else why not.

    SpatialData joins a table and its shapes by the instance key; the order of either says nothing.

    Args:
        store: a SpatialData store in Zarr, a folder or zipped.
        region: name of the shapes.
        key: name of the column that numbers the tiles; without it, the index of the shapes does.
        rows: number of each row's tile, as text.

    Raises:
        DataError: a row's tile has no outline, or several; an outline is no rectangle.
    """
    with _opened(store, f"shapes/{region}/shapes.parquet") as file:
        if file is None:
            return None, "it does not say where its tiles lie"
        if importlib.util.find_spec("pyarrow") is None:
            return None, "the places of its tiles were not read, for they are Parquet: pip install pyarrow"
        from pyarrow import parquet  # noqa: PLC0415 - optional

        outlines = parquet.ParquetFile(file)
        if outlines.metadata.num_rows > MOST_TILES:
            raise DataError(f"it has {outlines.metadata.num_rows:,} tiles, expected at most {MOST_TILES:,}")
        table = outlines.read()
    if {"x", "y"} <= set(table.column_names):
        found = np.stack([table.column(name).to_numpy() for name in ("x", "y")], axis=1).astype(np.float64)
    else:
        found = corners(table.column("geometry").to_pylist())
    return found[_order(_numbers(table, key), rows)], ""


@contextmanager
def _opened(store: Path, name: str) -> Iterator[IO[bytes] | None]:
    """Open a file of a store; None where there is none."""
    if store.is_dir():
        path = store / name
        if not path.is_file():
            yield None
            return
        with path.open("rb") as file:
            yield file
        return
    with zipfile.ZipFile(store) as archive:
        if name not in archive.namelist():
            yield None
            return
        with archive.open(name) as inside:
            yield inside


def _numbers(table: Any, key: str) -> NDArray[np.str_]:
    """Return the number of each outline's tile, as text: of a column, else of pandas' index."""
    if key not in table.column_names:
        stated = json.loads((table.schema.metadata or {}).get(b"pandas", b"{}")).get("index_columns") or [{}]
        if isinstance(stated[0], dict):
            first, step = stated[0].get("start") or 0, stated[0].get("step") or 1
            return (first + step * np.arange(table.num_rows)).astype(str)
        key = stated[0]
    return np.asarray(table.column(key).to_pylist()).astype(str)


def _order(outlines: NDArray[np.str_], rows: NDArray[np.str_]) -> NDArray[np.intp]:
    """Return which outline is that of each row."""
    order = np.argsort(outlines)
    ordered = outlines[order]
    if (ordered[1:] == ordered[:-1]).any():
        raise DataError("its tiles have outlines of which two have the same number. Extract it again")
    at = np.searchsorted(ordered, rows)
    missing = at == len(ordered)
    missing[~missing] = ordered[at[~missing]] != rows[~missing]
    if missing.any():
        raise DataError(
            f"{int(missing.sum())} of its {len(rows)} rows of features are of tiles without an outline: the tiles "
            "were cut anew since. Extract the features again"
        )
    return order[at]


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
