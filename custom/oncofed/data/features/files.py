"""Read a file of features, whichever tool wrote it."""

from __future__ import annotations

import importlib.util
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from oncofed.data.features import hest, lazyslide, stamp, tensors, trident
from oncofed.data.features.bag import FeatureBag
from oncofed.data.features.stored import DAMAGED, Group, Stored
from oncofed.errors import DataError

if TYPE_CHECKING:
    import h5py

_HDF5, _ZIP, _PICKLE = b"\x89HDF\r\n\x1a\n", b"PK\x03\x04", b"\x80"
_ZARR = ("zarr.json", ".zgroup")
_KNOWN = (
    "features as TRIDENT, CLAM, STAMP, HEST or LazySlide write them: HDF5 with features, feats or embeddings, "
    "Zarr with tables, or a tensor of torch"
)


class NoFeaturesError(DataError):
    """A file that tools of features write, and that holds none."""


def read_features(path: Path, encoder: str | None = None, finest: float | None = None) -> FeatureBag:
    """Return a slide's features.

    Args:
        path: of the file, or of a Zarr store.
        encoder: whose features to read, of a file that holds those of several.
        finest: microns per pixel of the slide's finest level, for coordinates in microns: without it, they are left
            out where the file does not say.

    Raises:
        DataError: it is missing, damaged, of a kind not known here, or its arrays do not fit together; the message
            says "its" or "it", and names no path.
    """
    with open_features(path, encoder) as found:
        return found.completed(finest=finest).bag()


@contextmanager
def open_features(path: Path, encoder: str | None = None) -> Iterator[Stored]:
    """Open a slide's features, whose rows are read one part after another.

    Args:
        path: of the file, or of a Zarr store.
        encoder: whose features to read, of a file that holds those of several.

    Raises:
        NoFeaturesError: it holds the coordinates of tiles alone.
        DataError: see ``read_features``.
    """
    kind = _kind(path)
    if kind == "torch":
        with _as_reasons():
            found = tensors.read(path)
        yield found
    elif kind == "hdf5":
        _require("h5py")
        import h5py  # noqa: PLC0415 - optional

        try:
            file = h5py.File(path, "r", locking=False)  # a network drive may have no locks
        except OSError:
            raise DataError("it is damaged or cut off: it cannot be read as HDF5. Copy it again") from None
        with file:
            _require_own(file)
            yield _read(file, path, encoder)
    else:
        _require("zarr")
        yield _read(_zarr(path), path, encoder)


@contextmanager
def _as_reasons() -> Iterator[None]:
    """Turn what libraries raise for a malformed file, which is any type of error, into a reason.

    Raises:
        DataError: one of them did.
    """
    try:
        yield
    except (DataError, MemoryError):
        raise
    except Exception:  # noqa: BLE001 - see above
        raise DataError(DAMAGED) from None


def _require_own(file: h5py.File) -> None:
    """Refuse a file whose numbers lie in other files, which HDF5 would read wherever they are.

    Raises:
        DataError: it has a link to another file or another name, or a dataset that is kept elsewhere.
    """
    import h5py  # noqa: PLC0415 - optional

    def elsewhere(name: str, link: object) -> bool | None:
        if not isinstance(link, h5py.HardLink):
            return True
        found = file[name]
        return True if isinstance(found, h5py.Dataset) and (found.is_virtual or found.external) else None

    with _as_reasons():
        is_elsewhere = file.visititems_links(elsewhere)
    if is_elsewhere:
        raise DataError(
            "it refers to numbers outside itself (a link, external storage or a virtual dataset), expected all of them "
            "inside. Copy them into one file"
        )


def _zarr(path: Path) -> Group:
    import zarr  # noqa: PLC0415 - optional

    try:
        store = zarr.storage.ZipStore(path, mode="r") if path.is_file() else path
        group: Group = zarr.open_group(store, mode="r")
    except Exception:  # noqa: BLE001 - libraries raise any type of error for a malformed file
        raise DataError("it is damaged: it cannot be read as Zarr. Copy it again") from None
    return group


def _read(group: Group, path: Path, encoder: str | None) -> Stored:
    with _as_reasons():
        found = trident.read(group) or stamp.read(group) or hest.read(group) or lazyslide.read(group, path, encoder)
    if found:
        return found
    names = ", ".join(sorted(group)[:6]) or "nothing"
    if count := stamp.slides_together(group):
        raise DataError(
            f"it holds a vector of each of {count} slides, as older versions of STAMP write them. Write a file a slide"
        )
    if "coords" in group:
        raise NoFeaturesError(f"it holds the coordinates of tiles alone ({names}), expected {_KNOWN}")
    raise DataError(f"it holds {names}, expected {_KNOWN}")


def _kind(path: Path) -> str:
    """Return the family of a file's format, by its content."""
    if path.is_dir():
        if not any((path / name).is_file() for name in _ZARR):
            raise DataError("it is a folder with neither zarr.json nor .zgroup, expected a Zarr store")
        return "zarr"
    try:
        with path.open("rb") as file:
            head = file.read(8)
    except FileNotFoundError:
        raise DataError("it is missing. Copy it there again, or register the folder anew") from None
    except OSError as error:
        raise DataError(f"it cannot be read ({error.strerror})") from None
    if not head:
        raise DataError("it is empty (0 bytes). Copy it again")
    if head == _HDF5:
        return "hdf5"
    if head.startswith(_ZIP):
        return "zarr" if _is_zipped_zarr(path) else "torch"
    if head.startswith(_PICKLE):
        return "torch"
    raise DataError(f"its first bytes are those of no file of features, expected {_KNOWN}")


def _is_zipped_zarr(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as file:
            return any(name in _ZARR for name in file.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def _require(name: str) -> None:
    if importlib.util.find_spec(name) is None:
        raise DataError(f"it needs {name} to be read: pip install 'oncofed[pathology]'")
