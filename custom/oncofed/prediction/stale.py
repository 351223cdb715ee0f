"""Finds predictions of images that are now set aside."""

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
    """Images of a dataset that are not predicted.

    Attributes:
        folder: of the dataset.
        names: case names from registration; for DICOM they name the converted files.
        sources: paths within the registered folder.
        images: registered images that do not fit the job.
    """

    folder: Path
    names: frozenset[str]
    sources: frozenset[str]
    images: frozenset[Path] = frozenset()

    @classmethod
    def of(cls, folder: Path, manifest: Manifest, images: Iterable[Path] = ()) -> RefusedImages:
        """Return what registration or the job refused."""
        names = frozenset(bad.name for bad in manifest.quarantine)
        sources = frozenset({*(bad.source or "" for bad in manifest.quarantine), *_left_out(folder)})
        return cls(_plain(folder), names, sources, frozenset(map(_plain, images)))

    def holds(self, image: Path, source: str) -> bool:
        """Return whether a predicted image is among them.

        Args:
            image: file that the network read.
            source: from the case's record.
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
    """Yield predicted cases whose images are refused now.

    Args:
        refused: refused images of each dataset.
        earlier: image path relative to ``out`` -> its name, for images not predicted now.
        records: name -> source of predicted cases.
        out: folder of the predictions.
    """
    for path, name in earlier.items():
        if name in records and any(one.holds(_plain(out / path), records[name]) for one in refused):
            yield name


def _plain(path: Path) -> Path:
    """Return an absolute path without resolving links."""
    return Path(os.path.abspath(path))  # noqa: PTH100 - resolve follows links


def _left_out(folder: Path) -> Iterator[str]:
    """Yield files of a dataset's ``files.csv`` without a case."""
    if not (folder / FILES_TABLE).is_file():
        return
    with (folder / FILES_TABLE).open(encoding="utf-8", newline="") as file:
        yield from (row["path"] for row in csv.DictReader(file) if row["use"] == LEFT_OUT)
