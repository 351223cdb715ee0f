"""Resolves user inputs: registered datasets, folders, files."""

from __future__ import annotations

import csv
import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from oncofed.data.files import FILES_TABLE, LEFT_OUT
from oncofed.data.layouts.base import first_free
from oncofed.data.manifest import MANIFEST_FILE, SALT_FILE, manifest_values
from oncofed.errors import DataError, SpecError
from oncofed.prediction.permissions import make_private

HIDDEN_FOLDER = ".inputs"
# Formats of several files with one name.
_IN_PARTS = {".mhd", ".nhdr", ".hdr", ".img", ".mrxs"}
_DICOM_PREAMBLE = 128


@dataclass(frozen=True)
class PredictionInput:
    """One input.

    Attributes:
        name: as typed; for files, their common folder.
        dataset: folder of a registered dataset; None: to be registered.
        source: folder to register.
        folder: hidden dataset folder.
        named: links in ``source`` to files that the user named individually.
    """

    name: str
    dataset: Path | None = None
    source: Path = Path()
    folder: Path = Path()
    named: frozenset[str] = frozenset()

    def unused_files(self) -> list[tuple[str, str]]:
        """Return (file, reason) of named files without a case."""
        with (self.folder / FILES_TABLE).open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["use"] == LEFT_OUT and not row["case"]]
        return [(row["path"], row["reason"]) for row in rows if row["path"] in self.named]


def resolve_inputs(inputs: Sequence[str | Path], out: Path, datasets: Path) -> list[PredictionInput]:
    """Resolve inputs to datasets and folders to register.

    Files become links in a hidden folder of ``out``.

    Args:
        inputs: as typed.
        out: folder of the predictions.
        datasets: folder of the registered datasets.

    Raises:
        DataError: an input does not exist.
        SpecError: an input is ``out`` or lies in it.
    """
    found: dict[str, PredictionInput] = {}
    files: list[Path] = []
    for text in inputs:
        path = Path(text).expanduser()
        dataset = _dataset(path, str(text), datasets)
        if dataset is not None:
            found[f"dataset {dataset.resolve()}"] = PredictionInput(str(text), dataset)
            continue
        if path.resolve().is_relative_to(out.resolve()):
            raise SpecError(
                f"{text}: lies in --out {out}, where predictions go. Name a folder of images, or another --out"
            )
        if path.is_dir():
            found[f"folder {path.resolve()}"] = _folder(path, str(text), out)
        else:
            files.append(path)
    return [*found.values(), *_files(list(dict.fromkeys(files)), out)]


def _dataset(path: Path, text: str, datasets: Path) -> Path | None:
    """Return the folder of a registered dataset, if any."""
    if path.is_file() and path.name == MANIFEST_FILE:
        path = path.parent
    if path.is_dir():
        return path if _is_dataset(path) else None
    if path.exists():
        return None
    if _is_dataset(datasets / text):
        return datasets / text
    known = sorted(folder.parent.name for folder in datasets.glob(f"*/{MANIFEST_FILE}"))
    raise DataError(
        f"{text}: no such file or folder, and no dataset of that name. Registered in {datasets}: "
        f"{', '.join(known) or 'none'}"
    )


def _is_dataset(folder: Path) -> bool:
    """Return whether a folder is a registered or Decathlon dataset."""
    file = folder / MANIFEST_FILE
    if not file.is_file():
        return False
    if (folder / SALT_FILE).is_file():
        return True
    values = manifest_values(file)
    # nnU-Net's dataset.json has no list: registration finds its cases.
    return isinstance(values, dict) and isinstance(values.get("training"), list)


def _folder(path: Path, text: str, out: Path) -> PredictionInput:
    hidden = _hidden(path.resolve(), out)
    whole, target = path.resolve(), out.resolve()
    source = path
    if target.is_relative_to(whole):
        # Earlier predictions are no input.
        source = _emptied(hidden / "links")
        _link_all_but(whole, target, source)
    return PredictionInput(text, source=source, folder=hidden / "dataset")


def _link_all_but(folder: Path, left_out: Path, target: Path) -> None:
    """Link a folder's contents, except one folder at any depth."""
    for entry in sorted(folder.iterdir()):
        if entry == left_out:
            continue
        if left_out.is_relative_to(entry):
            (target / entry.name).mkdir()
            _link_all_but(entry, left_out, target / entry.name)
        elif not entry.name.startswith("."):
            (target / entry.name).symlink_to(entry)


def _files(paths: Sequence[Path], out: Path) -> list[PredictionInput]:
    """Group files by folder, where names are unique; DICOM together."""
    groups: dict[Path | None, list[Path]] = {}
    for path in paths:
        groups.setdefault(None if _is_dicom(path) else path.absolute().parent, []).append(path.absolute())
    found = []
    for folder, members in groups.items():
        hidden = out / HIDDEN_FOLDER / "dicom" if folder is None else _hidden(folder, out, "files ")
        links = _emptied(hidden / "links")
        placed: dict[str, Path] = {}
        for path in members:
            placed[first_free(path.name, placed) if folder is None else path.name] = path
        named = frozenset(placed)
        for part in (part for path in members for part in _parts(path)):
            placed.setdefault(part.name, part)
        for name, path in placed.items():
            (links / name).symlink_to(path)
        shown = str(folder or ", ".join(path.name for path in members[:3]))
        found.append(PredictionInput(shown, source=links, folder=hidden / "dataset", named=named))
    return found


def _parts(path: Path) -> list[Path]:
    """Return the other files of a multi-file format."""
    if path.suffix.lower() not in _IN_PARTS:
        return []
    return sorted(other for other in path.parent.iterdir() if other.stem == path.stem and other != path)


def _is_dicom(path: Path) -> bool:
    """Return whether a file is DICOM, by name or preamble.

    PS3.10, section 7.1.
    """
    if path.suffix.lower() in {".dcm", ".ima"}:
        return True
    try:
        with path.open("rb") as file:
            return file.read(_DICOM_PREAMBLE + 4)[_DICOM_PREAMBLE:] == b"DICM"
    except OSError:  # registration reports it
        return False


def _hidden(path: Path, out: Path, kind: str = "") -> Path:
    """Return an input's hidden folder, stable across calls."""
    digest = hashlib.sha256(f"{kind}{path}".encode("utf-8", "surrogateescape")).hexdigest()[:12]
    return out / HIDDEN_FOLDER / digest


def _emptied(folder: Path) -> Path:
    """Return a folder for links, emptied."""
    if folder.exists():
        shutil.rmtree(folder)
    make_private(folder)
    return folder
