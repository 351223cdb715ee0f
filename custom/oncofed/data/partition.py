"""Partition a dataset into simulated sites."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from oncofed.data.decisions import decided
from oncofed.data.manifest import Entry, Manifest, inside, read_manifest, write_manifest
from oncofed.errors import DataError


def deal_to_sites(source: Path, out: Path, shares: Sequence[float], seed: int) -> dict[str, Path]:
    """Deal a dataset's patients to sites.

    Returns site -> folder, with links to the files, not copies.

    Args:
        source: the dataset's folder.
        out: where each site gets a folder.
        shares: of the patients, by site; they need not add up to one.
        seed: of the shuffling.

    Raises:
        DataError: there are too few cases to give each site three.
    """
    manifest = decided(read_manifest(source))
    patients = sorted({_patient(entry) for entry in manifest.training})
    np.random.default_rng(seed).shuffle(patients)
    bounds = np.rint(np.cumsum(shares) / np.sum(shares) * len(patients)).astype(int)
    parts = np.split(np.asarray(patients, dtype=object), bounds[:-1])
    if min(map(len, parts)) < 3:
        raise DataError(
            f"{source}: {len(patients)} patients are too few for {len(parts)} sites of uneven size; "
            "expected at least 3 patients for the smallest."
        )
    site_of = {patient: f"site-{number}" for number, part in enumerate(parts, start=1) for patient in part}
    return _write_sites(source, out, manifest, lambda entry: site_of.get(_patient(entry)))


def deal_by_tags(source: Path, out: Path, tags: Sequence[str], least: int = 1) -> dict[str, Path]:
    """Deal a dataset to sites by its tags.

    Returns site -> folder, one site for each combination of the tags' values.

    Args:
        source: a registered dataset.
        out: where each site gets a folder, named by its values.
        tags: columns of the table from which it was registered, or "size", "vendor", "modality".
        least: patients of a site; combinations with fewer form the site "others".

    Raises:
        DataError: no case has one of the tags, or only one site would result.
    """
    manifest = decided(read_manifest(source))
    for tag in tags:
        if not any(_tag(entry, tag) for entry in manifest.entries):
            known = sorted({t for entry in manifest.entries for t in entry.tags} | {"size", "vendor", "modality"})
            raise DataError(f"{source}: no case has {tag!r}. Expected some of {', '.join(known)}.")
    patients: dict[str, set[str]] = defaultdict(set)
    for entry in manifest.entries:
        patients[_site_name(entry, tags)].add(_patient(entry))
    if len(patients) < 2:
        raise DataError(
            f"{source}: all cases have the same {', '.join(tags)}, which makes one site only. Name what differs: --by"
        )

    def site_of(entry: Entry) -> str:
        name = _site_name(entry, tags)
        return name if len(patients[name]) >= least else "others"

    return _write_sites(source, out, manifest, site_of)


def _write_sites(
    source: Path, out: Path, manifest: Manifest, site_of: Callable[[Entry], str | None]
) -> dict[str, Path]:
    lists: dict[str, dict[str, list[Entry]]] = defaultdict(lambda: defaultdict(list))
    for split, entry in manifest.by_split():
        site = site_of(entry)
        if site is not None:
            lists[site][split].append(entry)
    folders = {}
    for site, by_split in sorted(lists.items()):
        folder = folders[site] = out / site
        folder.mkdir(parents=True, exist_ok=True)
        for entries in by_split.values():
            for entry in entries:
                _link(source, folder, entry)
        # These describe the whole folder, not this site.
        emptied: dict[str, object] = {"quarantine": [], "files": {}, "left_out": {}, "remarks": []}
        dealt = {"training": [], "validation": [], "test": [], **emptied, **by_split}
        write_manifest(folder, manifest.model_copy(update=dealt))
    return folders


def _link(source: Path, folder: Path, entry: Entry) -> None:
    for path in (*entry.images, entry.label, entry.tiles, entry.features and entry.features.file):
        if isinstance(path, str):
            link = inside(folder, path)
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.is_symlink():
                link.symlink_to((source / path).resolve())


def _patient(entry: Entry) -> str:
    return entry.patient or entry.images[0]


def _tag(entry: Entry, tag: str) -> str:
    if tag == "size":
        return "x".join(map(str, entry.shape or []))
    if tag in {"vendor", "modality"}:
        return str(getattr(entry, tag) or "")
    return entry.tags.get(tag, "")


def _site_name(entry: Entry, tags: Sequence[str]) -> str:
    name = "-".join(re.sub(r"[^A-Za-z0-9]+", "_", _tag(entry, tag)) or "none" for tag in tags)
    return name[:60]
