"""What a dataset's folder holds of cases that are gone, such as those of a patient who withdrew."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from oncofed.data.converted import SUFFIXES
from oncofed.data.decisions import name_of
from oncofed.data.features.kept import FEATURES_FOLDER, KEPT_FILE, forget_others
from oncofed.data.manifest import Manifest
from oncofed.data.prepared import CACHE_FOLDER
from oncofed.errors import DataError


def remove_leftovers(out: Path, before: Manifest | None, manifest: Manifest) -> None:
    """Remove copies of cases that are gone, and what was computed of them.

    Args:
        out: the dataset's folder.
        before: the dataset as it was.
        manifest: as it is now.
    """
    _remove_converted(out, manifest)
    _remove_computed(out, before, manifest)


def _remove_converted(out: Path, manifest: Manifest) -> None:
    """Remove converted images of cases that are gone.

    This also removes the copies of a patient who withdrew.
    """
    kept = {path for e in manifest.entries for path in (*e.images, e.label, e.tiles) if isinstance(path, str)}
    for folder in ("images", "labels", "tiles"):
        for path in (out / folder).glob("*") if (out / folder).is_dir() and not (out / folder).is_symlink() else ():
            if f"{folder}/{path.name}" not in kept and path.suffix in {*SUFFIXES, ".npz"}:
                path.unlink()
    for path in (out / "slides").glob("*"):
        if f"slides/{path.name}" not in kept:
            shutil.rmtree(path)


def _remove_computed(out: Path, before: Manifest | None, manifest: Manifest) -> None:
    """Remove what was computed of cases that are gone: their features, and prepared cases.

    A prepared case does not say whose it is, and is made anew where it is missing: all of them go.
    """
    names = {name_of(entry) for entry in manifest.entries} | {bad.name for bad in manifest.quarantine}
    for list_file in (out / FEATURES_FOLDER).glob(f"*/{KEPT_FILE}"):
        with contextlib.suppress(DataError):  # a damaged list: extracting says so
            forget_others(list_file.parent, names)
    if before is not None and {name_of(entry) for entry in before.entries} - names:
        for path in (out / CACHE_FOLDER).glob("*"):
            path.unlink(missing_ok=True)
