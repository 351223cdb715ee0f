"""Keys of patients: whose salt hashes them, and whether they stay whose they were."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from oncofed.atomic import create_whole
from oncofed.data.composition import hashed_key
from oncofed.data.decisions import decided, name_of
from oncofed.data.manifest import MANIFEST_FILE, SALT_FILE, Entry, Manifest, read_manifest
from oncofed.errors import DataError
from oncofed.private_files import random_secret


def salt_for(out: Path, other: Path | None) -> bytes:
    """Return the salt of a dataset's patients, created at first use; it never leaves the folder.

    Args:
        out: the dataset's folder.
        other: a registered dataset of this site whose salt it takes; None: one of its own.

    Raises:
        DataError: the other has none, or the dataset has another one.
    """
    if other is None:
        return random_secret(out / SALT_FILE)
    if not (other / SALT_FILE).is_file():
        raise DataError(f"{other}: it has no patients' keys. Register it first with: oncofed data register")
    shared = (other / SALT_FILE).read_bytes()
    if not (out / SALT_FILE).exists():
        create_whole(out / SALT_FILE, shared)
    if (out / SALT_FILE).read_bytes() != shared:
        raise DataError(
            f"{out}: its patients' keys are of a salt of its own, expected that of {other}. Register it into a new "
            "folder with --out"
        )
    return shared


def told_apart(entries: Sequence[Entry], before: Manifest | None, other: Manifest | None = None) -> str:
    """Return what stays the same as long as each image stays its patient's.

    Args:
        entries: as registered now.
        before: the dataset as last registered; None: never.
        other: the one whose salt it takes.

    Returns:
        A new digest where an image that was known before has another patient's key now.
    """
    known: dict[str, set[str]] = defaultdict(set)
    earlier = before or other
    for entry in earlier.entries if earlier else ():
        for image in _known_by(entry, before is not None):
            known[image].add(_key(entry))
    for entry in entries:
        for image in _known_by(entry, before is not None):
            if _key(entry) not in known.get(image, {_key(entry)}):
                return _digest(sorted((name_of(one), _key(one)) for one in entries))
    return earlier.told_apart if earlier else ""


def way_of_keys(dataset: Path) -> str:
    """Return a digest of how a dataset's patients are told apart.

    Two datasets of one salt and one way have one key for one patient, as far as their folders or tables name patients
    alike. IDs of DICOM, which have an issuer, and those of tables and file names are different ways; names of files
    that stand for patients, for want of better, tell nothing outside their dataset.

    Args:
        dataset: its folder; without a ``dataset.json`` nothing is known.
    """
    if not (dataset / MANIFEST_FILE).is_file():
        return ""
    manifest = read_manifest(dataset)
    salt = (dataset / SALT_FILE).read_bytes() if (dataset / SALT_FILE).is_file() else b""
    kinds = {_kind(entry, salt) for entry in manifest.entries}
    now = {name_of(entry): _key(entry) for entry in decided(manifest).entries}
    joined = {_key(e): now[name_of(e)] for e in manifest.entries if now.get(name_of(e), _key(e)) != _key(e)}
    names = manifest.name if "name" in kinds else ""
    ways = [manifest.patient_from, manifest.told_apart, manifest.description, names, sorted(kinds)]
    return _digest([*ways, sorted(joined.items())])


def _kind(entry: Entry, salt: bytes) -> str:
    if entry.study:
        return "DICOM"
    return "name" if entry.patient in (None, hashed_key(salt, name_of(entry))) else "key"


def _key(entry: Entry) -> str:
    return entry.patient or name_of(entry)


def _known_by(entry: Entry, same_folder: bool) -> list[str]:
    """Return what an image is known by when it is registered again."""
    return [found for found in (entry.source if same_folder else None, entry.checksum) if found]


def _digest(values: object) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]
