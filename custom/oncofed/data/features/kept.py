"""Which slides of a dataset have features, extracted once and kept.

``features.json`` in a folder of features says what was made, of what, and which slides were set aside. Training looks
there before it computes features.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import hashlib
import io
import json
from collections.abc import Collection
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from oncofed.atomic import write_whole
from oncofed.data import case_facts
from oncofed.data.case import Case
from oncofed.data.features.files import open_features
from oncofed.data.features.spool import SPOOL_FOLDER, remove_spool, spooled
from oncofed.data.tiles import KeptAt, SlideTiles
from oncofed.errors import DataError

KEPT_FILE = "features.json"
TABLE_FILE = "slides.csv"
OWNERS = 0o600  # names of slides and patients
FEATURES_FOLDER = "features"
# Raised when the same encoder and tiles come to give other vectors.
_VERSION = 1


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, populate_by_name=True)


class KeptSlide(_Part):
    """One slide whose features are kept."""

    file: str = Field(description="path inside the folder")
    made_of: str = Field(description="SHA-256 of encoder, slide and tiles: features of anything else are made again")
    tiles: int = Field(ge=1)
    tile: int = Field(description="pixels a side of a tile")
    mpp: float = Field(description="microns per pixel of a tile")
    patient: str | None = Field(None, description="as in dataset.json")


class Kept(_Part):
    """What a folder of features holds."""

    schema_: Literal[1] = Field(1, alias="schema")
    dataset: str = Field(description="name of the dataset")
    encoder: str
    digest: str | None = Field(None, description="of the encoder's weights; null: it has none")
    size: int = Field(description="numbers of a vector")
    slides: dict[str, KeptSlide] = {}
    set_aside: dict[str, str] = Field({}, description="slide -> why it has no features")


def read_kept(folder: Path) -> Kept | None:
    """Return what a folder of features holds; None where nothing says so.

    Raises:
        DataError: its list is damaged.
    """
    path = folder / KEPT_FILE
    if not path.is_file():
        return None
    try:
        return Kept.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValidationError, UnicodeDecodeError):
        raise DataError(
            f"{path}: not a list of features. Name another folder with --out, or remove this one, and extract again"
        ) from None


def write_kept(folder: Path, kept: Kept) -> None:
    """Write ``features.json`` in one step."""
    content = kept.model_dump_json(indent=1, by_alias=True, exclude_none=True) + "\n"
    write_whole(folder / KEPT_FILE, content, OWNERS)


def forget_others(folder: Path, names: Collection[str]) -> None:
    """Remove all that a folder holds of slides that the dataset no longer has, such as a patient's who withdrew.

    Args:
        folder: of features.
        names: of the dataset's slides.

    Raises:
        DataError: its list is damaged.
    """
    for name in spooled(folder / SPOOL_FOLDER) - set(names):
        remove_spool(folder / SPOOL_FOLDER, name)
    kept = read_kept(folder)
    gone = set() if kept is None else {*kept.slides, *kept.set_aside} - set(names)
    if kept is None or not gone:
        return
    files = {slide.file for name, slide in kept.slides.items() if name in gone}
    for file in files:
        if Path(file).name == file:  # the list may be another's
            (folder / file).unlink(missing_ok=True)
    _strike(folder / TABLE_FILE, files)
    slides = {name: slide for name, slide in kept.slides.items() if name not in gone}
    aside = {name: why for name, why in kept.set_aside.items() if name not in gone}
    # Last: whoever is interrupted before begins again.
    write_kept(folder, kept.model_copy(update={"slides": slides, "set_aside": aside}))


def _strike(table: Path, files: Collection[str]) -> None:
    """Remove files' rows from the table of slides, of which they are the first cell."""
    if not table.is_file():
        return
    with table.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.reader(file) if not row or row[0] not in files]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_whole(table, text.getvalue(), OWNERS)


def kept_at(case: Case) -> KeptAt | None:
    """Return where a slide's features may be kept; None of what nobody registered."""
    if case.folder is None:
        return None
    try:
        return KeptAt(case.folder / FEATURES_FOLDER, case.name, slide_source(case))
    except OSError:  # the slide is missing, which reading it tells
        return None


def slide_source(case: Case) -> str:
    """Return a text that changes with a slide's files."""
    checksum = case.entry.checksum if case.entry else None
    return f"{checksum} {case_facts.stamp(case.images)}"


def made_of(encoder: str, source: str, slide: SlideTiles) -> str:
    """Return the digest of what determines a slide's features.

    Args:
        encoder: ``Encoder.key``.
        source: see ``slide_source``.
        slide: its tiles.
    """
    return hashlib.sha256(json.dumps([_VERSION, encoder, source, slide.digest]).encode()).hexdigest()


def find_kept(slide: SlideTiles, encoder: str) -> Path | None:
    """Return the file of a slide's features, where they were extracted.

    Args:
        slide: its tiles.
        encoder: ``Encoder.key``.

    Returns:
        None where they were not, or of another slide, other tiles or another encoder.
    """
    if slide.kept is None or not slide.kept.folder.is_dir():
        return None
    wanted = made_of(encoder, slide.kept.source, slide)
    for list_file in sorted(slide.kept.folder.glob(f"*/{KEPT_FILE}")):
        found = _slides(list_file, list_file.stat().st_mtime_ns).get(slide.kept.name)
        if found is None or found.made_of != wanted:
            continue
        path = list_file.parent / found.file
        with contextlib.suppress(DataError), open_features(path) as features:  # else they are made again
            if len(features.rows) == len(slide):
                return path
    return None


@functools.lru_cache(maxsize=16)
def _slides(list_file: Path, changed: int) -> dict[str, KeptSlide]:
    del changed  # a changed file is read again
    try:
        kept = read_kept(list_file.parent)
    except DataError:
        return {}
    return kept.slides if kept else {}
