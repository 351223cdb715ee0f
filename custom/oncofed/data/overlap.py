"""Patients that two sites share, counted without naming them.

Each site writes fingerprints of its patients' IDs and images: HMAC-SHA256 (RFC 2104) under a key that the sites' data
managers hand each other, and that no server gets. Who compares the files sees which fingerprints are equal, and cannot
test whom they are of; who has the key could, so nobody who has it gets another site's file. What is told are counts.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from oncofed.data.composition import hashed_key
from oncofed.data.decisions import decided, name_of
from oncofed.data.index import Index
from oncofed.data.manifest import SALT_FILE, read_manifest
from oncofed.data.register import INDEX_FILE
from oncofed.errors import DataError
from oncofed.suppression import LEAST_PATIENTS

KEY_BYTES = 32
_DIGITS = 32  # of 128 bits: no two of all people's share one by chance
Fingerprint = Annotated[str, Field(pattern=rf"^[0-9a-f]{{{_DIGITS}}}$")]


class SitePatients(BaseModel):
    """A site's file: fingerprints, one group per patient."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    schema_: Literal[1] = Field(1, alias="schema")
    site: str = Field(max_length=64)
    key: Fingerprint = Field(description="tells whether two files are of one key, and nothing of it")
    patients: tuple[tuple[Fingerprint, ...], ...]


def site_patients(folder: Path, site: str, key: bytes) -> SitePatients:
    """Return the fingerprints of a registered dataset's patients.

    IDs are those of the images or the table, from the index that registering keeps at the site; an image that nobody
    gave a patient, and a patient by study or folder, count by their images alone.

    Args:
        folder: the dataset, registered.
        site: name of the site.
        key: that the sites share.

    Raises:
        DataError: the folder is no registered dataset, or the key is too short.
    """
    if len(key) < KEY_BYTES:
        raise DataError(f"the key has {len(key)} bytes, expected {KEY_BYTES}. Make one with: oncofed data overlap key")
    if not (folder / SALT_FILE).is_file() or not (folder / INDEX_FILE).is_file():
        raise DataError(f"{folder}: is not registered. Register its folder with: oncofed data register")
    manifest = decided(read_manifest(folder))
    salt = (folder / SALT_FILE).read_bytes()
    identities = dict(_identities(folder, salt)) if manifest.patient_from == "id" else {}
    groups: dict[str, set[str]] = defaultdict(set)
    for entry in manifest.entries:
        own = groups[entry.patient or name_of(entry)]
        if entry.patient in identities:
            own.add(_fingerprint(key, "patient", identities[entry.patient]))
        if entry.checksum:
            own.add(_fingerprint(key, "image", entry.checksum))
    patients = sorted(tuple(sorted(group)) for group in groups.values() if group)  # the order tells nothing
    return SitePatients(site=site, key=_fingerprint(key, "key", ""), patients=tuple(patients))


def _identities(folder: Path, salt: bytes) -> Iterator[tuple[str, str]]:
    """Yield each patient's key in the dataset, and the ID that it stands for."""
    with Index(folder / INDEX_FILE) as index:
        for value in index.values():
            entry = value.get("entry") if isinstance(value, dict) else None
            patient = entry.get("patient") if entry else None
            if entry and patient and patient != entry["name"]:
                yield hashed_key(salt, patient), _normal(patient)


def _normal(patient: str) -> str:
    """Return an ID as both sites write it: without case, spaces around, and an empty issuer of DICOM."""
    return patient.strip().casefold().removeprefix("|")


def _fingerprint(key: bytes, kind: str, text: str) -> str:
    return hmac.new(key, f"oncofed overlap 1|{kind}|{text}".encode(), hashlib.sha256).hexdigest()[:_DIGITS]


def read_site_patients(path: Path) -> SitePatients:
    """Read a site's file.

    Raises:
        DataError: it is none.
    """
    try:
        return SitePatients.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, ValidationError):
        raise DataError(f"{path}: no file of fingerprints. Write one with: oncofed data overlap write") from None


def shared_patients(sites: Sequence[SitePatients]) -> dict[tuple[str, str], int | None]:
    """Return pair of sites -> patients of the first whom the second has; None: fewer than five.

    None also where all but fewer than five are shared, which would tell of those who are not.

    Raises:
        DataError: fewer than two sites, two of one name, or of several keys.
    """
    names = [site.site for site in sites]
    if len(sites) < 2 or len(set(names)) < len(names):
        raise DataError(f"found files of {', '.join(names) or 'no site'}, expected those of two sites or more")
    if len({site.key for site in sites}) > 1:
        raise DataError(
            f"the files of {', '.join(names)} were written with different keys, expected one: nothing can be compared. "
            "Agree on one key, and write the files anew with: oncofed data overlap write"
        )
    found: dict[tuple[str, str], int | None] = {}
    for first, second in combinations(sites, 2):
        counts = [_of_first(first, second), _of_first(second, first)]
        # A patient may have two IDs at one site: what is told rests on five at both.
        told = min(counts) >= LEAST_PATIENTS
        for one, other, count in ((first, second, counts[0]), (second, first, counts[1])):
            others = len(one.patients) - count
            found[one.site, other.site] = count if told and (others == 0 or others >= LEAST_PATIENTS) else None
    return found


def _of_first(first: SitePatients, second: SitePatients) -> int:
    known = {fingerprint for group in second.patients for fingerprint in group}
    return sum(not known.isdisjoint(group) for group in first.patients)
