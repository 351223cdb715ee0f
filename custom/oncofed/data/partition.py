"""Partition a dataset into simulated sites."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from oncofed.data.decisions import decided
from oncofed.data.manifest import MANIFEST_FILE, Entry, Manifest, inside, read_manifest, write_manifest
from oncofed.data.skew import Skew, deal_skewed
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
        tags: columns of the table from which it was registered, targets of kind class or grade, or "size", "vendor",
            "modality".
        least: patients of a site; combinations with fewer form the site "others".

    Raises:
        DataError: no case has one of the tags, or only one site would result.
    """
    manifest = decided(read_manifest(source))
    _require_tags(source, manifest, tags)
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


def deal_in_parts(
    source: Path, out: Path, sites: int, skew: Skew, tags: Sequence[str] = (), least: int = 3, seed: int = 1
) -> dict[str, Path]:
    """Deal a dataset's patients to sites that differ as a skew says.

    Returns site -> folder, site-1 to site-N.

    Args:
        source: a registered dataset.
        out: where each site gets a folder.
        sites: their number.
        skew: how they differ.
        tags: what makes groups of patients for ``dirichlet``, as in ``deal_by_tags``. Without, cases are grouped by
            their class or grade, or else in quarters by the volume that is labelled.
        least: fewest patients of a site, not counting those of the dataset's own validation and test lists.
        seed: of the draws.

    Raises:
        DataError: there are too few patients, no case has one of the tags, or all patients are of one group.
    """
    manifest = decided(read_manifest(source))
    _require_tags(source, manifest, tags)
    groups = _groups(manifest.entries, tags) if skew.kind == "dirichlet" else dict.fromkeys(_patients(manifest), "")
    if skew.kind == "dirichlet" and len(set(groups.values())) < 2:
        raise DataError(
            f"{source}: all patients are of one group, so that sites cannot have different ones. "
            "Name columns that differ: --by"
        )
    try:
        training = {_patient(entry) for entry in manifest.training}
        parts = deal_skewed(groups, sites, skew, least, seed, training)
    except DataError as error:
        raise DataError(f"{source}: {error}") from None
    width = len(str(sites))
    site_of = {patient: f"site-{n:0{width}}" for n, part in enumerate(parts, start=1) for patient in part}
    return _write_sites(source, out, manifest, lambda entry: site_of[_patient(entry)])


def _patients(manifest: Manifest) -> list[str]:
    return sorted({_patient(entry) for entry in manifest.entries})


def _groups(entries: Sequence[Entry], tags: Sequence[str]) -> dict[str, str]:
    """Return patient -> group: the most frequent of the patient's cases."""
    quarter = _quarters(entries)
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for entry in entries:
        name = _site_name(entry, tags) if tags else _label_group(entry, quarter)
        found[_patient(entry)][name] += 1
    return {patient: min(names, key=lambda name: (-names[name], name)) for patient, names in found.items()}


def _label_group(entry: Entry, quarter: Callable[[float], str]) -> str:
    if isinstance(entry.label, int):
        return str(entry.label)
    classes = [f"{name}={value}" for name, value in sorted(entry.targets.items()) if isinstance(value, str)]
    if classes:
        return ", ".join(classes)
    volume = _labelled_volume(entry)
    return "unlabelled" if volume is None else quarter(volume)


def _labelled_volume(entry: Entry) -> float | None:
    """Return the labelled volume in mm³, or area in mm²; in voxels where no spacing is known."""
    if entry.label_values is None:
        return None
    voxels = sum(count for value, count in entry.label_values.items() if float(value) != 0)
    return float(voxels * np.prod(entry.spacing or [1.0]))


def _quarters(entries: Sequence[Entry]) -> Callable[[float], str]:
    volumes = [volume for entry in entries if (volume := _labelled_volume(entry)) is not None]
    bounds = np.quantile(volumes, (0.25, 0.5, 0.75)) if volumes else np.zeros(3)
    return lambda volume: f"quarter {int(np.searchsorted(bounds, volume)) + 1}"


def _require_tags(source: Path, manifest: Manifest, tags: Sequence[str]) -> None:
    for tag in tags:
        if not any(_tag(entry, tag) for entry in manifest.entries):
            stated = {name for name, target in manifest.targets.items() if target.kind in ("class", "grade")}
            named = {name for entry in manifest.entries for name in entry.tags}
            known = sorted(named | stated | {"size", "vendor", "modality"})
            why = " It is a target of another kind than class and grade." if tag in manifest.targets else ""
            raise DataError(f"{source}: no case has {tag!r}.{why} Expected some of {', '.join(known)}.")


def _write_sites(
    source: Path, out: Path, manifest: Manifest, site_of: Callable[[Entry], str | None]
) -> dict[str, Path]:
    lists: dict[str, dict[str, list[Entry]]] = defaultdict(lambda: defaultdict(list))
    for split, entry in manifest.by_split():
        site = site_of(entry)
        if site is not None:
            lists[site][split].append(entry)
    earlier = next(iter(sorted(out.glob(f"*/{MANIFEST_FILE}"))), None)
    if earlier:
        raise DataError(f"{earlier.parent} is a dataset already. Name another folder with --out, or delete this one.")
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
    stated = entry.targets.get(tag)
    return stated if isinstance(stated, str) else entry.tags.get(tag, "")


def _site_name(entry: Entry, tags: Sequence[str]) -> str:
    name = "-".join(re.sub(r"[^A-Za-z0-9]+", "_", _tag(entry, tag)) or "none" for tag in tags)
    return name[:60]
