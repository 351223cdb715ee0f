"""Predictions of images that are set aside now: what an earlier call said of them no longer holds."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from oncofed.data.files import FILES_TABLE, LEFT_OUT
from oncofed.data.manifest import Manifest


@dataclass(frozen=True)
class RefusedImages:
    """What a dataset holds that is not predicted.

    Attributes:
        folder: of the dataset.
        names: that registering gives; of DICOM they name the files that it makes.
        sources: paths inside the folder that was registered.
        images: that were registered, and that the job does not take.
    """

    folder: Path
    names: frozenset[str]
    sources: frozenset[str]
    images: frozenset[Path] = frozenset()

    @classmethod
    def of(cls, folder: Path, manifest: Manifest, images: Iterable[Path] = ()) -> RefusedImages:
        """Return what registering set aside or left out, and what the job does not take."""
        names = frozenset(bad.name for bad in manifest.quarantine)
        sources = frozenset({*(bad.source or "" for bad in manifest.quarantine), *_left_out(folder)})
        return cls(_plain(folder), names, sources, frozenset(map(_plain, images)))

    def holds(self, image: Path, source: str) -> bool:
        """Return whether an image that was predicted is one of these.

        Args:
            image: that the network read.
            source: as its record has it.
        """
        if image in self.images:
            return True
        if not image.is_relative_to(self.folder):
            return False
        place, _, file = str(image.relative_to(self.folder)).partition("/")
        return source in self.sources or (place in {"images", "slides"} and file.partition(".")[0] in self.names)


def stale_cases(
    refused: Sequence[RefusedImages], earlier: Mapping[str, str], records: Mapping[str, str], out: Path
) -> Iterator[str]:
    """Yield the names of cases that were predicted and are refused now.

    Args:
        refused: by datasets.
        earlier: path of an image that is not predicted now, from ``out``, -> its name.
        records: name -> source, of the cases that were predicted.
        out: folder of the predictions.
    """
    for path, name in earlier.items():
        if name in records and any(one.holds(_plain(out / path), records[name]) for one in refused):
            yield name


def _plain(path: Path) -> Path:
    """Return a path from the root on, its links as they are."""
    return Path(os.path.abspath(path))  # noqa: PTH100 - resolve follows links


def _left_out(folder: Path) -> Iterator[str]:
    """Yield the files that became no case, of a dataset's ``files.csv``."""
    if not (folder / FILES_TABLE).is_file():
        return
    with (folder / FILES_TABLE).open(encoding="utf-8", newline="") as file:
        yield from (row["path"] for row in csv.DictReader(file) if row["use"] == LEFT_OUT)
