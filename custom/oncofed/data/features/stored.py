"""Features in an open file, before they are read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from oncofed.data.features.bag import FeatureBag
from oncofed.errors import DataError

Level = Literal["tile", "slide"]
Unit = Literal["pixel", "micron", "tile pixel"]
DAMAGED = "its arrays cannot be read: it is damaged or cut off. Copy it again"
# Numbers of a part that is read at once: 16 MiB of float32.
_AT_ONCE = 1 << 22
# More than any slide has: a file of some kilobytes may state any number of them, unwritten.
MOST_TILES, _MOST_FEATURES = 10_000_000, 1 << 16
_LARGEST_PLACE = np.iinfo(np.int32).max


class Values(Protocol):
    """An array in a file: HDF5's, Zarr's, or a tensor's."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Size along each axis."""

    @property
    def dtype(self) -> Any:
        """Type of a number."""

    def __getitem__(self, where: Any) -> Any:
        """Read a part."""


class Group(Protocol):
    """A group of arrays: HDF5's or Zarr's."""

    @property
    def attrs(self) -> Mapping[str, Any]:
        """What is stated of it."""

    def get(self, name: str, default: Any = None, /) -> Any:
        """Return an array or a group, or the default."""

    def __iter__(self) -> Iterator[str]:
        """Yield the names."""

    def __contains__(self, name: Any) -> bool:
        """Return whether it holds an array or a group of this name."""

    def __getitem__(self, name: Any) -> Any:
        """Return an array or a group."""


class Rows:
    """A file's vectors, (tile, feature), read in parts.

    Args:
        values: (tile, feature); (1, tile, feature), as batches of one slide are kept; or (feature,), one vector.

    Attributes:
        shape: (tile, feature).
        alone: the file holds one vector without an axis of tiles.

    Raises:
        DataError: it has another number of axes, or holds no numbers.
    """

    def __init__(self, values: Values) -> None:
        shape = tuple(map(int, values.shape))
        self.alone = len(shape) == 1
        self._batch = len(shape) == 3 and shape[0] == 1
        if not (self.alone or self._batch or len(shape) == 2):
            sizes = " x ".join(map(str, shape)) or "one number"
            raise DataError(f"its features have the shape {sizes}, expected tiles x features")
        kind = np.dtype(values.dtype).kind
        if kind != "f":
            raise DataError(f"its features are of the type {values.dtype}, expected float16, float32 or float64")
        self._values = values
        self.shape: tuple[int, int] = (1, shape[0]) if self.alone else cast("tuple[int, int]", shape[-2:])

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type that parts have: float16, or float32 for any longer one."""
        return np.dtype(np.float16 if np.dtype(self._values.dtype) == np.float16 else np.float32)

    def read(self, first: int, last: int) -> NDArray[np.floating]:
        """Return rows ``first`` to ``last``.

        Numbers beyond the range of float32 become infinite.

        Raises:
            DataError: they cannot be read.
        """
        where: Any = (0, slice(first, last)) if self._batch else slice(None) if self.alone else slice(first, last)
        try:
            with np.errstate(over="ignore"):
                part: NDArray[np.floating] = np.asarray(self._values[where]).astype(self.dtype, copy=False)
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001 - libraries raise any type of error for a malformed file
            raise DataError(DAMAGED) from None
        return part.reshape(-1, self.shape[1])

    def parts(self) -> Iterator[NDArray[np.floating]]:
        """Yield all rows, some megabytes at a time."""
        step = max(1, _AT_ONCE // max(1, self.shape[1]))
        for first in range(0, len(self), step):
            yield self.read(first, min(first + step, len(self)))


@dataclass(frozen=True)
class Stored:
    """What a file says of its features, which are read later.

    Attributes:
        rows: the vectors.
        places: (tile, 2), x then y of each tile's upper left corner, in units of ``unit``; None: not stated.
        unit: of ``places``: pixels of the slide's finest level, microns, or pixels of the tiles' resolution.
        step: side of a tile in pixels of the finest level.
        tile: side of a tile in pixels, as the encoder saw it.
        mpp: microns per pixel of a tile.
        side: of a tile, in microns.
        encoder: its name as the file has it.
        digest: of its weights.
        recipe: of how it was built and fed, see ``EncoderEntry.recipe``.
        level: what a vector describes.
        finest: microns per pixel of the finest level.
        slide: width and height of the finest level in pixels.
        magnification: of the tiles, by name: 20 is about 0.5 microns per pixel.
        notes: for people.
    """

    rows: Rows
    places: NDArray[np.float64] | None = None
    unit: Unit = "pixel"
    step: float | None = None
    tile: int | None = None
    mpp: float | None = None
    side: float | None = None
    encoder: str | None = None
    digest: str | None = None
    recipe: str | None = None
    level: Level = "tile"
    finest: float | None = None
    slide: tuple[float, float] | None = None
    magnification: float | None = None
    notes: tuple[str, ...] = ()

    def completed(self, tile: int | None = None, mpp: float | None = None, finest: float | None = None) -> Stored:
        """Return it with what somebody else states, and what follows.

        Of a tile's pixels, its side in microns and its resolution, two give the third. What the file states stays.

        Args:
            tile: side of a tile in pixels.
            mpp: microns per pixel of a tile.
            finest: microns per pixel of the slide's finest level, such as its image says.
        """
        found = replace(self, tile=self.tile or tile, finest=finest or self.finest)
        side = found.side or (found.step * found.finest if found.step and found.finest else None)
        if found.mpp is None and side and found.tile:
            found = replace(found, mpp=side / found.tile)
        found = replace(found, mpp=found.mpp or mpp)
        if found.tile is None and side and found.mpp:
            found = replace(found, tile=round(side / found.mpp))
        if found.step is None and found.finest and (side or (found.tile and found.mpp)):
            found = replace(found, step=(side or cast("int", found.tile) * cast("float", found.mpp)) / found.finest)
        return found

    def pixels(self) -> NDArray[np.int32] | None:
        """Return ``places`` in pixels of the finest level, int32.

        None where they are not stated, or stated in microns of a slide whose resolution is unknown.

        Raises:
            DataError: one is no number, or far beyond any slide.
        """
        scale = self._scale()
        if self.places is None or scale is None:
            return None
        places = self.places * scale
        if not np.isfinite(places).all():
            raise DataError("its coordinates hold values that are not finite (NaN or infinity). Extract them again")
        if places.size and np.abs(places).max() > _LARGEST_PLACE:
            raise DataError(f"its coordinates reach {np.abs(places).max():.3g} pixels, expected those of a slide")
        return cast("NDArray[np.int32]", np.rint(places).astype(np.int32))

    def _scale(self) -> float | None:
        """Return pixels of the finest level per unit of ``places``."""
        if self.unit == "pixel":
            return 1.0
        microns = 1.0 if self.unit == "micron" else self.mpp
        return microns / self.finest if microns and self.finest else None

    def bag(self) -> FeatureBag:
        """Read all of it."""
        features = np.empty(self.rows.shape, self.rows.dtype)
        first = 0
        for part in self.rows.parts():
            features[first : first + len(part)] = part
            first += len(part)
        return FeatureBag(
            features=features,
            places=self.pixels() if self.level == "tile" else None,
            step=self.step,
            tile=self.tile,
            mpp=self.mpp,
            encoder=self.encoder,
            digest=self.digest,
            recipe=self.recipe,
            level=self.level,
        )


def stored(
    rows: Rows, places: Values | NDArray[Any] | None, *, level: str | None = None, tool: str = "", **stated: Any
) -> Stored:
    """Return a file's features, checked for the shapes of both arrays.

    Args:
        rows: the vectors.
        places: (tile, 2), or (1, tile, 2) as the vectors.
        level: what the file says that a vector describes; None: one vector without an axis of tiles, or one without
            coordinates, is of a slide.
        tool: that wrote it, for the notes.
        stated: the other fields of ``Stored``.

    Raises:
        DataError: there is no vector, or the numbers of vectors and coordinates differ.
    """
    count, size = rows.shape
    if not count or not size:
        raise DataError(f"it holds no features: their size is {count} x {size}. Extract them again, or leave it out")
    if count > MOST_TILES or size > _MOST_FEATURES:
        raise DataError(
            f"it states {count:,} x {size:,} features, expected at most {MOST_TILES:,} tiles and {_MOST_FEATURES:,} "
            "numbers of each. Extract them again"
        )
    if level is None:
        level = "slide" if rows.alone or (count == 1 and places is None) else "tile"
    if level not in {"tile", "slide"}:
        raise DataError(f"its vectors describe {level!r}, expected tiles or slides")
    if level == "slide":
        if count != 1:
            raise DataError(f"it says that a vector describes a slide, and holds {count}, expected one")
        places = None  # of the tiles that the vector sums up
    found = None if places is None else _coordinates(places, count, size)
    notes = (f"features as {tool} writes them",) if tool else ()
    given = stated.pop("notes", ())
    return Stored(rows, found, level=cast("Level", level), notes=(*notes, *given), **stated)


def _coordinates(places: Values | NDArray[Any], count: int, size: int) -> NDArray[np.float64]:
    """Return coordinates, (tile, 2); they are read only where their shape is right.

    Raises:
        DataError: it is not, or they are no numbers.
    """
    shape = tuple(map(int, places.shape))
    shape = shape[1:] if len(shape) == 3 and shape[0] == 1 else shape
    if len(shape) != 2 or shape[1] != 2:
        sizes = " x ".join(map(str, shape)) or "one number"
        raise DataError(f"its coordinates have the shape {sizes}, expected tiles x 2 (x, y)")
    if shape[0] != count:
        turned = " The features lie turned: save them as tiles x features" if shape[0] == size else ""
        raise DataError(f"it holds {count} x {size} features and {shape[0]} coordinates, expected one a row.{turned}")
    if np.dtype(places.dtype).kind not in "iuf":
        raise DataError(f"its coordinates are of the type {places.dtype}, expected whole numbers")
    return np.asarray(places[...], dtype=np.float64).reshape(shape)


def text_of(attrs: Mapping[str, Any], *names: str) -> str | None:
    """Return the first attribute that is a text; None without one."""
    for name in names:
        value = attrs.get(name)
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        if isinstance(value, str) and value.strip() and value != "None":
            return value.strip()
    return None


def number_of(attrs: Mapping[str, Any], *names: str) -> float | None:
    """Return the first attribute that is a positive number."""
    for name in names:
        value = attrs.get(name)
        if value is None or isinstance(value, str | bytes | bool):
            continue
        found = np.asarray(value)
        if found.size == 1 and found.dtype.kind in "iuf" and np.isfinite(found).all() and found.item() > 0:
            return float(found.item())
    return None


def whole(value: float | None) -> int | None:
    """Return a number of pixels as a whole number."""
    return None if value is None else round(value)
